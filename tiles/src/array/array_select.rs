//! y[i] = a[i] where k[i] is not 0, else b[i]; y is contiguous, the others are views of one shape (sizes d1..d4 inside, strides in elements).
//!
//! k u8. Grid: `(ceil(n / N), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod array_select {
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn array_select<E: ElementType, const N: i32>(
        k: *mut u8,
        a: *mut E,
        b: *mut E,
        y: *mut E,
        n: i32,
        d1: i32,
        d2: i32,
        d3: i32,
        d4: i32,
        ks0: i32,
        ks1: i32,
        ks2: i32,
        ks3: i32,
        ks4: i32,
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
        let pk: Tile<i32, { [N] }> = place::<N>(i, d1, d2, d3, d4, ks0, ks1, ks2, ks3, ks4).reshape(const_shape![N]);
        let pa: Tile<i32, { [N] }> = place::<N>(i, d1, d2, d3, d4, as0, as1, as2, as3, as4).reshape(const_shape![N]);
        let pb: Tile<i32, { [N] }> = place::<N>(i, d1, d2, d3, d4, bs0, bs1, bs2, bs3, bs4).reshape(const_shape![N]);
        let kv: Tile<u8, { [N] }> = unsafe { read_u8::<N>(k, pk, m) }.reshape(const_shape![N]);
        let u: Tile<E, { [N] }> = unsafe { read::<E, N>(a, pa, m) }.reshape(const_shape![N]);
        let v: Tile<E, { [N] }> = unsafe { read::<E, N>(b, pb, m) }.reshape(const_shape![N]);
        let none: Tile<u8, { [N] }> = constant(0u8, const_shape![N]);
        let on: Tile<bool, { [N] }> = ne_tile(kv, none);
        let w: Tile<E, { [N] }> = select(on, u, v);
        unsafe { write::<E, N>(y, i, w, m) };
    }
}
