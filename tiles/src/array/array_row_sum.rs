//! y[r] = sum of row r of x `[rows, n]`, in f32: N lanes run along the row and are added at its end.
//!
//! y `[rows]`. Grid: `(rows, 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod array_row_sum {
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_row_sum<E: ElementType, const N: i32>(x: *mut E, y: *mut E, rows: i32, n: i32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let rows: i32 = unsafe { assume_bounds_lower::<_, 0>(rows) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[rows, n] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[n] };
        let xv: Tensor<E, { [-1, -1] }> = unsafe { make_tensor_view(pointer_to_tile(x), sh, st, new_token_unordered()) };
        let xp: Partition<E, { [1, N] }> = xv.partition(const_shape![1, N]);
        let mut a: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let steps: i32 = ceil_div(n, N);
        for i in 0i32..steps {
            let v: Tile<E, { [1, N] }> = xp.load([pid.0, i]);
            let v: Tile<f32, { [N] }> = convert_tile(v.reshape(const_shape![N]));
            a = a + v;
        }
        let s: Tile<f32, { [] }> = reduce_sum(a, 0i32);
        let s: Tile<f32, { [1] }> = s.reshape(const_shape![1]);
        let w: Tile<E, { [1] }> = convert_tile(s);
        let sh: Shape<{ [-1] }> = Shape::<{ [-1] }> { dims: &[rows] };
        let st: Array<{ [1] }> = Array::<{ [1] }> { dims: &[] };
        let yv: Tensor<E, { [-1] }> = unsafe { make_tensor_view(pointer_to_tile(y), sh, st, new_token_unordered()) };
        let mut yp: PartitionMut<E, { [1] }> = unsafe { yv.partition_full_mut(const_shape![1]) };
        unsafe { yp.store_unchecked(w, [pid.0]) };
    }
}
