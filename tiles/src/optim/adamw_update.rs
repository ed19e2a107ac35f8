//! One AdamW update of one parameter with decoupled decay, as `decide` says.
//!
//! g = clip grad; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; w = keep w - lr c1 m / (sqrt(v) c2 + eps), with the values of `adamw_decide` clip,
//! c1, c2; nothing where it says not applied. w f32 is the master weight (or the parameter itself), p the parameter that it is rounded to (`half` = 1).
//! grad, m, v, w f32 `[n]`, p `[n]`, values f32 `[5]`; n is a multiple of V. Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod adamw_update {
    use crate::tile::rows::rows::*;
    use crate::tile::vectors::vectors::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn adamw_update<E: ElementType, const N: i32, const V: i32>(
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
        let five: i32 = 5i32;
        let said: Tensor<f32, { [-1] }> = unsafe { flat_f32(values, five) };
        let said: Partition<f32, { [1] }> = said.partition(const_shape![1]);
        let go: Tile<f32, { [1] }> = said.load([2i32]);
        let go: f32 = tile_to_scalar(go.reshape(const_shape![]));
        if go > 0.0f32 {
            let clip: Tile<f32, { [N] }> = said.load([1i32]).broadcast(const_shape![N]);
            let c1: Tile<f32, { [N] }> = said.load([3i32]).broadcast(const_shape![N]);
            let c2: Tile<f32, { [N] }> = said.load([4i32]).broadcast(const_shape![N]);
            let gv: Tensor<f32, { [-1] }> = unsafe { flat_f32_by::<V>(grad, n) };
            let mv: Tensor<f32, { [-1] }> = unsafe { flat_f32_by::<V>(m, n) };
            let vv: Tensor<f32, { [-1] }> = unsafe { flat_f32_by::<V>(v, n) };
            let wv: Tensor<f32, { [-1] }> = unsafe { flat_f32_by::<V>(w, n) };
            let gp: Partition<f32, { [N] }> = gv.partition(const_shape![N]);
            let mp: Partition<f32, { [N] }> = mv.partition(const_shape![N]);
            let vp: Partition<f32, { [N] }> = vv.partition(const_shape![N]);
            let wp: Partition<f32, { [N] }> = wv.partition(const_shape![N]);
            let mut mo: PartitionMut<f32, { [N] }> = unsafe { mv.partition_full_mut(const_shape![N]) };
            let mut vo: PartitionMut<f32, { [N] }> = unsafe { vv.partition_full_mut(const_shape![N]) };
            let mut wo: PartitionMut<f32, { [N] }> = unsafe { wv.partition_full_mut(const_shape![N]) };
            let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
            let b1: Tile<f32, { [N] }> = broadcast_scalar(beta1, const_shape![N]);
            let b2: Tile<f32, { [N] }> = broadcast_scalar(beta2, const_shape![N]);
            let rate: Tile<f32, { [N] }> = broadcast_scalar(lr, const_shape![N]);
            let e: Tile<f32, { [N] }> = broadcast_scalar(eps, const_shape![N]);
            let stay: Tile<f32, { [N] }> = broadcast_scalar(keep, const_shape![N]);
            let g: Tile<f32, { [N] }> = gp.load([pid.0]);
            let mt: Tile<f32, { [N] }> = mp.load([pid.0]);
            let vt: Tile<f32, { [N] }> = vp.load([pid.0]);
            let wt: Tile<f32, { [N] }> = wp.load([pid.0]);
            let g: Tile<f32, { [N] }> = g * clip;
            let mt: Tile<f32, { [N] }> = b1 * mt + (one - b1) * g;
            let vt: Tile<f32, { [N] }> = b2 * vt + (one - b2) * g * g;
            let root: Tile<f32, { [N] }> = sqrt(vt, rounding::NearestEven, ftz::Disabled);
            let wt: Tile<f32, { [N] }> = stay * wt - rate * c1 * true_div(mt, root * c2 + e);
            unsafe { mo.store_unchecked(mt, [pid.0]) };
            unsafe { vo.store_unchecked(vt, [pid.0]) };
            unsafe { wo.store_unchecked(wt, [pid.0]) };
            if half == 1i32 {
                let pv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(p, n) };
                let mut po: PartitionMut<E, { [N] }> = unsafe { pv.partition_full_mut(const_shape![N]) };
                let o: Tile<E, { [N] }> = convert_tile(wt);
                unsafe { po.store_unchecked(o, [pid.0]) };
            }
        }
    }
}
