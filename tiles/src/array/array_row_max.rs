//! The largest element of each row of x `[rows, n]` and its first index; a NaN counts as larger than everything.
//!
//! value `[rows]`, index i64 `[rows]`. Grid: `(rows, 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod array_row_max {
    use crate::tile::ints::ints::*;
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_row_max<E: ElementType, const N: i32>(x: *mut E, value: *mut E, index: *mut i64, n: i32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let ends: Tile<i32, { [N] }> = broadcast_scalar(n, const_shape![N]);
        let past: Tile<i32, { [N] }> = constant(2147483647i32, const_shape![N]);
        let low: Tile<f32, { [N] }> = constant(f32::NEG_INFINITY, const_shape![N]);
        let mut best: Tile<f32, { [N] }> = low;
        let mut at: Tile<i32, { [N] }> = past;
        let mut odd: Tile<i32, { [N] }> = past;
        let steps: i32 = ceil_div(n, N);
        for i in 0i32..steps {
            let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
            let m: Tile<bool, { [N] }> = lt_tile(c, ends);
            let from: Tile<i32, { [N] }> = c + broadcast_scalar(pid.0 * n, const_shape![N]);
            let v: Tile<E, { [N] }> = unsafe { read::<E, N>(x, from, m) }.reshape(const_shape![N]);
            let v: Tile<f32, { [N] }> = convert_tile(v);
            let v: Tile<f32, { [N] }> = select(m, v, low);
            let number: Tile<bool, { [N] }> = eq_tile(v, v);
            odd = min_tile(odd, select(number, past, c));
            let v: Tile<f32, { [N] }> = select(number, v, low);
            // The first element of a lane is its candidate even where it is minus infinity.
            let first: Tile<i32, { [N] }> = select(m, min_tile(at, c), at);
            at = select(gt_tile(v, best), c, first);
            best = select(gt_tile(v, best), v, best);
        }
        let top: Tile<f32, { [] }> = reduce_max(best, 0i32);
        let top: Tile<f32, { [1] }> = top.reshape(const_shape![1]);
        let top: Tile<f32, { [N] }> = top.broadcast(const_shape![N]);
        let place: Tile<i32, { [] }> = reduce_min(select(eq_tile(best, top), at, past), 0i32);
        let nan: Tile<i32, { [] }> = reduce_min(odd, 0i32);
        let place: Tile<i32, { [1] }> = place.reshape(const_shape![1]);
        let nan: Tile<i32, { [1] }> = nan.reshape(const_shape![1]);
        let end: Tile<i32, { [1] }> = broadcast_scalar(n, const_shape![1]);
        let place: Tile<i32, { [1] }> = select(lt_tile(nan, end), nan, place);
        let row: Tile<i32, { [1] }> = broadcast_scalar(pid.0, const_shape![1]);
        let yes: Tile<bool, { [1] }> = lt_tile(place, end);
        let v: Tile<E, { [1] }> = unsafe { read::<E, 1>(x, row * end + place, yes) }.reshape(const_shape![1]);
        unsafe { write::<E, 1>(value, row, v, yes) };
        let wide: Tile<i64, { [1] }> = exti(place);
        unsafe { write_i64::<1>(index, row, wide, yes) };
    }
}
