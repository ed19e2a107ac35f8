//! One token through a short convolution whose state lies in a pool.

/// Steps.
#[cutile::module]
pub mod taps {
    use crate::tile::lane::lane::*;
    use crate::tile::math::math::*;
    use crate::tile::window::window::*;
    use cutile::core::*;

    /// Block `b` of N channels of row `row`: y = act(bias + sum_j weight[j] input_j), the state of slot `place` moved on by x.
    pub unsafe fn advance<E: ElementType, const N: i32>(
        x: *mut E,
        weight: *mut E,
        bias: *mut E,
        pool: *mut E,
        y: *mut E,
        b: i32,
        row: i32,
        place: i32,
        d: i32,
        w: i32,
        has_bias: i32,
        silu: i32,
    ) {
        let c: Tile<i32, { [N] }> = lanes::<N>(b).reshape(const_shape![N]);
        let width: Tile<i32, { [N] }> = broadcast_scalar(d, const_shape![N]);
        let taps: Tile<i32, { [N] }> = broadcast_scalar(w, const_shape![N]);
        let there: Tile<bool, { [N] }> = lt_tile(c, width);
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let from: Tile<i32, { [N] }> = broadcast_scalar(row * d, const_shape![N]) + c;
        let at: Tile<i32, { [N] }> = (broadcast_scalar(place * d, const_shape![N]) + c) * taps;
        let newest: Tile<E, { [N] }> = unsafe { read::<E, N>(x, from, there) }.reshape(const_shape![N]);
        let mut z: Tile<f32, { [N] }> = none;
        if has_bias == 1i32 {
            z = unsafe { tap::<E, N>(bias, c, 0i32, d, 1i32) }.reshape(const_shape![N]);
        }
        let base: PointerTile<*mut E, { [1] }> = pointer_to_tile(pool).reshape(const_shape![1]);
        let base: PointerTile<*mut E, { [N] }> = base.broadcast(const_shape![N]);
        // Tokens keep the order: a place is read, and in the next turn written.
        let mut order: Token = new_token_unordered();
        for j in 0i32..w {
            let mut v: Tile<E, { [N] }> = newest;
            if j < w - 1i32 {
                let next: PointerTile<*mut E, { [N] }> = base.offset_tile(at + broadcast_scalar(j + 1i32, const_shape![N]));
                let (old, read): (Tile<E, { [N] }>, Token) = unsafe {
                    load_ptr_tko(next, ordering::Weak, None::<scope::TileBlock>, Some(there), None, Some(order), Latency::<0>)
                };
                v = old;
                order = read;
            }
            let to: PointerTile<*mut E, { [N] }> = base.offset_tile(at + broadcast_scalar(j, const_shape![N]));
            order = unsafe {
                store_ptr_tko(to, v, ordering::Weak, None::<scope::TileBlock>, Some(there), Some(order), Latency::<0>)
            };
            let v: Tile<f32, { [N] }> = convert_tile(v);
            let g: Tile<f32, { [N] }> = unsafe { tap::<E, N>(weight, c, j, d, w) }.reshape(const_shape![N]);
            z = z + g * v;
        }
        if silu == 1i32 {
            let s: Tile<f32, { [N] }> = sigmoid::<N>(z).reshape(const_shape![N]);
            z = z * s;
        }
        let o: Tile<E, { [N] }> = convert_tile(z);
        unsafe { write::<E, N>(y, from, o, there) };
    }
}
