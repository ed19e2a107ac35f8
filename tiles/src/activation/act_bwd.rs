//! `dx[i] = f'(x[i]) dy[i]`, f as in `act_fwd`. All `[n]`, n a multiple of V. Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod act_bwd {
    use crate::tile::functions::functions::*;
    use crate::tile::vectors::vectors::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn act_bwd<E: ElementType, const N: i32, const V: i32>(x: *mut E, dy: *mut E, dx: *mut E, n: i32, code: i32, p: f32, q: f32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let xv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(x, n) };
        let yv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(dy, n) };
        let dv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(dx, n) };
        let xp: Partition<E, { [N] }> = xv.partition(const_shape![N]);
        let yp: Partition<E, { [N] }> = yv.partition(const_shape![N]);
        let mut dp: PartitionMut<E, { [N] }> = unsafe { dv.partition_full_mut(const_shape![N]) };
        let tx: Tile<f32, { [N] }> = convert_tile(xp.load([pid.0]));
        let ty: Tile<f32, { [N] }> = convert_tile(yp.load([pid.0]));
        let s: Tile<f32, { [N] }> = activated_slope::<N>(tx, code, p, q).reshape(const_shape![N]);
        let db: Tile<E, { [N] }> = convert_tile(s * ty);
        unsafe { dp.store_unchecked(db, [pid.0]) };
    }
}
