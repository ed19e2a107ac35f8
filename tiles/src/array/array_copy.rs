//! A strided copy that converts: y[i] = x[i] for all n elements of two views of one shape.
//!
//! The shape's inner four sizes are d1..d4; xs0..xs4 and ys0..ys4 are strides in elements. Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod array_copy {
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_copy<E: ElementType, O: ElementType, const N: i32>(
        x: *mut E,
        y: *mut O,
        n: i32,
        d1: i32,
        d2: i32,
        d3: i32,
        d4: i32,
        xs0: i32,
        xs1: i32,
        xs2: i32,
        xs3: i32,
        xs4: i32,
        ys0: i32,
        ys1: i32,
        ys2: i32,
        ys3: i32,
        ys4: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let i: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(n, const_shape![N]);
        let m: Tile<bool, { [N] }> = lt_tile(i, end);
        let from: Tile<i32, { [N] }> = place::<N>(i, d1, d2, d3, d4, xs0, xs1, xs2, xs3, xs4).reshape(const_shape![N]);
        let to: Tile<i32, { [N] }> = place::<N>(i, d1, d2, d3, d4, ys0, ys1, ys2, ys3, ys4).reshape(const_shape![N]);
        let v: Tile<E, { [N] }> = unsafe { read::<E, N>(x, from, m) }.reshape(const_shape![N]);
        let w: Tile<O, { [N] }> = convert_tile(v);
        unsafe { write::<O, N>(y, to, w, m) };
    }
}
