//! Arrays that a block chooses among: their addresses as numbers.

/// Addresses.
#[cutile::module]
pub mod thin {
    use cutile::core::*;

    /// An array's address.
    pub fn address<E: ElementType>(p: *mut E) -> Tile<i64, { [] }> {
        let p: PointerTile<*mut E, { [] }> = pointer_to_tile(p);
        let p: PointerTile<*mut i64, { [] }> = ptr_to_ptr(p);
        let a: Tile<i64, { [] }> = ptr_to_int(p);
        a
    }

    /// `[n, d]` at an address that is a multiple of 16, contiguous, d a multiple of 8.
    pub unsafe fn table_at<E: ElementType>(a: Tile<i64, { [] }>, n: i32, d: i32) -> Tensor<E, { [-1, -1] }> {
        let p: PointerTile<*mut E, { [] }> = int_to_ptr(a);
        let p: PointerTile<*mut E, { [] }> = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let d: i32 = unsafe { assume_div_by::<_, 8>(d) };
        let d: i32 = unsafe { assume_bounds_lower::<_, 0>(d) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[n, d] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[d] };
        let x: Tensor<E, { [-1, -1] }> = unsafe { make_tensor_view(p, sh, st, new_token_unordered()) };
        x
    }

    /// `[n, d]` at an address, contiguous, any d.
    pub unsafe fn any_table_at<E: ElementType>(a: Tile<i64, { [] }>, n: i32, d: i32) -> Tensor<E, { [-1, -1] }> {
        let p: PointerTile<*mut E, { [] }> = int_to_ptr(a);
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let d: i32 = unsafe { assume_bounds_lower::<_, 0>(d) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[n, d] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[d] };
        let x: Tensor<E, { [-1, -1] }> = unsafe { make_tensor_view(p, sh, st, new_token_unordered()) };
        x
    }
}
