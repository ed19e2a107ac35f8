//! Gradients of keys and queries from those of the value heads that share them: `y = sum over the group of x`, in the order of the heads, in f32.
//!
//! Shapes: x `[N, G, K]`, y `[N, K]`, N tokens x key heads, G value heads of a key head. Grid: `(ceil(N / R), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod group_sum {
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn group_sum<E: ElementType, const K: i32, const R: i32>(x: *mut E, y: *mut E, n: i32, g: i32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let x: *mut E = unsafe { assume_div_by::<_, 16>(x) };
        let y: *mut E = unsafe { assume_div_by::<_, 16>(y) };
        let n: i32 = unsafe { assume_bounds_lower::<_, 0>(n) };
        let g: i32 = unsafe { assume_bounds_lower::<_, 0>(g) };
        let sx: Shape<{ [-1, -1, K] }> = Shape::<{ [-1, -1, K] }> { dims: &[n, g] };
        let tx: Array<{ [-1, K, 1] }> = Array::<{ [-1, K, 1] }> { dims: &[g * K] };
        let xv: Tensor<E, { [-1, -1, K] }> =
            unsafe { make_tensor_view(pointer_to_tile(x), sx, tx, new_token_unordered()) };
        let sy: Shape<{ [-1, K] }> = Shape::<{ [-1, K] }> { dims: &[n] };
        let ty: Array<{ [K, 1] }> = Array::<{ [K, 1] }> { dims: &[] };
        let yv: Tensor<E, { [-1, K] }> =
            unsafe { make_tensor_view(pointer_to_tile(y), sy, ty, new_token_unordered()) };
        let xp: Partition<E, { [R, 1, K] }> = xv.partition(const_shape![R, 1, K]);
        let mut yp: PartitionMut<E, { [R, K] }> = unsafe { yv.partition_full_mut(const_shape![R, K]) };
        let mut s: Tile<f32, { [R, K] }> = constant(0.0f32, const_shape![R, K]);
        for i in 0i32..g {
            let t: Tile<E, { [R, K] }> = xp.load([pid.0, i, 0i32]).reshape(const_shape![R, K]);
            let f: Tile<f32, { [R, K] }> = convert_tile(t);
            s = s + f;
        }
        let e: Tile<E, { [R, K] }> = convert_tile(s);
        unsafe { yp.store_unchecked(e, [pid.0, 0i32]) };
    }
}
