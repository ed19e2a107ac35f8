//! dx[t] = sum_j weight[j] dz[t + W - 1 - j], within the sequence; what the last state's gradient sends to the last W tokens is added.
//!
//! dz f32 `[tokens, D]`, dlast `[N, D, W]`, dx `[tokens, D]`; the rest as in `conv_fwd`. Grid: `(ceil(D / BD), count, 1)`.

/// Kernel.
#[cutile::module]
pub mod conv_dx {
    use crate::tile::lane::lane::*;
    use crate::tile::window::window::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn conv_dx<E: ElementType, const N: i32, const BD: i32>(
        dz: *mut f32,
        weight: *mut E,
        dlast: *mut E,
        chunks: *mut i32,
        dx: *mut E,
        count: i32,
        d: i32,
        w: i32,
        has_last: i32,
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
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let width: Tile<i32, { [N] }> = broadcast_scalar(d, const_shape![N]);
        let start: Tile<i32, { [N] }> = broadcast_scalar(first, const_shape![N]);
        let m: Tile<bool, { [N] }> = unsafe { within::<N>(t, c, len, d) }.reshape(const_shape![N]);
        let mut a: Tile<f32, { [N] }> = none;
        for j in 0i32..w {
            let r: Tile<i32, { [N] }> = t + broadcast_scalar(w - 1i32 - j, const_shape![N]);
            let on: Tile<bool, { [N] }> = unsafe { within::<N>(r, c, len, d) }.reshape(const_shape![N]);
            let u: Tile<f32, { [N] }> = unsafe { read_f32::<N>(dz, (start + r) * width + c, on) }.reshape(const_shape![N]);
            let u: Tile<f32, { [N] }> = select(on, u, none);
            let g: Tile<f32, { [N] }> = unsafe { tap::<E, N>(weight, c, j, d, w) }.reshape(const_shape![N]);
            a = a + g * u;
        }
        if has_last == 1i32 {
            let k: Tile<i32, { [N] }> = t + broadcast_scalar(w - len, const_shape![N]);
            let zero: Tile<i32, { [N] }> = constant(0i32, const_shape![N]);
            let no: Tile<bool, { [N] }> = lt_tile(zero, zero);
            let on: Tile<bool, { [N] }> = select(m, ge_tile(k, zero), no);
            let taps: Tile<i32, { [N] }> = broadcast_scalar(w, const_shape![N]);
            let base: Tile<i32, { [N] }> = broadcast_scalar(seq * d, const_shape![N]);
            let u: Tile<E, { [N] }> = unsafe { read::<E, N>(dlast, (base + c) * taps + k, on) }.reshape(const_shape![N]);
            let u: Tile<f32, { [N] }> = convert_tile(u);
            a = a + select(on, u, none);
        }
        let o: Tile<E, { [N] }> = convert_tile(a);
        unsafe { write::<E, N>(dx, (start + t) * width + c, o, m) };
    }
}
