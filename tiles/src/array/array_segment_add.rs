//! y[r] = sum of the rows order[s .. s + k] of x `[count, w]`, added in order in f32, for every segment (r, s, k): the gradient of an embedding whose
//! ids the host has sorted.
//!
//! order i32 `[count]`, segments i32 `[U, 3]`, y f32 `[.., w]`; rows without a segment are left alone. Grid: `(U, ceil(w / N), 1)`.

/// Kernel.
#[cutile::module]
pub mod array_segment_add {
    use crate::tile::lane::lane::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_segment_add<E: ElementType, const N: i32>(
        x: *mut E,
        order: *mut i32,
        segments: *mut i32,
        y: *mut f32,
        count: i32,
        u: i32,
        w: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let r: i32 = unsafe { int_at(segments, u * 3i32, pid.0 * 3i32) };
        let s: i32 = unsafe { int_at(segments, u * 3i32, pid.0 * 3i32 + 1i32) };
        let k: i32 = unsafe { int_at(segments, u * 3i32, pid.0 * 3i32 + 2i32) };
        let i: Tile<i32, { [N] }> = lanes::<N>(pid.1).reshape(const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(w, const_shape![N]);
        let m: Tile<bool, { [N] }> = lt_tile(i, end);
        let mut a: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let zero: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        // Four rows at a time, so that they are under way together; the last is read again and dropped where there are fewer.
        let steps: i32 = ceil_div(k, 4i32);
        for j in 0i32..steps {
            let c0: i32 = unsafe { int_at(order, count, s + min(j * 4i32 + 0i32, k - 1i32)) };
            let c1: i32 = unsafe { int_at(order, count, s + min(j * 4i32 + 1i32, k - 1i32)) };
            let c2: i32 = unsafe { int_at(order, count, s + min(j * 4i32 + 2i32, k - 1i32)) };
            let c3: i32 = unsafe { int_at(order, count, s + min(j * 4i32 + 3i32, k - 1i32)) };
            let f0: Tile<i32, { [N] }> = i + broadcast_scalar(c0 * w, const_shape![N]);
            let v0: Tile<E, { [N] }> = unsafe { read::<E, N>(x, f0, m) }.reshape(const_shape![N]);
            let v0: Tile<f32, { [N] }> = convert_tile(v0);
            let f1: Tile<i32, { [N] }> = i + broadcast_scalar(c1 * w, const_shape![N]);
            let v1: Tile<E, { [N] }> = unsafe { read::<E, N>(x, f1, m) }.reshape(const_shape![N]);
            let v1: Tile<f32, { [N] }> = convert_tile(v1);
            let f2: Tile<i32, { [N] }> = i + broadcast_scalar(c2 * w, const_shape![N]);
            let v2: Tile<E, { [N] }> = unsafe { read::<E, N>(x, f2, m) }.reshape(const_shape![N]);
            let v2: Tile<f32, { [N] }> = convert_tile(v2);
            let f3: Tile<i32, { [N] }> = i + broadcast_scalar(c3 * w, const_shape![N]);
            let v3: Tile<E, { [N] }> = unsafe { read::<E, N>(x, f3, m) }.reshape(const_shape![N]);
            let v3: Tile<f32, { [N] }> = convert_tile(v3);
            let left: Tile<i32, { [N] }> = broadcast_scalar(k - j * 4i32, const_shape![N]);
            let two: Tile<i32, { [N] }> = constant(2i32, const_shape![N]);
            let three: Tile<i32, { [N] }> = constant(3i32, const_shape![N]);
            let four: Tile<i32, { [N] }> = constant(4i32, const_shape![N]);
            a = a + v0;
            a = a + select(ge_tile(left, two), v1, zero);
            a = a + select(ge_tile(left, three), v2, zero);
            a = a + select(ge_tile(left, four), v3, zero);
        }
        let to: Tile<i32, { [N] }> = i + broadcast_scalar(r * w, const_shape![N]);
        unsafe { write_f32::<N>(y, to, a, m) };
    }
}
