//! Log-decays of logits: `y = -a ln(1 + e^z)` (code 0) or `bound sigmoid(a z)` (code 1), `z = x + bias`, `a = e^A`.
//!
//! x `[tokens, H, per]`, A f32 `[H]` (absent: 0), bias f32 `[H, per]` (absent: 0), y f32 like x; n = tokens H per, row = H per.
//! Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod decay_gate_fwd {
    use crate::tile::functions::functions::*;
    use crate::tile::lane::lane::*;
    use crate::tile::rows::rows::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn decay_gate_fwd<E: ElementType, const N: i32>(
        x: *mut E,
        a_log: *mut f32,
        bias: *mut f32,
        y: *mut f32,
        n: i32,
        row: i32,
        per: i32,
        code: i32,
        bound: f32,
        has_a: i32,
        has_bias: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let xv: Tensor<E, { [-1] }> = unsafe { flat::<E>(x, n) };
        let yv: Tensor<f32, { [-1] }> = unsafe { flat_f32(y, n) };
        let xp: Partition<E, { [N] }> = xv.partition(const_shape![N]);
        let mut yp: PartitionMut<f32, { [N] }> = unsafe { yv.partition_full_mut(const_shape![N]) };
        let mut z: Tile<f32, { [N] }> = convert_tile(xp.load([pid.0]));
        let i: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(n, const_shape![N]);
        let m: Tile<bool, { [N] }> = lt_tile(i, end);
        let rows: Tile<i32, { [N] }> = broadcast_scalar(row, const_shape![N]);
        let pers: Tile<i32, { [N] }> = broadcast_scalar(per, const_shape![N]);
        let c: Tile<i32, { [N] }> = i - (i / rows) * rows;
        let zero: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let mut a: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        if has_bias == 1i32 {
            let b: Tile<f32, { [N] }> = unsafe { read_f32::<N>(bias, c, m) }.reshape(const_shape![N]);
            z = z + b;
        }
        if has_a == 1i32 {
            let l: Tile<f32, { [N] }> = unsafe { read_f32::<N>(a_log, c / pers, m) }.reshape(const_shape![N]);
            a = exp(l);
        }
        let mut g: Tile<f32, { [N] }> = zero;
        if code == 0i32 {
            let s: Tile<f32, { [N] }> = soft_plus::<N>(z).reshape(const_shape![N]);
            g = zero - a * s;
        }
        if code == 1i32 {
            let s: Tile<f32, { [N] }> = logistic::<N>(a * z).reshape(const_shape![N]);
            let b: Tile<f32, { [N] }> = broadcast_scalar(bound, const_shape![N]);
            g = b * s;
        }
        unsafe { yp.store_unchecked(g, [pid.0]) };
    }
}
