//! `y[i] = f(g[i]) u[i]`, f by its code (see `tile::functions`). All `[n]`, n a multiple of V. Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod glu_fwd {
    use crate::tile::functions::functions::*;
    use crate::tile::vectors::vectors::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn glu_fwd<E: ElementType, const N: i32, const V: i32>(g: *mut E, u: *mut E, y: *mut E, n: i32, code: i32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let gv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(g, n) };
        let uv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(u, n) };
        let yv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(y, n) };
        let gp: Partition<E, { [N] }> = gv.partition(const_shape![N]);
        let up: Partition<E, { [N] }> = uv.partition(const_shape![N]);
        let mut yp: PartitionMut<E, { [N] }> = unsafe { yv.partition_full_mut(const_shape![N]) };
        let tg: Tile<f32, { [N] }> = convert_tile(gp.load([pid.0]));
        let tu: Tile<f32, { [N] }> = convert_tile(up.load([pid.0]));
        let zero: f32 = 0.0f32;
        let f: Tile<f32, { [N] }> = activated::<N>(tg, code, zero, zero).reshape(const_shape![N]);
        let yb: Tile<E, { [N] }> = convert_tile(f * tu);
        unsafe { yp.store_unchecked(yb, [pid.0]) };
    }
}
