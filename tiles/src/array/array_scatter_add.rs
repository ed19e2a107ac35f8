//! y[r] = sum of the rows c of x `[count, w]` with index[c] = r, added in order in f32. Rows without one, and indices outside, are left alone.
//!
//! The block of the first c of an index adds all of that index; the others end at once. index i64 `[count]`, y f32 `[rows, w]`.
//! Grid: `(count, ceil(w / N), 1)`.

/// Kernel.
#[cutile::module]
pub mod array_scatter_add {
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_scatter_add<E: ElementType, const N: i32>(
        x: *mut E,
        index: *mut i64,
        y: *mut f32,
        count: i32,
        rows: i32,
        w: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let r: i32 = unsafe { row_at(index, count, pid.0) };
        let mut first: i32 = 0i32;
        if r >= 0i32 {
            if r < rows {
                first = 1i32;
            }
        }
        if first == 1i32 {
            let before: i32 = ceil_div(pid.0, N);
            for b in 0i32..before {
                let hits: i32 = unsafe { equal_to::<N>(index, b, pid.0, r) };
                if hits > 0i32 {
                    first = 0i32;
                }
            }
        }
        if first == 1i32 {
            let i: Tile<i32, { [N] }> = lanes::<N>(pid.1).reshape(const_shape![N]);
            let end: Tile<i32, { [N] }> = broadcast_scalar(w, const_shape![N]);
            let m: Tile<bool, { [N] }> = lt_tile(i, end);
            let mut a: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
            let blocks: i32 = ceil_div(count, N);
            for b in 0i32..blocks {
                let hits: i32 = unsafe { equal_to::<N>(index, b, count, r) };
                if hits > 0i32 {
                    for j in 0i32..N {
                        let c: i32 = b * N + j;
                        if c < count {
                            let rc: i32 = unsafe { row_at(index, count, c) };
                            if rc == r {
                                let from: Tile<i32, { [N] }> = i + broadcast_scalar(c * w, const_shape![N]);
                                let v: Tile<E, { [N] }> = unsafe { read::<E, N>(x, from, m) }.reshape(const_shape![N]);
                                let v: Tile<f32, { [N] }> = convert_tile(v);
                                a = a + v;
                            }
                        }
                    }
                }
            }
            let to: Tile<i32, { [N] }> = i + broadcast_scalar(r * w, const_shape![N]);
            unsafe { write_f32::<N>(y, to, a, m) };
        }
    }
}
