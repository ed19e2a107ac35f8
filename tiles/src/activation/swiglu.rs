//! `y = silu(a) b`. a, b `[N, D]` with rows lda and ldb elements apart (both halves of one projection, or two arrays); y `[N, D]`. Grid:
//! `(ceil(D / DT), ceil(N / R), 1)`.

/// Kernel.
#[cutile::module]
pub mod swiglu {
    use crate::tile::rows::rows::*;
    use crate::tile::strided::strided::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn swiglu_fwd<E: ElementType, const R: i32, const DT: i32>(
        a: *mut E,
        b: *mut E,
        y: *mut E,
        n: i32,
        d: i32,
        lda: i32,
        ldb: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let av: Tensor<E, { [-1, -1] }> = unsafe { strided::<E>(a, n, d, lda) };
        let bv: Tensor<E, { [-1, -1] }> = unsafe { strided::<E>(b, n, d, ldb) };
        let yv: Tensor<E, { [-1, -1] }> = unsafe { strided::<E>(y, n, d, d) };
        let ap: Partition<E, { [R, DT] }> = av.partition(const_shape![R, DT]);
        let bp: Partition<E, { [R, DT] }> = bv.partition(const_shape![R, DT]);
        let mut yp: PartitionMut<E, { [R, DT] }> = unsafe { yv.partition_full_mut(const_shape![R, DT]) };
        let ta: Tile<f32, { [R, DT] }> = convert_tile(ap.load([pid.1, pid.0]));
        let tb: Tile<f32, { [R, DT] }> = convert_tile(bp.load([pid.1, pid.0]));
        let s: Tile<f32, { [R, DT] }> = sigmoid2::<R, DT>(ta).reshape(const_shape![R, DT]);
        let yb: Tile<E, { [R, DT] }> = convert_tile(s * ta * tb);
        unsafe { yp.store_unchecked(yb, [pid.1, pid.0]) };
    }
}
