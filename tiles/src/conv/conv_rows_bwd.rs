//! The reverse of `conv_rows_fwd` in one pass, where no final state has a gradient: with dz the gradient before the activation (z is made again),
//! dx[t] = sum_j weight[j] dz[t + W - 1 - j], and the chunk's parts of dw[j] = sum_t dz[t] x[t - W + 1 + j] and of the bias, tokens in order.
//!
//! A block slides down its BT tokens and the three behind them, whose dz the last rows of dx need. x, dy, dx `[tokens, D]`, weight `[4, D]`, parts f32 `[count, 5, D]`:
//! the four taps (those before the first of W are zero), then the bias. Chunks and grid as in `conv_rows_fwd`.

/// Kernel.
#[cutile::module]
pub mod conv_rows_bwd {
    use crate::tile::strip::strip::*;
    use crate::tile::window::window::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn conv_rows_bwd<E: ElementType, const BD: i32, const BT: i32>(
        x: *mut E,
        weight: *mut E,
        bias: *mut E,
        state: *mut E,
        chunks: *mut i32,
        dy: *mut E,
        dx: *mut E,
        parts: *mut f32,
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
        let one: Tile<f32, { [1, BD] }> = constant(1.0f32, const_shape![1, BD]);
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
        // The last three dz.
        let mut g: Tile<f32, { [1, BD] }> = zero;
        let mut h: Tile<f32, { [1, BD] }> = zero;
        let mut k: Tile<f32, { [1, BD] }> = zero;
        let mut s0: Tile<f32, { [1, BD] }> = zero;
        let mut s1: Tile<f32, { [1, BD] }> = zero;
        let mut s2: Tile<f32, { [1, BD] }> = zero;
        let mut s3: Tile<f32, { [1, BD] }> = zero;
        let mut sb: Tile<f32, { [1, BD] }> = zero;
        let dp: *mut E = unsafe { assume_div_by::<_, 16>(dx) };
        let rows: i32 = unsafe { assume_bounds_lower::<_, 0>(tokens) };
        let wide: i32 = unsafe { assume_div_by::<_, 8>(d) };
        let wide: i32 = unsafe { assume_bounds_lower::<_, 0>(wide) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[rows, wide] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[wide] };
        let dv: Tensor<E, { [-1, -1] }> = unsafe { make_tensor_view(pointer_to_tile(dp), sh, st, new_token_unordered()) };
        let mut to: PartitionMut<E, { [1, BD] }> = unsafe { dv.partition_full_mut(const_shape![1, BD]) };
        let mine: i32 = min(BT, len - from);
        let steps: i32 = mine + 3i32;
        for t in 0i32..steps {
            let r: i32 = start + t;
            let v: Tile<f32, { [1, BD] }> = unsafe { strip_in::<E, BD>(x, tokens, d, r, b, first, end) }.reshape(const_shape![1, BD]);
            // Zero behind the sequence, so that dz is.
            let u: Tile<f32, { [1, BD] }> = unsafe { strip_in::<E, BD>(dy, tokens, d, r, b, first, end) }.reshape(const_shape![1, BD]);
            let mut z: Tile<f32, { [1, BD] }> = u;
            if silu == 1i32 {
                let m: Tile<f32, { [1, BD] }> = shift + w0 * a + w1 * p + w2 * q + w3 * v;
                let s: Tile<f32, { [1, BD] }> = logistic_strip::<BD>(m).reshape(const_shape![1, BD]);
                z = u * s * (one + m * (one - s));
            }
            if t < mine {
                s0 = s0 + z * a;
                s1 = s1 + z * p;
                s2 = s2 + z * q;
                s3 = s3 + z * v;
                sb = sb + z;
            }
            if t >= 3i32 {
                let o: Tile<E, { [1, BD] }> = convert_tile(w3 * g + w2 * h + w1 * k + w0 * z);
                unsafe { to.store_unchecked(o, [r - 3i32, b]) };
            }
            g = h;
            h = k;
            k = z;
            a = p;
            p = q;
            q = v;
        }
        let pp: *mut f32 = unsafe { assume_div_by::<_, 16>(parts) };
        let lines: i32 = unsafe { assume_bounds_lower::<_, 0>(count * 5i32) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[lines, wide] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[wide] };
        let pv: Tensor<f32, { [-1, -1] }> = unsafe { make_tensor_view(pointer_to_tile(pp), sh, st, new_token_unordered()) };
        let mut own: PartitionMut<f32, { [1, BD] }> = unsafe { pv.partition_full_mut(const_shape![1, BD]) };
        let line: i32 = pid.1 * 5i32;
        unsafe { own.store_unchecked(s0, [line, b]) };
        unsafe { own.store_unchecked(s1, [line + 1i32, b]) };
        unsafe { own.store_unchecked(s2, [line + 2i32, b]) };
        unsafe { own.store_unchecked(s3, [line + 3i32, b]) };
        unsafe { own.store_unchecked(sb, [line + 4i32, b]) };
    }
}
