//! `y[i] = f(x[i])`, f by its code and two parameters (see `tile::functions`). x, y `[n]`, n a multiple of V. Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod act_fwd {
    use crate::tile::functions::functions::*;
    use crate::tile::vectors::vectors::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn act_fwd<E: ElementType, const N: i32, const V: i32>(x: *mut E, y: *mut E, n: i32, code: i32, p: f32, q: f32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let xv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(x, n) };
        let yv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(y, n) };
        let xp: Partition<E, { [N] }> = xv.partition(const_shape![N]);
        let mut yp: PartitionMut<E, { [N] }> = unsafe { yv.partition_full_mut(const_shape![N]) };
        let tx: Tile<f32, { [N] }> = convert_tile(xp.load([pid.0]));
        let ty: Tile<f32, { [N] }> = activated::<N>(tx, code, p, q).reshape(const_shape![N]);
        let yb: Tile<E, { [N] }> = convert_tile(ty);
        unsafe { yp.store_unchecked(yb, [pid.0]) };
    }
}
