//! The state after a sequence's last token: its last W inputs, the older ones from the state before where the sequence is shorter.
//!
//! x `[tokens, D]`, state and last `[N, D, W]`, seqs i32 `[n, 4]`: as a table of chunks with one entry a sequence. Lanes are channels.
//! Grid: `(ceil(D / N), n, 1)`.

/// Kernel.
#[cutile::module]
pub mod conv_state {
    use crate::tile::lane::lane::*;
    use crate::tile::window::window::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn conv_state<E: ElementType, const N: i32>(
        x: *mut E,
        state: *mut E,
        seqs: *mut i32,
        last: *mut E,
        count: i32,
        d: i32,
        w: i32,
        has_state: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let first: i32 = unsafe { chunk_at(seqs, count, pid.1, 0i32) };
        let len: i32 = unsafe { chunk_at(seqs, count, pid.1, 1i32) };
        let seq: i32 = unsafe { chunk_at(seqs, count, pid.1, 3i32) };
        let c: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let width: Tile<i32, { [N] }> = broadcast_scalar(d, const_shape![N]);
        let taps: Tile<i32, { [N] }> = broadcast_scalar(w, const_shape![N]);
        let m: Tile<bool, { [N] }> = lt_tile(c, width);
        let to: Tile<i32, { [N] }> = (broadcast_scalar(seq * d, const_shape![N]) + c) * taps;
        for j in 0i32..w {
            let r: Tile<i32, { [N] }> = broadcast_scalar(len - w + j, const_shape![N]);
            let v: Tile<f32, { [N] }> =
                unsafe { input::<E, N>(x, state, r, c, first, len, seq, d, w, has_state) }.reshape(const_shape![N]);
            let o: Tile<E, { [N] }> = convert_tile(v);
            let at: Tile<i32, { [N] }> = to + broadcast_scalar(j, const_shape![N]);
            unsafe { write::<E, N>(last, at, o, m) };
        }
    }
}
