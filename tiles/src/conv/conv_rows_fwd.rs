//! `conv_fwd` for at most four taps and channels in multiples of 8: a block slides down BT tokens of BD channels and reads every input once.
//!
//! x, y `[tokens, D]`, weight `[4, D]`: one row a tap, zeros before the first of W, bias `[D]`, state `[N, W, D]`; chunks i32 `[count, 4]`: (first token of the sequence, its length, first token of
//! the chunk in it, sequence). `silu`, `has_bias`, `has_state`: 0 or 1. Grid: `(ceil(D / BD), count, 1)`.

/// Kernel.
#[cutile::module]
pub mod conv_rows_fwd {
    use crate::tile::strip::strip::*;
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
        let zero: Tile<f32, { [1, BD] }> = constant(0.0f32, const_shape![1, BD]);
        let w0: Tile<f32, { [1, BD] }> = unsafe { strip_of::<E, BD>(weight, 4i32, d, 0i32, b) }.reshape(const_shape![1, BD]);
        let w1: Tile<f32, { [1, BD] }> = unsafe { strip_of::<E, BD>(weight, 4i32, d, 1i32, b) }.reshape(const_shape![1, BD]);
        let w2: Tile<f32, { [1, BD] }> = unsafe { strip_of::<E, BD>(weight, 4i32, d, 2i32, b) }.reshape(const_shape![1, BD]);
        let w3: Tile<f32, { [1, BD] }> = unsafe { strip_of::<E, BD>(weight, 4i32, d, 3i32, b) }.reshape(const_shape![1, BD]);
        let mut shift: Tile<f32, { [1, BD] }> = zero;
        if has_bias == 1i32 {
            shift = unsafe { strip_of::<E, BD>(bias, 1i32, d, 0i32, b) }.reshape(const_shape![1, BD]);
        }
        // Before the first token stands the state.
        let mut has: i32 = has_state;
        if from > 0i32 {
            has = 0i32;
        }
        let mut a: Tile<f32, { [1, BD] }> = unsafe { strip_before::<E, BD>(state, seq, d, w, -3i32, b, has) }.reshape(const_shape![1, BD]);
        let mut p: Tile<f32, { [1, BD] }> = unsafe { strip_before::<E, BD>(state, seq, d, w, -2i32, b, has) }.reshape(const_shape![1, BD]);
        let mut q: Tile<f32, { [1, BD] }> = unsafe { strip_before::<E, BD>(state, seq, d, w, -1i32, b, has) }.reshape(const_shape![1, BD]);
        if from > 0i32 {
            a = unsafe { strip_in::<E, BD>(x, tokens, d, start - 3i32, b, first, end) }.reshape(const_shape![1, BD]);
            p = unsafe { strip_in::<E, BD>(x, tokens, d, start - 2i32, b, first, end) }.reshape(const_shape![1, BD]);
            q = unsafe { strip_in::<E, BD>(x, tokens, d, start - 1i32, b, first, end) }.reshape(const_shape![1, BD]);
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
        // Four rows at a time, so that they are under way together: a row's way from memory is longer than a token's arithmetic.
        let rounds: i32 = ceil_div(steps, 4i32);
        for u in 0i32..rounds {
            let t: i32 = start + u * 4i32;
            let v0: Tile<f32, { [1, BD] }> = unsafe { strip_in::<E, BD>(x, tokens, d, t, b, first, end) }.reshape(const_shape![1, BD]);
            let v1: Tile<f32, { [1, BD] }> = unsafe { strip_in::<E, BD>(x, tokens, d, t + 1i32, b, first, end) }.reshape(const_shape![1, BD]);
            let v2: Tile<f32, { [1, BD] }> = unsafe { strip_in::<E, BD>(x, tokens, d, t + 2i32, b, first, end) }.reshape(const_shape![1, BD]);
            let v3: Tile<f32, { [1, BD] }> = unsafe { strip_in::<E, BD>(x, tokens, d, t + 3i32, b, first, end) }.reshape(const_shape![1, BD]);
            let z0: Tile<f32, { [1, BD] }> = finished::<BD>(shift + w0 * a + w1 * p + w2 * q + w3 * v0, silu).reshape(const_shape![1, BD]);
            let z1: Tile<f32, { [1, BD] }> = finished::<BD>(shift + w0 * p + w1 * q + w2 * v0 + w3 * v1, silu).reshape(const_shape![1, BD]);
            let z2: Tile<f32, { [1, BD] }> = finished::<BD>(shift + w0 * q + w1 * v0 + w2 * v1 + w3 * v2, silu).reshape(const_shape![1, BD]);
            let z3: Tile<f32, { [1, BD] }> = finished::<BD>(shift + w0 * v0 + w1 * v1 + w2 * v2 + w3 * v3, silu).reshape(const_shape![1, BD]);
            let left: i32 = steps - u * 4i32;
            let o: Tile<E, { [1, BD] }> = convert_tile(z0);
            unsafe { to.store_unchecked(o, [t, b]) };
            if left > 1i32 {
                let o: Tile<E, { [1, BD] }> = convert_tile(z1);
                unsafe { to.store_unchecked(o, [t + 1i32, b]) };
            }
            if left > 2i32 {
                let o: Tile<E, { [1, BD] }> = convert_tile(z2);
                unsafe { to.store_unchecked(o, [t + 2i32, b]) };
            }
            if left > 3i32 {
                let o: Tile<E, { [1, BD] }> = convert_tile(z3);
                unsafe { to.store_unchecked(o, [t + 3i32, b]) };
            }
            a = v1;
            p = v2;
            q = v3;
        }
    }

    /// The activation, where there is one.
    fn finished<const BD: i32>(z: Tile<f32, { [1, BD] }>, silu: i32) -> Tile<f32, { [1, BD] }> {
        let mut y: Tile<f32, { [1, BD] }> = z;
        if silu == 1i32 {
            let s: Tile<f32, { [1, BD] }> = logistic_strip::<BD>(z).reshape(const_shape![1, BD]);
            y = z * s;
        }
        y
    }
}
