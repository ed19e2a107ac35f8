//! Views of the arrays that kernels read and write.
//!
//! A partition of such a view reads zeros outside its extents and drops writes there, so ragged tails need no masks.
//! Base addresses are promised to be 16-byte aligned (the pool's allocations are 256-byte aligned): without that
//! promise the assembler uses no TMA. Views carry no order between each other: no two accesses of one block to the same
//! bytes may rely on program order.

/// Views.
#[cutile::module]
pub mod view {
    use cutile::core::*;

    /// `[B, T, H, D]`, contiguous.
    pub unsafe fn rows<E: ElementType, const D: i32>(
        p: *mut E,
        b: i32,
        t: i32,
        h: i32,
    ) -> Tensor<E, { [-1, -1, -1, D] }> {
        let p: *mut E = unsafe { assume_div_by::<_, 16>(p) };
        let b: i32 = unsafe { assume_bounds_lower::<_, 0>(b) };
        let t: i32 = unsafe { assume_bounds_lower::<_, 0>(t) };
        let h: i32 = unsafe { assume_bounds_lower::<_, 0>(h) };
        let sh: Shape<{ [-1, -1, -1, D] }> = Shape::<{ [-1, -1, -1, D] }> { dims: &[b, t, h] };
        let st: Array<{ [-1, -1, D, 1] }> = Array::<{ [-1, -1, D, 1] }> { dims: &[t * h * D, h * D] };
        let x: Tensor<E, { [-1, -1, -1, D] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }

    /// `[B, T, H, D]` whose first token is token `first` of the array: a packed sequence.
    pub unsafe fn rows_from<E: ElementType, const D: i32>(
        p: *mut E,
        first: i32,
        b: i32,
        t: i32,
        h: i32,
    ) -> Tensor<E, { [-1, -1, -1, D] }> {
        let p: *mut E = unsafe { assume_div_by::<_, 16>(p) };
        let b: i32 = unsafe { assume_bounds_lower::<_, 0>(b) };
        let t: i32 = unsafe { assume_bounds_lower::<_, 0>(t) };
        let h: i32 = unsafe { assume_bounds_lower::<_, 0>(h) };
        let base: PointerTile<*mut E, { [] }> = pointer_to_tile(p).offset(first * h * D);
        let sh: Shape<{ [-1, -1, -1, D] }> = Shape::<{ [-1, -1, -1, D] }> { dims: &[b, t, h] };
        let st: Array<{ [-1, -1, D, 1] }> = Array::<{ [-1, -1, D, 1] }> { dims: &[t * h * D, h * D] };
        let x: Tensor<E, { [-1, -1, -1, D] }> =
            unsafe { make_tensor_view(base, sh, st, new_token_unordered()) };
        x
    }

    /// `[B, T, H]` from token `first` on, any `H`.
    pub unsafe fn gates(p: *mut f32, first: i32, b: i32, t: i32, h: i32) -> Tensor<f32, { [-1, -1, -1] }> {
        let b: i32 = unsafe { assume_bounds_lower::<_, 0>(b) };
        let t: i32 = unsafe { assume_bounds_lower::<_, 0>(t) };
        let h: i32 = unsafe { assume_bounds_lower::<_, 0>(h) };
        let base: PointerTile<*mut f32, { [] }> = pointer_to_tile(p).offset(first * h);
        let sh: Shape<{ [-1, -1, -1] }> = Shape::<{ [-1, -1, -1] }> { dims: &[b, t, h] };
        let st: Array<{ [-1, -1, 1] }> = Array::<{ [-1, -1, 1] }> { dims: &[t * h, h] };
        let x: Tensor<f32, { [-1, -1, -1] }> =
            unsafe { make_tensor_view(base, sh, st, new_token_unordered()) };
        x
    }

    /// `[B, T, H]` of any type, any `H`.
    pub unsafe fn heads<E: ElementType>(p: *mut E, b: i32, t: i32, h: i32) -> Tensor<E, { [-1, -1, -1] }> {
        let b: i32 = unsafe { assume_bounds_lower::<_, 0>(b) };
        let t: i32 = unsafe { assume_bounds_lower::<_, 0>(t) };
        let h: i32 = unsafe { assume_bounds_lower::<_, 0>(h) };
        let sh: Shape<{ [-1, -1, -1] }> = Shape::<{ [-1, -1, -1] }> { dims: &[b, t, h] };
        let st: Array<{ [-1, -1, 1] }> = Array::<{ [-1, -1, 1] }> { dims: &[t * h, h] };
        let x: Tensor<E, { [-1, -1, -1] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }

    /// `[n, R, D]`, contiguous: one matrix a chunk and head.
    pub unsafe fn mats<E: ElementType, const R: i32, const D: i32>(
        p: *mut E,
        n: i32,
    ) -> Tensor<E, { [-1, R, D] }> {
        let p: *mut E = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let sh: Shape<{ [-1, R, D] }> = Shape::<{ [-1, R, D] }> { dims: &[n] };
        let st: Array<{ [-1, D, 1] }> = Array::<{ [-1, D, 1] }> { dims: &[R * D] };
        let x: Tensor<E, { [-1, R, D] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }

    /// `[n, R, D]`, contiguous: one f32 matrix a chunk and head. (A concrete type cannot be given to a
    /// generic helper: the front end only passes type parameters on.)
    pub unsafe fn mats_f32<const R: i32, const D: i32>(p: *mut f32, n: i32) -> Tensor<f32, { [-1, R, D] }> {
        let p: *mut f32 = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let sh: Shape<{ [-1, R, D] }> = Shape::<{ [-1, R, D] }> { dims: &[n] };
        let st: Array<{ [-1, D, 1] }> = Array::<{ [-1, D, 1] }> { dims: &[R * D] };
        let x: Tensor<f32, { [-1, R, D] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }

    /// `[n, h, R, D]` of f32, contiguous: R rows a chunk and head.
    pub unsafe fn head_rows<const R: i32, const D: i32>(
        p: *mut f32,
        n: i32,
        h: i32,
    ) -> Tensor<f32, { [-1, -1, R, D] }> {
        let p: *mut f32 = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let h: i32 = unsafe { assume_bounds_lower::<_, 0>(h) };
        let sh: Shape<{ [-1, -1, R, D] }> = Shape::<{ [-1, -1, R, D] }> { dims: &[n, h] };
        let st: Array<{ [-1, -1, D, 1] }> = Array::<{ [-1, -1, D, 1] }> { dims: &[h * R * D, R * D] };
        let x: Tensor<f32, { [-1, -1, R, D] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }

    /// Integer `i` of an array of `n`.
    pub unsafe fn int_at(p: *mut i32, n: i32, i: i32) -> i32 {
        let sh: Shape<{ [-1] }> = Shape::<{ [-1] }> { dims: &[n] };
        let st: Array<{ [1] }> = Array::<{ [1] }> { dims: &[] };
        let x: Tensor<i32, { [-1] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        let xp: Partition<i32, { [1] }> = x.partition(const_shape![1]);
        let v: Tile<i32, { [1] }> = xp.load([i]);
        let v: i32 = tile_to_scalar(v.reshape(const_shape![]));
        v
    }
}
