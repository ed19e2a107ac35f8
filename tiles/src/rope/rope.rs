//! Rotates the first `2 half` channels of every head by the angle of its token; the others are copied.
//!
//! Pair j of position p turns by (cos, sin)[|p|, j], the sine negative for p < 0; `sign` = -1 turns back. Pairs are (j, j + half), or (2j, 2j + 1)
//! where `interleaved` = 1. x, y `[tokens, H, D]`, cos, sin f32 `[.., half]`, position i32 `[tokens]`. A lane is a pair or a copied channel:
//! n = tokens H (D - half). Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod rope {
    use crate::tile::ints::ints::*;
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn rope<E: ElementType, const N: i32>(
        x: *mut E,
        cos: *mut f32,
        sin: *mut f32,
        position: *mut i32,
        y: *mut E,
        n: i32,
        h: i32,
        d: i32,
        half: i32,
        interleaved: i32,
        sign: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let i: Tile<i32, { [N] }> = lanes::<N>(pid.0).reshape(const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(n, const_shape![N]);
        let m: Tile<bool, { [N] }> = lt_tile(i, end);
        let wide: Tile<i32, { [N] }> = broadcast_scalar(d - half, const_shape![N]);
        let row: Tile<i32, { [N] }> = i / wide;
        let j: Tile<i32, { [N] }> = i - row * wide;
        let token: Tile<i32, { [N] }> = row / broadcast_scalar(h, const_shape![N]);
        let halves: Tile<i32, { [N] }> = broadcast_scalar(half, const_shape![N]);
        let zero: Tile<i32, { [N] }> = constant(0i32, const_shape![N]);
        let no: Tile<bool, { [N] }> = lt_tile(zero, zero);
        let pair: Tile<bool, { [N] }> = select(m, lt_tile(j, halves), no);
        let p: Tile<i32, { [N] }> = unsafe { read_i32::<N>(position, token, m) }.reshape(const_shape![N]);
        let back: Tile<i32, { [N] }> = zero - p;
        let angle: Tile<i32, { [N] }> = max_tile(p, back) * halves + j;
        let c: Tile<f32, { [N] }> = unsafe { read_f32::<N>(cos, angle, pair) }.reshape(const_shape![N]);
        let s: Tile<f32, { [N] }> = unsafe { read_f32::<N>(sin, angle, pair) }.reshape(const_shape![N]);
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let turn: Tile<f32, { [N] }> = broadcast_scalar(sign, const_shape![N]);
        let c: Tile<f32, { [N] }> = select(pair, c, one);
        let s: Tile<f32, { [N] }> = select(pair, s * select(lt_tile(p, zero), none - turn, turn), none);
        let start: Tile<i32, { [N] }> = row * broadcast_scalar(d, const_shape![N]);
        let mut ia: Tile<i32, { [N] }> = j;
        let mut ib: Tile<i32, { [N] }> = j + halves;
        if interleaved == 1i32 {
            ia = j + j;
            ib = ia + constant(1i32, const_shape![N]);
        }
        let ia: Tile<i32, { [N] }> = start + select(pair, ia, j + halves);
        let ib: Tile<i32, { [N] }> = start + ib;
        let a: Tile<E, { [N] }> = unsafe { read::<E, N>(x, ia, m) }.reshape(const_shape![N]);
        let b: Tile<E, { [N] }> = unsafe { read::<E, N>(x, ib, pair) }.reshape(const_shape![N]);
        let a: Tile<f32, { [N] }> = convert_tile(a);
        let b: Tile<f32, { [N] }> = convert_tile(b);
        let b: Tile<f32, { [N] }> = select(pair, b, none);
        let ya: Tile<E, { [N] }> = convert_tile(a * c - b * s);
        let yb: Tile<E, { [N] }> = convert_tile(a * s + b * c);
        unsafe { write::<E, N>(y, ia, ya, m) };
        unsafe { write::<E, N>(y, ib, yb, pair) };
    }
}
