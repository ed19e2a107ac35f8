//! The gradient before the activation, dz = dy act'(z), with z computed again as in `conv_fwd`.
//!
//! x, dy `[tokens, D]`, dz f32 `[tokens, D]`; the rest and the grid as in `conv_fwd`. Grid: `(ceil(D / BD), count, 1)`.

/// Kernel.
#[cutile::module]
pub mod conv_dz {
    use crate::tile::lane::lane::*;
    use crate::tile::math::math::*;
    use crate::tile::window::window::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn conv_dz<E: ElementType, const N: i32, const BD: i32>(
        x: *mut E,
        weight: *mut E,
        bias: *mut E,
        state: *mut E,
        chunks: *mut i32,
        dy: *mut E,
        dz: *mut f32,
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
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let m: Tile<bool, { [N] }> = unsafe { within::<N>(t, c, len, d) }.reshape(const_shape![N]);
        let start: Tile<i32, { [N] }> = broadcast_scalar(first, const_shape![N]);
        let width: Tile<i32, { [N] }> = broadcast_scalar(d, const_shape![N]);
        let at: Tile<i32, { [N] }> = (start + t) * width + c;
        let o: Tile<E, { [N] }> = unsafe { read::<E, N>(dy, at, m) }.reshape(const_shape![N]);
        let o: Tile<f32, { [N] }> = convert_tile(o);
        let mut u: Tile<f32, { [N] }> = select(m, o, none);
        if silu == 1i32 {
            let mut z: Tile<f32, { [N] }> = none;
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
            let s: Tile<f32, { [N] }> = sigmoid::<N>(z).reshape(const_shape![N]);
            u = u * s * (one + z * (one - s));
        }
        unsafe { write_f32::<N>(dz, at, u, m) };
    }
}
