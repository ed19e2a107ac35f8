//! Up to six linear maps of the same few rows in one pass over their weights: `y_i = x w_i^T`.
//!
//! x `[m, k]`, w_i `[n_i, k]`, y_i `[m, n_i]`; a map that is absent has `n_i` = 0. k is a multiple of 8. A block makes BN columns of one map for M rows; sums are f32
//! in an order that depends on k alone. Grid: `(sum of ceil(n_i / BN), ceil(m / M), 1)`.

/// Kernel.
#[cutile::module]
pub mod thin_linear {
    use crate::tile::rows::rows::*;
    use crate::tile::thin::thin::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn thin_linear<E: ElementType, const M: i32, const BN: i32, const BK: i32>(
        x: *mut E,
        w0: *mut E,
        w1: *mut E,
        w2: *mut E,
        w3: *mut E,
        w4: *mut E,
        w5: *mut E,
        y0: *mut E,
        y1: *mut E,
        y2: *mut E,
        y3: *mut E,
        y4: *mut E,
        y5: *mut E,
        m: i32,
        k: i32,
        n0: i32,
        n1: i32,
        n2: i32,
        n3: i32,
        n4: i32,
        n5: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let mut w: Tile<i64, { [] }> = address::<E>(w0);
        let mut y: Tile<i64, { [] }> = address::<E>(y0);
        let mut n: i32 = n0;
        let mut first: i32 = 0i32;
        let mut end: i32 = ceil_div(n0, BN);
        if pid.0 >= end {
            w = address::<E>(w1);
            y = address::<E>(y1);
            n = n1;
            first = end;
        }
        end = end + ceil_div(n1, BN);
        if pid.0 >= end {
            w = address::<E>(w2);
            y = address::<E>(y2);
            n = n2;
            first = end;
        }
        end = end + ceil_div(n2, BN);
        if pid.0 >= end {
            w = address::<E>(w3);
            y = address::<E>(y3);
            n = n3;
            first = end;
        }
        end = end + ceil_div(n3, BN);
        if pid.0 >= end {
            w = address::<E>(w4);
            y = address::<E>(y4);
            n = n4;
            first = end;
        }
        end = end + ceil_div(n4, BN);
        if pid.0 >= end {
            w = address::<E>(w5);
            y = address::<E>(y5);
            n = n5;
            first = end;
        }
        let block: i32 = pid.0 - first;
        let xv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(x, m, k) };
        let wv: Tensor<E, { [-1, -1] }> = unsafe { table_at::<E>(w, n, k) };
        let yv: Tensor<E, { [-1, -1] }> = unsafe { any_table_at::<E>(y, m, n) };
        let xp: Partition<E, { [M, BK] }> = xv.partition(const_shape![M, BK]);
        let wp: Partition<E, { [BN, BK] }> = wv.partition(const_shape![BN, BK]);
        let mut yp: PartitionMut<E, { [M, BN] }> = unsafe { yv.partition_full_mut(const_shape![M, BN]) };
        let mut sums: Tile<f32, { [M, BN, BK] }> = constant(0.0f32, const_shape![M, BN, BK]);
        let steps: i32 = ceil_div(k, BK);
        for i in 0i32..steps {
            let tw: Tile<E, { [BN, BK] }> = load_view_tko(&wp, [block, i], ordering::Weak, scope::TileBlock, None, tma::Disabled);
            let tw: Tile<f32, { [BN, BK] }> = convert_tile(tw);
            let tx: Tile<E, { [M, BK] }> = load_view_tko(&xp, [pid.1, i], ordering::Weak, scope::TileBlock, None, tma::Disabled);
            let tx: Tile<f32, { [M, BK] }> = convert_tile(tx);
            let a: Tile<f32, { [M, BN, BK] }> = tw.reshape(const_shape![1, BN, BK]).broadcast(const_shape![M, BN, BK]);
            let b: Tile<f32, { [M, BN, BK] }> = tx.reshape(const_shape![M, 1, BK]).broadcast(const_shape![M, BN, BK]);
            sums = sums + a * b;
        }
        let s: Tile<f32, { [M, BN] }> = reduce_sum(sums, 2i32);
        let out: Tile<E, { [M, BN] }> = convert_tile(s.reshape(const_shape![M, BN]));
        unsafe { yp.store_unchecked(out, [pid.1, block]) };
    }
}
