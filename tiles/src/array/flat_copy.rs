//! y[i] = x[i] in y's type: dense arrays `[n]`, n a multiple of V. (Views go through `array_copy`.) Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod flat_copy {
    use crate::tile::vectors::vectors::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn flat_copy<E: ElementType, O: ElementType, const N: i32, const V: i32>(x: *mut E, y: *mut O, n: i32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let xv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(x, n) };
        let yv: Tensor<O, { [-1] }> = unsafe { flat_by::<O, V>(y, n) };
        let xp: Partition<E, { [N] }> = xv.partition(const_shape![N]);
        let mut yp: PartitionMut<O, { [N] }> = unsafe { yv.partition_full_mut(const_shape![N]) };
        let v: Tile<f32, { [N] }> = convert_tile(xp.load([pid.0]));
        let w: Tile<O, { [N] }> = convert_tile(v);
        unsafe { yp.store_unchecked(w, [pid.0]) };
    }
}
