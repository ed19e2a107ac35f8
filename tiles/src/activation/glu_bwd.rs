//! `dg[i] = f'(g[i]) u[i] dy[i]`, `du[i] = f(g[i]) dy[i]`, f as in `glu_fwd`. All `[n]`, n a multiple of V. Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod glu_bwd {
    use crate::tile::functions::functions::*;
    use crate::tile::vectors::vectors::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn glu_bwd<E: ElementType, const N: i32, const V: i32>(
        g: *mut E,
        u: *mut E,
        dy: *mut E,
        dg: *mut E,
        du: *mut E,
        n: i32,
        code: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let gv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(g, n) };
        let uv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(u, n) };
        let yv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(dy, n) };
        let dgv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(dg, n) };
        let duv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(du, n) };
        let gp: Partition<E, { [N] }> = gv.partition(const_shape![N]);
        let up: Partition<E, { [N] }> = uv.partition(const_shape![N]);
        let yp: Partition<E, { [N] }> = yv.partition(const_shape![N]);
        let mut dgp: PartitionMut<E, { [N] }> = unsafe { dgv.partition_full_mut(const_shape![N]) };
        let mut dup: PartitionMut<E, { [N] }> = unsafe { duv.partition_full_mut(const_shape![N]) };
        let tg: Tile<f32, { [N] }> = convert_tile(gp.load([pid.0]));
        let tu: Tile<f32, { [N] }> = convert_tile(up.load([pid.0]));
        let ty: Tile<f32, { [N] }> = convert_tile(yp.load([pid.0]));
        let zero: f32 = 0.0f32;
        let f: Tile<f32, { [N] }> = activated::<N>(tg, code, zero, zero).reshape(const_shape![N]);
        let s: Tile<f32, { [N] }> = activated_slope::<N>(tg, code, zero, zero).reshape(const_shape![N]);
        let a: Tile<E, { [N] }> = convert_tile(s * tu * ty);
        let b: Tile<E, { [N] }> = convert_tile(f * ty);
        unsafe { dgp.store_unchecked(a, [pid.0]) };
        unsafe { dup.store_unchecked(b, [pid.0]) };
    }
}
