//! Views and arithmetic for kernels that work on rows of a table.

/// Tables.
#[cutile::module]
pub mod rows {
    use cutile::core::*;

    /// `[n, d]`, contiguous, d a multiple of 8.
    pub unsafe fn table<E: ElementType>(p: *mut E, n: i32, d: i32) -> Tensor<E, { [-1, -1] }> {
        let p: *mut E = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let d: i32 = unsafe { assume_div_by::<_, 8>(d) };
        let d: i32 = unsafe { assume_bounds_lower::<_, 0>(d) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[n, d] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[d] };
        let x: Tensor<E, { [-1, -1] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }

    /// `[n, d]` of f32.
    pub unsafe fn table_f32(p: *mut f32, n: i32, d: i32) -> Tensor<f32, { [-1, -1] }> {
        let p: *mut f32 = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let d: i32 = unsafe { assume_div_by::<_, 8>(d) };
        let d: i32 = unsafe { assume_bounds_lower::<_, 0>(d) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[n, d] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[d] };
        let x: Tensor<f32, { [-1, -1] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }

    /// `[n]`.
    pub unsafe fn flat<E: ElementType>(p: *mut E, n: i32) -> Tensor<E, { [-1] }> {
        let p: *mut E = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let sh: Shape<{ [-1] }> = Shape::<{ [-1] }> { dims: &[n] };
        let st: Array<{ [1] }> = Array::<{ [1] }> { dims: &[] };
        let x: Tensor<E, { [-1] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }

    /// `[n]` of f32.
    pub unsafe fn flat_f32(p: *mut f32, n: i32) -> Tensor<f32, { [-1] }> {
        let p: *mut f32 = unsafe { assume_div_by::<_, 16>(p) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let sh: Shape<{ [-1] }> = Shape::<{ [-1] }> { dims: &[n] };
        let st: Array<{ [1] }> = Array::<{ [1] }> { dims: &[] };
        let x: Tensor<f32, { [-1] }> =
            unsafe { make_tensor_view(pointer_to_tile(p), sh, st, new_token_unordered()) };
        x
    }

    /// The whole of `[d]`, in f32, zeros behind it.
    pub unsafe fn vector<E: ElementType, const DT: i32>(p: *mut E, d: i32) -> Tile<f32, { [DT] }> {
        let v: Tensor<E, { [-1] }> = unsafe { flat::<E>(p, d) };
        let q: Partition<E, { [DT] }> = v.partition(const_shape![DT]);
        let x: Tile<f32, { [DT] }> = convert_tile(q.load([0i32]));
        x
    }

    /// True in the first d columns.
    pub fn columns<const R: i32, const DT: i32>(d: i32) -> Tile<bool, { [R, DT] }> {
        let i: Tile<i32, { [DT] }> = iota(const_shape![DT]);
        let i: Tile<i32, { [R, DT] }> = i.reshape(const_shape![1, DT]).broadcast(const_shape![R, DT]);
        let e: Tile<i32, { [R, DT] }> = broadcast_scalar(d, const_shape![R, DT]);
        let m: Tile<bool, { [R, DT] }> = lt_tile(i, e);
        m
    }

    /// `1 / (1 + e^-x)`.
    pub fn sigmoid2<const R: i32, const DT: i32>(x: Tile<f32, { [R, DT] }>) -> Tile<f32, { [R, DT] }> {
        let one: Tile<f32, { [R, DT] }> = constant(1.0f32, const_shape![R, DT]);
        let z: Tile<f32, { [R, DT] }> = constant(0.0f32, const_shape![R, DT]);
        let e: Tile<f32, { [R, DT] }> = exp(z - x);
        let y: Tile<f32, { [R, DT] }> = one / (one + e);
        y
    }
}
