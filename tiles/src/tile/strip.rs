//! Rows of BD channels that a block slides over, as tiles `[1, BD]`: a tile that changes its shape passes through shared memory at every row.

/// Strips.
#[cutile::module]
pub mod strip {
    use cutile::core::*;

    /// Channels `b` of row `r` of `[n, d]`, d a multiple of 8.
    pub unsafe fn strip_of<E: ElementType, const BD: i32>(x: *mut E, n: i32, d: i32, r: i32, b: i32) -> Tile<f32, { [1, BD] }> {
        let p: *mut E = unsafe { assume_div_by::<_, 16>(x) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let d: i32 = unsafe { assume_div_by::<_, 8>(d) };
        let d: i32 = unsafe { assume_bounds_lower::<_, 0>(d) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[n, d] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[d] };
        let v: Tensor<E, { [-1, -1] }> = unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        let q: Partition<E, { [1, BD] }> = v.partition(const_shape![1, BD]);
        let t: Tile<E, { [1, BD] }> = load_view_tko(&q, [r, b], ordering::Weak, scope::TileBlock, None, tma::Disabled);
        let y: Tile<f32, { [1, BD] }> = convert_tile(t);
        y
    }

    /// The same, zero where `r` lies outside [low, end).
    pub unsafe fn strip_in<E: ElementType, const BD: i32>(
        x: *mut E,
        n: i32,
        d: i32,
        r: i32,
        b: i32,
        low: i32,
        end: i32,
    ) -> Tile<f32, { [1, BD] }> {
        // Inside the array whatever r is; the factor decides.
        let at: i32 = max(low, min(r, end - 1i32));
        let t: Tile<f32, { [1, BD] }> = unsafe { strip_of::<E, BD>(x, n, d, at, b) }.reshape(const_shape![1, BD]);
        let z: Tile<f32, { [1, BD] }> = constant(0.0f32, const_shape![1, BD]);
        let row: Tile<i32, { [1, BD] }> = broadcast_scalar(r, const_shape![1, BD]);
        let place: Tile<i32, { [1, BD] }> = broadcast_scalar(at, const_shape![1, BD]);
        let y: Tile<f32, { [1, BD] }> = select(eq_tile(row, place), t, z);
        y
    }

    /// What stands `-r` rows before the first token of sequence `seq`: from the state `[n, w, d]`, newest last; zero before it.
    pub unsafe fn strip_before<E: ElementType, const BD: i32>(
        state: *mut E,
        seq: i32,
        d: i32,
        w: i32,
        r: i32,
        b: i32,
        has_state: i32,
    ) -> Tile<f32, { [1, BD] }> {
        let mut y: Tile<f32, { [1, BD] }> = constant(0.0f32, const_shape![1, BD]);
        if has_state == 1i32 {
            if w + r >= 0i32 {
                y = unsafe { strip_of::<E, BD>(state, seq * w + w, d, seq * w + w + r, b) }.reshape(const_shape![1, BD]);
            }
        }
        y
    }

    /// `1 / (1 + e^-x)`, as `functions::logistic`.
    pub fn logistic_strip<const BD: i32>(x: Tile<f32, { [1, BD] }>) -> Tile<f32, { [1, BD] }> {
        let one: Tile<f32, { [1, BD] }> = constant(1.0f32, const_shape![1, BD]);
        let z: Tile<f32, { [1, BD] }> = constant(0.0f32, const_shape![1, BD]);
        let c: Tile<f32, { [1, BD] }> = constant(1.4426950409f32, const_shape![1, BD]);
        let e: Tile<f32, { [1, BD] }> = exp2((z - x) * c, ftz::Enabled);
        let y: Tile<f32, { [1, BD] }> = divf(one, one + e, rounding::Approx, ftz::Enabled);
        y
    }
}
