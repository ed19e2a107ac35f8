//! y[i] = 1 where x[i] > bound (code 0), x[i] >= bound (code 1), else 0. x `[n]`, y u8 `[n]`. Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod array_compare {
    use crate::tile::ints::ints::*;
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_compare<E: ElementType, const N: i32>(x: *mut E, y: *mut u8, n: i32, code: i32, bound: f32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let i: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(n, const_shape![N]);
        let m: Tile<bool, { [N] }> = lt_tile(i, end);
        let v: Tile<E, { [N] }> = unsafe { read::<E, N>(x, i, m) }.reshape(const_shape![N]);
        let v: Tile<f32, { [N] }> = convert_tile(v);
        let b: Tile<f32, { [N] }> = broadcast_scalar(bound, const_shape![N]);
        let yes: Tile<i32, { [N] }> = constant(1i32, const_shape![N]);
        let no: Tile<i32, { [N] }> = constant(0i32, const_shape![N]);
        let mut z: Tile<i32, { [N] }> = select(gt_tile(v, b), yes, no);
        if code == 1i32 {
            z = select(ge_tile(v, b), yes, no);
        }
        let w: Tile<u8, { [N] }> = trunci(z, overflow::NoSignedWrap);
        unsafe { write_u8::<N>(y, i, w, m) };
    }
}
