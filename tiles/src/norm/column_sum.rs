//! The sum of each column, rows added in order: the last step of a weight's gradient.
//!
//! x f32 `[N, D]`, y `[D]`; `add` = 1 adds to what y holds. Grid: `(ceil(D / DT), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod column_sum {
    use crate::tile::rows::rows::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn column_sum<E: ElementType, const R: i32, const DT: i32>(
        x: *mut f32,
        y: *mut E,
        n: i32,
        d: i32,
        add: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let xv: Tensor<f32, { [-1, -1] }> = unsafe { table_f32(x, n, d) };
        let xp: Partition<f32, { [R, DT] }> = xv.partition(const_shape![R, DT]);
        let mut a: Tile<f32, { [DT] }> = constant(0.0f32, const_shape![DT]);
        let steps: i32 = ceil_div(n, R);
        for i in 0i32..steps {
            let s: Tile<f32, { [DT] }> = reduce_sum(xp.load([i, pid.0]), 0i32);
            a = a + s.reshape(const_shape![DT]);
        }
        let yv: Tensor<E, { [-1] }> = unsafe { flat::<E>(y, d) };
        if add == 1i32 {
            let yp: Partition<E, { [DT] }> = yv.partition(const_shape![DT]);
            let old: Tile<f32, { [DT] }> = convert_tile(yp.load([pid.0]));
            a = a + old;
        }
        let mut yp: PartitionMut<E, { [DT] }> = unsafe { yv.partition_full_mut(const_shape![DT]) };
        let b: Tile<E, { [DT] }> = convert_tile(a);
        unsafe { yp.store_unchecked(b, [pid.0]) };
    }
}
