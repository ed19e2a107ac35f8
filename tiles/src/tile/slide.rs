//! A window of rows that slides down a packed sequence: row tiles of BD channels, four taps.

/// Sliding windows.
#[cutile::module]
pub mod slide {
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    /// Channels `b` of rows of `[tokens, d]`, d a multiple of 8: zero where `r` lies outside [low, end).
    pub unsafe fn row_of<E: ElementType, const BD: i32>(x: *mut E, tokens: i32, d: i32, r: i32, b: i32, low: i32, end: i32) -> Tile<f32, { [BD] }> {
        let p: *mut E = unsafe { assume_div_by::<_, 16>(x) };
        let tokens: i32 = unsafe { assume_bounds_lower::<_, 0>(tokens) };
        let d: i32 = unsafe { assume_div_by::<_, 8>(d) };
        let d: i32 = unsafe { assume_bounds_lower::<_, 0>(d) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[tokens, d] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[d] };
        let v: Tensor<E, { [-1, -1] }> = unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        let q: Partition<E, { [1, BD] }> = v.partition(const_shape![1, BD]);
        // Inside the array whatever r is; the mask decides.
        let at: i32 = max(low, min(r, end - 1i32));
        let t: Tile<E, { [1, BD] }> = q.load([at, b]);
        let t: Tile<f32, { [BD] }> = convert_tile(t.reshape(const_shape![BD]));
        let mut f: f32 = 1.0f32;
        if r < low {
            f = 0.0f32;
        }
        if r >= end {
            f = 0.0f32;
        }
        let f: Tile<f32, { [BD] }> = broadcast_scalar(f, const_shape![BD]);
        let z: Tile<f32, { [BD] }> = constant(0.0f32, const_shape![BD]);
        let there: Tile<bool, { [BD] }> = gt_tile(f, z);
        let y: Tile<f32, { [BD] }> = select(there, t, z);
        y
    }

    /// Tap `j` of four of every channel of weight `[d, w]`, w <= 4: those before the first are zero.
    pub unsafe fn tap_of<E: ElementType, const BD: i32>(weight: *mut E, c: Tile<i32, { [BD] }>, d: i32, w: i32, j: i32) -> Tile<f32, { [BD] }> {
        let k: i32 = j - 4i32 + w;
        let z: Tile<i32, { [BD] }> = constant(0i32, const_shape![BD]);
        let zero: Tile<f32, { [BD] }> = constant(0.0f32, const_shape![BD]);
        let no: Tile<bool, { [BD] }> = lt_tile(z, z);
        let width: Tile<i32, { [BD] }> = broadcast_scalar(d, const_shape![BD]);
        let tap: Tile<i32, { [BD] }> = broadcast_scalar(k, const_shape![BD]);
        let m: Tile<bool, { [BD] }> = select(ge_tile(tap, z), lt_tile(c, width), no);
        let taps: Tile<i32, { [BD] }> = broadcast_scalar(w, const_shape![BD]);
        let v: Tile<E, { [BD] }> = unsafe { read::<E, BD>(weight, c * taps + tap, m) }.reshape(const_shape![BD]);
        let v: Tile<f32, { [BD] }> = convert_tile(v);
        let y: Tile<f32, { [BD] }> = select(m, v, zero);
        y
    }

    /// What stands `-r` rows before the first token: from the state `[n, d, w]`, newest last; zero before it.
    pub unsafe fn before<E: ElementType, const BD: i32>(
        state: *mut E,
        c: Tile<i32, { [BD] }>,
        seq: i32,
        d: i32,
        w: i32,
        r: i32,
        has_state: i32,
    ) -> Tile<f32, { [BD] }> {
        let z: Tile<i32, { [BD] }> = constant(0i32, const_shape![BD]);
        let zero: Tile<f32, { [BD] }> = constant(0.0f32, const_shape![BD]);
        let mut y: Tile<f32, { [BD] }> = zero;
        if has_state == 1i32 {
            let no: Tile<bool, { [BD] }> = lt_tile(z, z);
            let width: Tile<i32, { [BD] }> = broadcast_scalar(d, const_shape![BD]);
            let place: Tile<i32, { [BD] }> = broadcast_scalar(w + r, const_shape![BD]);
            let m: Tile<bool, { [BD] }> = select(ge_tile(place, z), lt_tile(c, width), no);
            let row: Tile<i32, { [BD] }> = broadcast_scalar(seq * d, const_shape![BD]);
            let taps: Tile<i32, { [BD] }> = broadcast_scalar(w, const_shape![BD]);
            let v: Tile<E, { [BD] }> = unsafe { read::<E, BD>(state, (row + c) * taps + place, m) }.reshape(const_shape![BD]);
            let v: Tile<f32, { [BD] }> = convert_tile(v);
            y = select(m, v, zero);
        }
        y
    }
}
