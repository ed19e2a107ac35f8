//! A function of one number: y[i] = f(x[i]), computed in f32; both contiguous.
//!
//! Codes: 0 -x, 1 e^x, 2 ln x, 3 sqrt, 4 1/sqrt, 5 1/x, 6 |x|, 7 x^2, 8 sin, 9 cos, 10 tanh, 11 sigmoid, 12 silu, 13 softplus, 14 max(x, 0),
//! 15 p x + q, 16 x within [p, q] (NaN stays NaN). Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod array_unary {
    use crate::tile::lane::lane::*;
    use crate::tile::math::math::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_unary<E: ElementType, const N: i32>(x: *mut E, y: *mut E, n: i32, code: i32, p: f32, q: f32) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let i: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(n, const_shape![N]);
        let m: Tile<bool, { [N] }> = lt_tile(i, end);
        let v: Tile<E, { [N] }> = unsafe { read::<E, N>(x, i, m) }.reshape(const_shape![N]);
        let v: Tile<f32, { [N] }> = convert_tile(v);
        let zero: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let mut z: Tile<f32, { [N] }> = zero - v;
        if code == 1i32 {
            z = exp(v);
        }
        if code == 2i32 {
            z = log(v);
        }
        if code == 3i32 {
            z = sqrt(v, rounding::NearestEven, ftz::Disabled);
        }
        if code == 4i32 {
            z = rsqrt(v, ftz::Disabled);
        }
        if code == 5i32 {
            z = true_div(one, v);
        }
        if code == 6i32 {
            z = absf(v);
        }
        if code == 7i32 {
            z = v * v;
        }
        if code == 8i32 {
            z = sin(v);
        }
        if code == 9i32 {
            z = cos(v);
        }
        if code == 10i32 {
            z = tanh(v);
        }
        if code == 11i32 {
            z = sigmoid::<N>(v).reshape(const_shape![N]);
        }
        if code == 12i32 {
            let s: Tile<f32, { [N] }> = sigmoid::<N>(v).reshape(const_shape![N]);
            z = v * s;
        }
        if code == 13i32 {
            z = softplus::<N>(v).reshape(const_shape![N]);
        }
        if code == 14i32 {
            z = maxf(v, zero, nan::Disabled, ftz::Disabled);
        }
        let pt: Tile<f32, { [N] }> = broadcast_scalar(p, const_shape![N]);
        let qt: Tile<f32, { [N] }> = broadcast_scalar(q, const_shape![N]);
        if code == 15i32 {
            z = v * pt + qt;
        }
        if code == 16i32 {
            let low: Tile<bool, { [N] }> = lt_tile(v, pt);
            let high: Tile<bool, { [N] }> = gt_tile(v, qt);
            z = select(low, pt, select(high, qt, v));
        }
        let w: Tile<E, { [N] }> = convert_tile(z);
        unsafe { write::<E, N>(y, i, w, m) };
    }
}
