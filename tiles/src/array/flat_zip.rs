//! y[i] = f(a[i], b[i]) in f32: dense arrays `[n]`, n a multiple of V. (Views go through `array_zip`, which has the codes of the functions: 0 to 3 of them here.)
//! Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod flat_zip {
    use crate::tile::vectors::vectors::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn flat_zip<E: ElementType, const N: i32, const V: i32>(a: *mut E, b: *mut E, y: *mut E, n: i32, code: i32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let av: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(a, n) };
        let bv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(b, n) };
        let yv: Tensor<E, { [-1] }> = unsafe { flat_by::<E, V>(y, n) };
        let ap: Partition<E, { [N] }> = av.partition(const_shape![N]);
        let bp: Partition<E, { [N] }> = bv.partition(const_shape![N]);
        let mut yp: PartitionMut<E, { [N] }> = unsafe { yv.partition_full_mut(const_shape![N]) };
        let u: Tile<f32, { [N] }> = convert_tile(ap.load([pid.0]));
        let v: Tile<f32, { [N] }> = convert_tile(bp.load([pid.0]));
        let mut z: Tile<f32, { [N] }> = u + v;
        if code == 1i32 {
            z = u - v;
        }
        if code == 2i32 {
            z = u * v;
        }
        if code == 3i32 {
            z = true_div(u, v);
        }
        let w: Tile<E, { [N] }> = convert_tile(z);
        unsafe { yp.store_unchecked(w, [pid.0]) };
    }
}
