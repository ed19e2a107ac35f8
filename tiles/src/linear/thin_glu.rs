//! The first half of a gated MLP for few rows in one pass over its weights: `y = silu(x w^T) * (x u^T)`.
//!
//! x `[m, k]`, w (gate), u (up) `[n, k]`, y `[m, n]`. k is a multiple of 8. A block makes BN columns for M rows; sums are f32 in an order that depends on k
//! alone. Grid: `(ceil(n / BN), ceil(m / M), 1)`.

/// Kernel.
#[cutile::module]
pub mod thin_glu {
    use crate::tile::rows::rows::*;
    use crate::tile::thin::thin::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn thin_glu<E: ElementType, const M: i32, const BN: i32, const BK: i32>(
        x: *mut E,
        w: *mut E,
        u: *mut E,
        y: *mut E,
        m: i32,
        k: i32,
        n: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let xv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(x, m, k) };
        let wv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(w, n, k) };
        let uv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(u, n, k) };
        let yv: Tensor<E, { [-1, -1] }> = unsafe { any_table_at::<E>(address::<E>(y), m, n) };
        let xp: Partition<E, { [M, BK] }> = xv.partition(const_shape![M, BK]);
        let wp: Partition<E, { [BN, BK] }> = wv.partition(const_shape![BN, BK]);
        let up: Partition<E, { [BN, BK] }> = uv.partition(const_shape![BN, BK]);
        let mut yp: PartitionMut<E, { [M, BN] }> = unsafe { yv.partition_full_mut(const_shape![M, BN]) };
        let mut gate: Tile<f32, { [M, BN, BK] }> = constant(0.0f32, const_shape![M, BN, BK]);
        let mut lift: Tile<f32, { [M, BN, BK] }> = constant(0.0f32, const_shape![M, BN, BK]);
        let steps: i32 = ceil_div(k, BK);
        for i in 0i32..steps {
            let tw: Tile<E, { [BN, BK] }> = load_view_tko(&wp, [pid.0, i], ordering::Weak, scope::TileBlock, None, tma::Disabled);
            let tw: Tile<f32, { [BN, BK] }> = convert_tile(tw);
            let tu: Tile<E, { [BN, BK] }> = load_view_tko(&up, [pid.0, i], ordering::Weak, scope::TileBlock, None, tma::Disabled);
            let tu: Tile<f32, { [BN, BK] }> = convert_tile(tu);
            let tx: Tile<E, { [M, BK] }> = load_view_tko(&xp, [pid.1, i], ordering::Weak, scope::TileBlock, None, tma::Disabled);
            let tx: Tile<f32, { [M, BK] }> = convert_tile(tx);
            let b: Tile<f32, { [M, BN, BK] }> = tx.reshape(const_shape![M, 1, BK]).broadcast(const_shape![M, BN, BK]);
            let a: Tile<f32, { [M, BN, BK] }> = tw.reshape(const_shape![1, BN, BK]).broadcast(const_shape![M, BN, BK]);
            gate = gate + a * b;
            let a: Tile<f32, { [M, BN, BK] }> = tu.reshape(const_shape![1, BN, BK]).broadcast(const_shape![M, BN, BK]);
            lift = lift + a * b;
        }
        let g: Tile<f32, { [M, BN] }> = reduce_sum(gate, 2i32);
        let g: Tile<f32, { [M, BN] }> = g.reshape(const_shape![M, BN]);
        let l: Tile<f32, { [M, BN] }> = reduce_sum(lift, 2i32);
        let s: Tile<f32, { [M, BN] }> = sigmoid2::<M, BN>(g).reshape(const_shape![M, BN]);
        let out: Tile<E, { [M, BN] }> = convert_tile(g * s * l.reshape(const_shape![M, BN]));
        unsafe { yp.store_unchecked(out, [pid.1, pid.0]) };
    }
}
