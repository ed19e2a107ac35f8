//! The reverse of `decay_gate_fwd`: dx of every logit, and the sums of dx and of the gradient of A down `step` tokens, added in order.
//!
//! x, dx `[tokens, H, per]`, dy f32 alike, A f32 `[H]`, bias f32 `[H, per]`; parts f32 `[ceil(tokens / step), 2, H per]`: of bias, of A
//! (each channel its own: the host adds those of a head). Lanes are channels. Grid: `(ceil(H per / N), ceil(tokens / step), 1)`.

/// Kernel.
#[cutile::module]
pub mod decay_gate_bwd {
    use crate::tile::functions::functions::*;
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn decay_gate_bwd<E: ElementType, const N: i32>(
        x: *mut E,
        a_log: *mut f32,
        bias: *mut f32,
        dy: *mut f32,
        dx: *mut E,
        parts: *mut f32,
        tokens: i32,
        row: i32,
        per: i32,
        step: i32,
        code: i32,
        bound: f32,
        has_a: i32,
        has_bias: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let c: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let rows: Tile<i32, { [N] }> = broadcast_scalar(row, const_shape![N]);
        let pers: Tile<i32, { [N] }> = broadcast_scalar(per, const_shape![N]);
        let m: Tile<bool, { [N] }> = lt_tile(c, rows);
        let zero: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let mut b: Tile<f32, { [N] }> = zero;
        let mut a: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        if has_bias == 1i32 {
            b = unsafe { read_f32::<N>(bias, c, m) }.reshape(const_shape![N]);
        }
        if has_a == 1i32 {
            let l: Tile<f32, { [N] }> = unsafe { read_f32::<N>(a_log, c / pers, m) }.reshape(const_shape![N]);
            a = exp(l);
        }
        let low: Tile<f32, { [N] }> = broadcast_scalar(bound, const_shape![N]);
        let mut sb: Tile<f32, { [N] }> = zero;
        let mut sa: Tile<f32, { [N] }> = zero;
        let from: i32 = pid.1 * step;
        let steps: i32 = min(step, tokens - from);
        for k in 0i32..steps {
            let at: Tile<i32, { [N] }> = broadcast_scalar((from + k) * row, const_shape![N]) + c;
            let tx: Tile<E, { [N] }> = unsafe { read::<E, N>(x, at, m) }.reshape(const_shape![N]);
            let tx: Tile<f32, { [N] }> = convert_tile(tx);
            let z: Tile<f32, { [N] }> = tx + b;
            let d: Tile<f32, { [N] }> = unsafe { read_f32::<N>(dy, at, m) }.reshape(const_shape![N]);
            let mut by_z: Tile<f32, { [N] }> = zero;
            let mut by_a: Tile<f32, { [N] }> = zero;
            if code == 0i32 {
                let s: Tile<f32, { [N] }> = logistic::<N>(z).reshape(const_shape![N]);
                let p: Tile<f32, { [N] }> = soft_plus::<N>(z).reshape(const_shape![N]);
                by_z = zero - a * s;
                by_a = zero - a * p;
            }
            if code == 1i32 {
                let s: Tile<f32, { [N] }> = logistic::<N>(a * z).reshape(const_shape![N]);
                // 1 - s as sigmoid(-az): no cancellation where the gate saturates.
                let r: Tile<f32, { [N] }> = logistic::<N>(zero - a * z).reshape(const_shape![N]);
                by_z = low * s * r * a;
                by_a = by_z * z;
            }
            let g: Tile<f32, { [N] }> = select(m, d * by_z, zero);
            sb = sb + g;
            sa = sa + select(m, d * by_a, zero);
            let o: Tile<E, { [N] }> = convert_tile(g);
            unsafe { write::<E, N>(dx, at, o, m) };
        }
        let first: Tile<i32, { [N] }> = broadcast_scalar(pid.1 * 2i32 * row, const_shape![N]) + c;
        unsafe { write_f32::<N>(parts, first, sb, m) };
        unsafe { write_f32::<N>(parts, first + rows, sa, m) };
    }
}
