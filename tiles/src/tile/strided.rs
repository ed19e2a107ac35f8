//! A table whose rows lie apart.

/// Strided tables.
#[cutile::module]
pub mod strided {
    use cutile::core::*;

    /// `[n, d]`, rows ld elements apart; d and ld multiples of 8.
    pub unsafe fn strided<E: ElementType>(p: *mut E, n: i32, d: i32, ld: i32) -> Tensor<E, { [-1, -1] }> {
        let p: *mut E = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let d: i32 = unsafe { assume_bounds_lower::<_, 0>(d) };
        let ld: i32 = unsafe { assume_div_by::<_, 8>(ld) };
        let ld: i32 = unsafe { assume_bounds_lower::<_, 0>(ld) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[n, d] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[ld] };
        let x: Tensor<E, { [-1, -1] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }
}
