//! `conv_fwd` for at most four taps and channels in multiples of 8: a block slides down BT tokens of BD channels and reads every input once.
//!
//! x, y `[tokens, D]`, weight `[D, W]`, bias `[D]`, state `[N, D, W]`; chunks i32 `[count, 4]`: (first token of the sequence, its length, first token of
//! the chunk in it, sequence). `silu`, `has_bias`, `has_state`: 0 or 1. Grid: `(ceil(D / BD), count, 1)`.

/// Kernel.
#[cutile::module]
pub mod conv_rows_fwd {
    use crate::tile::functions::functions::*;
    use crate::tile::lane::lane::*;
    use crate::tile::slide::slide::*;
    use crate::tile::window::window::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn conv_rows_fwd<E: ElementType, const BD: i32, const BT: i32>(
        x: *mut E,
        weight: *mut E,
        bias: *mut E,
        state: *mut E,
        chunks: *mut i32,
        y: *mut E,
        tokens: i32,
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
        let b: i32 = pid.0;
        let end: i32 = first + len;
        let start: i32 = first + from;
        let c: Tile<i32, { [BD] }> = lanes::<BD>(b).reshape(const_shape![BD]);
        let zero: Tile<f32, { [BD] }> = constant(0.0f32, const_shape![BD]);
        let w0: Tile<f32, { [BD] }> = unsafe { tap_of::<E, BD>(weight, c, d, w, 0i32) }.reshape(const_shape![BD]);
        let w1: Tile<f32, { [BD] }> = unsafe { tap_of::<E, BD>(weight, c, d, w, 1i32) }.reshape(const_shape![BD]);
        let w2: Tile<f32, { [BD] }> = unsafe { tap_of::<E, BD>(weight, c, d, w, 2i32) }.reshape(const_shape![BD]);
        let w3: Tile<f32, { [BD] }> = unsafe { tap_of::<E, BD>(weight, c, d, w, 3i32) }.reshape(const_shape![BD]);
        let mut shift: Tile<f32, { [BD] }> = zero;
        if has_bias == 1i32 {
            let one: i32 = 1i32;
            shift = unsafe { tap_of::<E, BD>(bias, c, d, one, 3i32) }.reshape(const_shape![BD]);
        }
        // Before the first token stands the state.
        let mut has: i32 = has_state;
        if from > 0i32 {
            has = 0i32;
        }
        let mut a: Tile<f32, { [BD] }> = unsafe { before::<E, BD>(state, c, seq, d, w, -3i32, has) }.reshape(const_shape![BD]);
        let mut p: Tile<f32, { [BD] }> = unsafe { before::<E, BD>(state, c, seq, d, w, -2i32, has) }.reshape(const_shape![BD]);
        let mut q: Tile<f32, { [BD] }> = unsafe { before::<E, BD>(state, c, seq, d, w, -1i32, has) }.reshape(const_shape![BD]);
        if from > 0i32 {
            a = unsafe { row_of::<E, BD>(x, tokens, d, start - 3i32, b, first, end) }.reshape(const_shape![BD]);
            p = unsafe { row_of::<E, BD>(x, tokens, d, start - 2i32, b, first, end) }.reshape(const_shape![BD]);
            q = unsafe { row_of::<E, BD>(x, tokens, d, start - 1i32, b, first, end) }.reshape(const_shape![BD]);
        }
        let yp: *mut E = unsafe { assume_div_by::<_, 16>(y) };
        let rows: i32 = unsafe { assume_bounds_lower::<_, 0>(tokens) };
        let wide: i32 = unsafe { assume_div_by::<_, 8>(d) };
        let wide: i32 = unsafe { assume_bounds_lower::<_, 0>(wide) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[rows, wide] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[wide] };
        let yv: Tensor<E, { [-1, -1] }> = unsafe { make_tensor_view(pointer_to_tile(yp), sh, st, new_token_unordered()) };
        let mut to: PartitionMut<E, { [1, BD] }> = unsafe { yv.partition_full_mut(const_shape![1, BD]) };
        let steps: i32 = min(BT, len - from);
        for t in 0i32..steps {
            let v: Tile<f32, { [BD] }> = unsafe { row_of::<E, BD>(x, tokens, d, start + t, b, first, end) }.reshape(const_shape![BD]);
            let mut z: Tile<f32, { [BD] }> = shift + w0 * a + w1 * p + w2 * q + w3 * v;
            if silu == 1i32 {
                let s: Tile<f32, { [BD] }> = logistic::<BD>(z).reshape(const_shape![BD]);
                z = z * s;
            }
            let o: Tile<E, { [BD] }> = convert_tile(z);
            unsafe { to.store_unchecked(o.reshape(const_shape![1, BD]), [start + t, b]) };
            a = p;
            p = q;
            q = v;
        }
    }
}
