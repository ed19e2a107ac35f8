//! One AdamW update of one parameter with decoupled decay, as `decide` says.
//!
//! g = clip grad; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; w = keep w - lr c1 m / (sqrt(v) c2 + eps), with the values of `adamw_decide` clip,
//! c1, c2; nothing where it says not applied. w f32 is the master weight (or the parameter itself), p the parameter that it is rounded to (`half` = 1).
//! grad, m, v, w f32 `[n]`, p `[n]`, values f32 `[5]`. Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod adamw_update {
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn adamw_update<E: ElementType, const N: i32>(
        p: *mut E,
        w: *mut f32,
        grad: *mut f32,
        m: *mut f32,
        v: *mut f32,
        values: *mut f32,
        n: i32,
        half: i32,
        beta1: f32,
        beta2: f32,
        lr: f32,
        eps: f32,
        keep: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let i: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(n, const_shape![N]);
        let on: Tile<bool, { [N] }> = lt_tile(i, end);
        let k1: Tile<i32, { [N] }> = constant(1i32, const_shape![N]);
        let k2: Tile<i32, { [N] }> = constant(2i32, const_shape![N]);
        let k3: Tile<i32, { [N] }> = constant(3i32, const_shape![N]);
        let k4: Tile<i32, { [N] }> = constant(4i32, const_shape![N]);
        let clip: Tile<f32, { [N] }> = unsafe { read_f32::<N>(values, k1, on) }.reshape(const_shape![N]);
        let go: Tile<f32, { [N] }> = unsafe { read_f32::<N>(values, k2, on) }.reshape(const_shape![N]);
        let c1: Tile<f32, { [N] }> = unsafe { read_f32::<N>(values, k3, on) }.reshape(const_shape![N]);
        let c2: Tile<f32, { [N] }> = unsafe { read_f32::<N>(values, k4, on) }.reshape(const_shape![N]);
        let zero: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let none: Tile<i32, { [N] }> = constant(0i32, const_shape![N]);
        let no: Tile<bool, { [N] }> = lt_tile(none, none);
        let on: Tile<bool, { [N] }> = select(on, gt_tile(go, zero), no);
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let b1: Tile<f32, { [N] }> = broadcast_scalar(beta1, const_shape![N]);
        let b2: Tile<f32, { [N] }> = broadcast_scalar(beta2, const_shape![N]);
        let rate: Tile<f32, { [N] }> = broadcast_scalar(lr, const_shape![N]);
        let e: Tile<f32, { [N] }> = broadcast_scalar(eps, const_shape![N]);
        let stay: Tile<f32, { [N] }> = broadcast_scalar(keep, const_shape![N]);
        let g: Tile<f32, { [N] }> = unsafe { read_f32::<N>(grad, i, on) }.reshape(const_shape![N]);
        let g: Tile<f32, { [N] }> = g * clip;
        let mt: Tile<f32, { [N] }> = unsafe { read_f32::<N>(m, i, on) }.reshape(const_shape![N]);
        let vt: Tile<f32, { [N] }> = unsafe { read_f32::<N>(v, i, on) }.reshape(const_shape![N]);
        let wt: Tile<f32, { [N] }> = unsafe { read_f32::<N>(w, i, on) }.reshape(const_shape![N]);
        let mt: Tile<f32, { [N] }> = b1 * mt + (one - b1) * g;
        let vt: Tile<f32, { [N] }> = b2 * vt + (one - b2) * g * g;
        let root: Tile<f32, { [N] }> = sqrt(vt, rounding::NearestEven, ftz::Disabled);
        let wt: Tile<f32, { [N] }> = stay * wt - rate * c1 * true_div(mt, root * c2 + e);
        unsafe { write_f32::<N>(m, i, mt, on) };
        unsafe { write_f32::<N>(v, i, vt, on) };
        unsafe { write_f32::<N>(w, i, wt, on) };
        if half == 1i32 {
            let o: Tile<E, { [N] }> = convert_tile(wt);
            unsafe { write::<E, N>(p, i, o, on) };
        }
    }
}
