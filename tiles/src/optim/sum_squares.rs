//! part[at + b] = sum of squares of block b of x, in f32.
//!
//! x f32 `[n]`, part f32. Grid: `(ceil(n / (N 16)), 1, 1)`: a block takes 16 N elements.

/// Kernel.
#[cutile::module]
pub mod sum_squares {
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn sum_squares<E: ElementType, const N: i32>(x: *mut E, part: *mut f32, n: i32, at: i32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let mut a: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(n, const_shape![N]);
        for k in 0i32..16i32 {
            let i: Tile<i32, { [N] }> = lanes::<N>(pid.0 * 16i32 + k).reshape(const_shape![N]);
            let m: Tile<bool, { [N] }> = lt_tile(i, end);
            let v: Tile<E, { [N] }> = unsafe { read::<E, N>(x, i, m) }.reshape(const_shape![N]);
            let v: Tile<f32, { [N] }> = convert_tile(v);
            let v: Tile<f32, { [N] }> = select(m, v, none);
            a = a + v * v;
        }
        let s: Tile<f32, { [] }> = reduce_sum(a, 0i32);
        let s: Tile<f32, { [1] }> = s.reshape(const_shape![1]);
        let place: Tile<i32, { [1] }> = broadcast_scalar(at + pid.0, const_shape![1]);
        let zero: Tile<i32, { [1] }> = constant(0i32, const_shape![1]);
        let always: Tile<bool, { [1] }> = ge_tile(place, zero);
        unsafe { write_f32::<1>(part, place, s, always) };
    }
}
