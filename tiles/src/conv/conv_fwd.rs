//! y[t] = act(bias + sum_j weight[j] x[t - W + 1 + j]) per channel; inputs before the first token come from the state, or are zero.
//!
//! x, y `[tokens, D]`, weight `[D, W]`, bias `[D]`, state `[N, D, W]`, chunks as in the module's page. A block is BT tokens by BD channels, N = BT BD
//! lanes. `silu`, `has_bias`, `has_state`: 0 or 1. Grid: `(ceil(D / BD), count, 1)`.

/// Kernel.
#[cutile::module]
pub mod conv_fwd {
    use crate::tile::lane::lane::*;
    use crate::tile::math::math::*;
    use crate::tile::window::window::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn conv_fwd<E: ElementType, const N: i32, const BD: i32>(
        x: *mut E,
        weight: *mut E,
        bias: *mut E,
        state: *mut E,
        chunks: *mut i32,
        y: *mut E,
        count: i32,
        d: i32,
        w: i32,
        has_bias: i32,
        has_state: i32,
        silu: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let first: i32 = unsafe { chunk_at(chunks, count, pid.1, 0i32) };
        let len: i32 = unsafe { chunk_at(chunks, count, pid.1, 1i32) };
        let from: i32 = unsafe { chunk_at(chunks, count, pid.1, 2i32) };
        let seq: i32 = unsafe { chunk_at(chunks, count, pid.1, 3i32) };
        let i: Tile<i32, { [N] }> = lanes::<N>(0i32).reshape(const_shape![N]);
        let wide: Tile<i32, { [N] }> = broadcast_scalar(BD, const_shape![N]);
        let row: Tile<i32, { [N] }> = i / wide;
        let c: Tile<i32, { [N] }> = i - row * wide + broadcast_scalar(pid.0 * BD, const_shape![N]);
        let t: Tile<i32, { [N] }> = row + broadcast_scalar(from, const_shape![N]);
        let mut z: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        if has_bias == 1i32 {
            z = unsafe { tap::<E, N>(bias, c, 0i32, d, 1i32) }.reshape(const_shape![N]);
        }
        for j in 0i32..w {
            let r: Tile<i32, { [N] }> = t + broadcast_scalar(j - w + 1i32, const_shape![N]);
            let v: Tile<f32, { [N] }> =
                unsafe { input::<E, N>(x, state, r, c, first, len, seq, d, w, has_state) }.reshape(const_shape![N]);
            let g: Tile<f32, { [N] }> = unsafe { tap::<E, N>(weight, c, j, d, w) }.reshape(const_shape![N]);
            z = z + g * v;
        }
        if silu == 1i32 {
            let s: Tile<f32, { [N] }> = sigmoid::<N>(z).reshape(const_shape![N]);
            z = z * s;
        }
        let ends: Tile<i32, { [N] }> = broadcast_scalar(len, const_shape![N]);
        let width: Tile<i32, { [N] }> = broadcast_scalar(d, const_shape![N]);
        let zero: Tile<i32, { [N] }> = constant(0i32, const_shape![N]);
        let no: Tile<bool, { [N] }> = lt_tile(zero, zero);
        let m: Tile<bool, { [N] }> = select(lt_tile(c, width), lt_tile(t, ends), no);
        let start: Tile<i32, { [N] }> = broadcast_scalar(first, const_shape![N]);
        let o: Tile<E, { [N] }> = convert_tile(z);
        unsafe { write::<E, N>(y, (start + t) * width + c, o, m) };
    }
}
