//! A function of two numbers: y[i] = f(a[i], b[i]), computed in f32; y is contiguous, a and b are views of one shape (sizes d1..d4 inside,
//! strides as0..as4, bs0..bs4).
//!
//! Codes: 0 a + b, 1 a - b, 2 a b, 3 a / b, 4 max, 5 min (a NaN operand gives the other one). Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod array_zip {
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_zip<E: ElementType, const N: i32>(
        a: *mut E,
        b: *mut E,
        y: *mut E,
        n: i32,
        code: i32,
        d1: i32,
        d2: i32,
        d3: i32,
        d4: i32,
        as0: i32,
        as1: i32,
        as2: i32,
        as3: i32,
        as4: i32,
        bs0: i32,
        bs1: i32,
        bs2: i32,
        bs3: i32,
        bs4: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let i: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(n, const_shape![N]);
        let m: Tile<bool, { [N] }> = lt_tile(i, end);
        let pa: Tile<i32, { [N] }> = place::<N>(i, d1, d2, d3, d4, as0, as1, as2, as3, as4).reshape(const_shape![N]);
        let pb: Tile<i32, { [N] }> = place::<N>(i, d1, d2, d3, d4, bs0, bs1, bs2, bs3, bs4).reshape(const_shape![N]);
        let u: Tile<E, { [N] }> = unsafe { read::<E, N>(a, pa, m) }.reshape(const_shape![N]);
        let v: Tile<E, { [N] }> = unsafe { read::<E, N>(b, pb, m) }.reshape(const_shape![N]);
        let u: Tile<f32, { [N] }> = convert_tile(u);
        let v: Tile<f32, { [N] }> = convert_tile(v);
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
        if code == 4i32 {
            z = maxf(u, v, nan::Disabled, ftz::Disabled);
        }
        if code == 5i32 {
            z = minf(u, v, nan::Disabled, ftz::Disabled);
        }
        let w: Tile<E, { [N] }> = convert_tile(z);
        unsafe { write::<E, N>(y, i, w, m) };
    }
}
