//! part[at + b] = sum of squares of block b of x, in f32.
//!
//! x `[n]`, part f32. Grid: `(ceil(n / (N 16)), 1, 1)`: a block takes 16 N elements.

/// Kernel.
#[cutile::module]
pub mod sum_squares {
    use crate::tile::lane::lane::*;
    use crate::tile::rows::rows::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn sum_squares<E: ElementType, const N: i32>(x: *mut E, part: *mut f32, n: i32, at: i32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let xv: Tensor<E, { [-1] }> = unsafe { flat::<E>(x, n) };
        let xp: Partition<E, { [N] }> = xv.partition(const_shape![N]);
        let mut a: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        // Four loads at a time, so that they are under way together.
        for k in 0i32..4i32 {
            let b: i32 = pid.0 * 16i32 + k * 4i32;
            let v0: Tile<f32, { [N] }> = convert_tile(xp.load([b]));
            let v1: Tile<f32, { [N] }> = convert_tile(xp.load([b + 1i32]));
            let v2: Tile<f32, { [N] }> = convert_tile(xp.load([b + 2i32]));
            let v3: Tile<f32, { [N] }> = convert_tile(xp.load([b + 3i32]));
            a = a + v0 * v0;
            a = a + v1 * v1;
            a = a + v2 * v2;
            a = a + v3 * v3;
        }
        let s: Tile<f32, { [] }> = reduce_sum(a, 0i32);
        let s: Tile<f32, { [1] }> = s.reshape(const_shape![1]);
        let place: Tile<i32, { [1] }> = broadcast_scalar(at + pid.0, const_shape![1]);
        let zero: Tile<i32, { [1] }> = constant(0i32, const_shape![1]);
        let always: Tile<bool, { [1] }> = ge_tile(place, zero);
        unsafe { write_f32::<1>(part, place, s, always) };
    }
}
