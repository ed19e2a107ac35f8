//! `da = dy b silu'(a)`, `db = dy silu(a)`. All `[N, D]`; a, b and their gradients with rows lda, ldb elements apart. Grid as in `swiglu_fwd`.

/// Kernel.
#[cutile::module]
pub mod swiglu_bwd {
    use crate::tile::rows::rows::*;
    use crate::tile::strided::strided::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn swiglu_bwd<E: ElementType, const R: i32, const DT: i32>(
        a: *mut E,
        b: *mut E,
        dy: *mut E,
        da: *mut E,
        db: *mut E,
        n: i32,
        d: i32,
        lda: i32,
        ldb: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let av: Tensor<E, { [-1, -1] }> = unsafe { strided::<E>(a, n, d, lda) };
        let bv: Tensor<E, { [-1, -1] }> = unsafe { strided::<E>(b, n, d, ldb) };
        let dav: Tensor<E, { [-1, -1] }> = unsafe { strided::<E>(da, n, d, lda) };
        let dbv: Tensor<E, { [-1, -1] }> = unsafe { strided::<E>(db, n, d, ldb) };
        let yv: Tensor<E, { [-1, -1] }> = unsafe { strided::<E>(dy, n, d, d) };
        let ap: Partition<E, { [R, DT] }> = av.partition(const_shape![R, DT]);
        let bp: Partition<E, { [R, DT] }> = bv.partition(const_shape![R, DT]);
        let yp: Partition<E, { [R, DT] }> = yv.partition(const_shape![R, DT]);
        let mut dap: PartitionMut<E, { [R, DT] }> = unsafe { dav.partition_full_mut(const_shape![R, DT]) };
        let mut dbp: PartitionMut<E, { [R, DT] }> = unsafe { dbv.partition_full_mut(const_shape![R, DT]) };
        let ta: Tile<f32, { [R, DT] }> = convert_tile(ap.load([pid.1, pid.0]));
        let tb: Tile<f32, { [R, DT] }> = convert_tile(bp.load([pid.1, pid.0]));
        let ty: Tile<f32, { [R, DT] }> = convert_tile(yp.load([pid.1, pid.0]));
        let one: Tile<f32, { [R, DT] }> = constant(1.0f32, const_shape![R, DT]);
        let s: Tile<f32, { [R, DT] }> = sigmoid2::<R, DT>(ta).reshape(const_shape![R, DT]);
        let slope: Tile<f32, { [R, DT] }> = s * (one + ta * (one - s));
        let dab: Tile<E, { [R, DT] }> = convert_tile(ty * tb * slope);
        let dbb: Tile<E, { [R, DT] }> = convert_tile(ty * s * ta);
        unsafe { dap.store_unchecked(dab, [pid.1, pid.0]) };
        unsafe { dbp.store_unchecked(dbb, [pid.1, pid.0]) };
    }
}
