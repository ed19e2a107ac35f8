//! y[i] = x0[i] + .. of `count` (2 to 6) dense arrays `[n]`, added in order in f32 and rounded once: the gradient of what several operations read.
//!
//! n is a multiple of V. Arrays from `count` on are not read. Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod flat_sum {
    use crate::tile::vectors::vectors::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn flat_sum<E: ElementType, const N: i32, const V: i32>(
        x0: *mut E,
        x1: *mut E,
        x2: *mut E,
        x3: *mut E,
        x4: *mut E,
        x5: *mut E,
        y: *mut E,
        n: i32,
        count: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let v0: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(x0, n) };
        let v1: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(x1, n) };
        let v2: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(x2, n) };
        let v3: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(x3, n) };
        let v4: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(x4, n) };
        let v5: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(x5, n) };
        let yv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(y, n) };
        let p0: Partition<E, { [N] }> = v0.partition(const_shape![N]);
        let p1: Partition<E, { [N] }> = v1.partition(const_shape![N]);
        let p2: Partition<E, { [N] }> = v2.partition(const_shape![N]);
        let p3: Partition<E, { [N] }> = v3.partition(const_shape![N]);
        let p4: Partition<E, { [N] }> = v4.partition(const_shape![N]);
        let p5: Partition<E, { [N] }> = v5.partition(const_shape![N]);
        let mut yp: PartitionMut<E, { [N] }> = unsafe { yv.partition_full_mut(const_shape![N]) };
        let a: Tile<f32, { [N] }> = convert_tile(p0.load([pid.0]));
        let b: Tile<f32, { [N] }> = convert_tile(p1.load([pid.0]));
        let mut s: Tile<f32, { [N] }> = a + b;
        if count > 2i32 {
            let c: Tile<f32, { [N] }> = convert_tile(p2.load([pid.0]));
            s = s + c;
        }
        if count > 3i32 {
            let c: Tile<f32, { [N] }> = convert_tile(p3.load([pid.0]));
            s = s + c;
        }
        if count > 4i32 {
            let c: Tile<f32, { [N] }> = convert_tile(p4.load([pid.0]));
            s = s + c;
        }
        if count > 5i32 {
            let c: Tile<f32, { [N] }> = convert_tile(p5.load([pid.0]));
            s = s + c;
        }
        let o: Tile<E, { [N] }> = convert_tile(s);
        unsafe { yp.store_unchecked(o, [pid.0]) };
    }
}
