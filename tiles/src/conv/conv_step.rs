//! One token for each row of up to three convolutions, their states moved on where they lie: y = act(bias + sum_j weight[j] input_j), the newest input last.
//!
//! For each i: x_i, y_i `[R, D_i]`, weight_i `[D_i, W]`, bias_i `[D_i]`, pool_i `[slots, D_i, W]`; a convolution that is absent has D_i = 0. slot i32 `[R]`: the
//! row's state (negative: the row is skipped and its outputs not written), all different. Lanes are channels. Grid: `(sum of ceil(D_i / N), R, 1)`.

/// Kernel.
#[cutile::module]
pub mod conv_step {
    use crate::tile::taps::taps::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn conv_step<E: ElementType, const N: i32>(
        x0: *mut E,
        weight0: *mut E,
        bias0: *mut E,
        pool0: *mut E,
        y0: *mut E,
        d0: i32,
        x1: *mut E,
        weight1: *mut E,
        bias1: *mut E,
        pool1: *mut E,
        y1: *mut E,
        d1: i32,
        x2: *mut E,
        weight2: *mut E,
        bias2: *mut E,
        pool2: *mut E,
        y2: *mut E,
        d2: i32,
        slot: *mut i32,
        rows: i32,
        w: i32,
        has_bias: i32,
        silu: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let place: i32 = unsafe { int_at(slot, rows, pid.1) };
        let first: i32 = ceil_div(d0, N);
        let second: i32 = first + ceil_div(d1, N);
        if place >= 0i32 {
            if pid.0 < first {
                unsafe { advance::<E, N>(x0, weight0, bias0, pool0, y0, pid.0, pid.1, place, d0, w, has_bias, silu) };
            }
            if pid.0 >= first {
                if pid.0 < second {
                    unsafe { advance::<E, N>(x1, weight1, bias1, pool1, y1, pid.0 - first, pid.1, place, d1, w, has_bias, silu) };
                }
            }
            if pid.0 >= second {
                unsafe { advance::<E, N>(x2, weight2, bias2, pool2, y2, pid.0 - second, pid.1, place, d2, w, has_bias, silu) };
            }
        }
    }
}
