//! y[j] = sum of rows j step .. (j + 1) step of x `[n, cols]`, added in order in f32.
//!
//! y `[ceil(n / step), cols]`. Grid: `(ceil(cols / N), ceil(n / step), 1)`.

/// Kernel.
#[cutile::module]
pub mod array_column_sum {
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_column_sum<E: ElementType, O: ElementType, const N: i32>(x: *mut E, y: *mut O, n: i32, cols: i32, step: i32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let cols: i32 = unsafe { assume_bounds_lower::<_, 0>(cols) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[n, cols] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[cols] };
        let xv: Tensor<E, { [-1, -1] }> = unsafe { make_tensor_view(pointer_to_tile(x), sh, st, new_token_unordered()) };
        let xp: Partition<E, { [1, N] }> = xv.partition(const_shape![1, N]);
        let mut a: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        for i in 0i32..step {
            let v: Tile<E, { [1, N] }> = xp.load([pid.1 * step + i, pid.0]);
            let v: Tile<f32, { [N] }> = convert_tile(v.reshape(const_shape![N]));
            a = a + v;
        }
        let w: Tile<O, { [N] }> = convert_tile(a);
        let rows: i32 = ceil_div(n, step);
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[rows, cols] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[cols] };
        let yv: Tensor<O, { [-1, -1] }> = unsafe { make_tensor_view(pointer_to_tile(y), sh, st, new_token_unordered()) };
        let mut yp: PartitionMut<O, { [1, N] }> = unsafe { yv.partition_full_mut(const_shape![1, N]) };
        unsafe { yp.store_unchecked(w.reshape(const_shape![1, N]), [pid.1, pid.0]) };
    }
}
