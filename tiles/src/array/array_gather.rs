//! y[c] = row index[c] of x `[rows, w]`; NaN for an index outside.
//!
//! index i64 `[count]`, y `[count, w]`. Grid: `(count, ceil(w / N), 1)`.

/// Kernel.
#[cutile::module]
pub mod array_gather {
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_gather<E: ElementType, const N: i32>(x: *mut E, index: *mut i64, y: *mut E, count: i32, rows: i32, w: i32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let r: i32 = unsafe { row_at(index, count, pid.0) };
        let i: Tile<i32, { [N] }> = lanes::<N>(pid.1).reshape(const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(w, const_shape![N]);
        let m: Tile<bool, { [N] }> = lt_tile(i, end);
        let to: Tile<i32, { [N] }> = i + broadcast_scalar(pid.0 * w, const_shape![N]);
        let nan: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let nan: Tile<f32, { [N] }> = true_div(nan, nan);
        let mut v: Tile<E, { [N] }> = convert_tile(nan);
        if r >= 0i32 {
            if r < rows {
                let from: Tile<i32, { [N] }> = i + broadcast_scalar(r * w, const_shape![N]);
                v = unsafe { read::<E, N>(x, from, m) }.reshape(const_shape![N]);
            }
        }
        unsafe { write::<E, N>(y, to, v, m) };
    }
}
