//! Dense arrays whose lengths are known to be multiples: without that promise a tail may begin inside of a vector, and every element is read by
//! itself, which keeps a kernel far from the memory's speed.

/// Arrays in whole vectors.
#[cutile::module]
pub mod vectors {
    use cutile::core::*;

    /// `[n]`, n a multiple of V (1: any n).
    pub unsafe fn flat_by<E: ElementType, const V: i32>(p: *mut E, n: i32) -> Tensor<E, { [-1] }> {
        let p: *mut E = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_div_by::<_, V>(n) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let sh: Shape<{ [-1] }> = Shape::<{ [-1] }> { dims: &[n] };
        let st: Array<{ [1] }> = Array::<{ [1] }> { dims: &[] };
        let x: Tensor<E, { [-1] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }

    /// The same of f32.
    pub unsafe fn flat_f32_by<const V: i32>(p: *mut f32, n: i32) -> Tensor<f32, { [-1] }> {
        let p: *mut f32 = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_div_by::<_, V>(n) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let sh: Shape<{ [-1] }> = Shape::<{ [-1] }> { dims: &[n] };
        let st: Array<{ [1] }> = Array::<{ [1] }> { dims: &[] };
        let x: Tensor<f32, { [-1] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }
}
