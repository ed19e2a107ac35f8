//! The gradient of the state before a sequence: column k holds the input W - k tokens before its first token.
//!
//! d[k] = sum_(t < k) weight[k - 1 - t] dz[t], and dlast[k - len] where the sequence is that short. dz f32 `[tokens, D]`, dlast, dstate
//! `[N, D, W]`, seqs as in `conv_state`. Lanes are channels. Grid: `(ceil(D / N), n, 1)`.

/// Kernel.
#[cutile::module]
pub mod conv_dstate {
    use crate::tile::lane::lane::*;
    use crate::tile::window::window::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn conv_dstate<E: ElementType, const N: i32>(
        dz: *mut f32,
        weight: *mut E,
        dlast: *mut E,
        seqs: *mut i32,
        dstate: *mut E,
        count: i32,
        d: i32,
        w: i32,
        has_last: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let first: i32 = unsafe { chunk_at(seqs, count, pid.1, 0i32) };
        let len: i32 = unsafe { chunk_at(seqs, count, pid.1, 1i32) };
        let seq: i32 = unsafe { chunk_at(seqs, count, pid.1, 3i32) };
        let c: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let width: Tile<i32, { [N] }> = broadcast_scalar(d, const_shape![N]);
        let taps: Tile<i32, { [N] }> = broadcast_scalar(w, const_shape![N]);
        let there: Tile<bool, { [N] }> = lt_tile(c, width);
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let at: Tile<i32, { [N] }> = (broadcast_scalar(seq * d, const_shape![N]) + c) * taps;
        for k in 0i32..w {
            let mut a: Tile<f32, { [N] }> = none;
            let steps: i32 = min(k, len);
            for t in 0i32..steps {
                let from: Tile<i32, { [N] }> = broadcast_scalar((first + t) * d, const_shape![N]) + c;
                let u: Tile<f32, { [N] }> = unsafe { read_f32::<N>(dz, from, there) }.reshape(const_shape![N]);
                let u: Tile<f32, { [N] }> = select(there, u, none);
                let g: Tile<f32, { [N] }> = unsafe { tap::<E, N>(weight, c, k - 1i32 - t, d, w) }.reshape(const_shape![N]);
                a = a + g * u;
            }
            if has_last == 1i32 {
                if k >= len {
                    let from: Tile<i32, { [N] }> = at + broadcast_scalar(k - len, const_shape![N]);
                    let u: Tile<E, { [N] }> = unsafe { read::<E, N>(dlast, from, there) }.reshape(const_shape![N]);
                    let u: Tile<f32, { [N] }> = convert_tile(u);
                    a = a + select(there, u, none);
                }
            }
            let o: Tile<E, { [N] }> = convert_tile(a);
            let to: Tile<i32, { [N] }> = at + broadcast_scalar(k, const_shape![N]);
            unsafe { write::<E, N>(dstate, to, o, there) };
        }
    }
}
