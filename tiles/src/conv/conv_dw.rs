//! Each chunk's part of the gradients of weight and bias: dw[j] = sum_t dz[t] x[t - W + 1 + j], db = sum_t dz[t], tokens in order.
//!
//! x `[tokens, D]`, dz f32 `[tokens, D]`, parts f32 `[count, W + 1, D]` (the bias last). Lanes are channels; BT is the chunk's length.
//! Grid: `(ceil(D / N), count, W + 1)`.

/// Kernel.
#[cutile::module]
pub mod conv_dw {
    use crate::tile::lane::lane::*;
    use crate::tile::window::window::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn conv_dw<E: ElementType, const N: i32, const BT: i32>(
        x: *mut E,
        state: *mut E,
        chunks: *mut i32,
        dz: *mut f32,
        parts: *mut f32,
        count: i32,
        d: i32,
        w: i32,
        has_state: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let first: i32 = unsafe { chunk_at(chunks, count, pid.1, 0i32) };
        let len: i32 = unsafe { chunk_at(chunks, count, pid.1, 1i32) };
        let from: i32 = unsafe { chunk_at(chunks, count, pid.1, 2i32) };
        let seq: i32 = unsafe { chunk_at(chunks, count, pid.1, 3i32) };
        let c: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let width: Tile<i32, { [N] }> = broadcast_scalar(d, const_shape![N]);
        let there: Tile<bool, { [N] }> = lt_tile(c, width);
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let mut a: Tile<f32, { [N] }> = none;
        let steps: i32 = min(BT, len - from);
        for k in 0i32..steps {
            let t: i32 = from + k;
            let at: Tile<i32, { [N] }> = broadcast_scalar((first + t) * d, const_shape![N]) + c;
            let u: Tile<f32, { [N] }> = unsafe { read_f32::<N>(dz, at, there) }.reshape(const_shape![N]);
            let u: Tile<f32, { [N] }> = select(there, u, none);
            let mut v: Tile<f32, { [N] }> = one;
            if pid.2 < w {
                let r: Tile<i32, { [N] }> = broadcast_scalar(t + pid.2 - w + 1i32, const_shape![N]);
                v = unsafe { input::<E, N>(x, state, r, c, first, len, seq, d, w, has_state) }.reshape(const_shape![N]);
            }
            a = a + u * v;
        }
        let to: Tile<i32, { [N] }> = broadcast_scalar((pid.1 * (w + 1i32) + pid.2) * d, const_shape![N]) + c;
        unsafe { write_f32::<N>(parts, to, a, there) };
    }
}
