//! A norm of any width, in groups, of every kind, with a residual before it and a gate on either side: what `norm_fwd` has no tile for.
//!
//! `u = x + res`, times act(gate) where the gate comes first; per group `h = (u - mean) r`; `y = h w + bias`, times act(gate) where it comes last.
//! `kind` 0: r = (mean u^2 + eps)^(-1/2), mean 0; 1: r of the variance, with the mean; 2: r = (sum u^2 + eps)^(-1/2), mean 0. `gate_code` 0:
//! none, 1: silu last, 2: sigmoid last, 3: silu first, 4: sigmoid first. x, res, gate, y, sum `[rows, D]`, D = groups size; w, bias f32
//! `[D]`; sum receives x + res where `has_sum`. A block is one group of one row. Grid: `(rows, groups, 1)`.

/// Kernel.
#[cutile::module]
pub mod norm_any_fwd {
    use crate::tile::functions::functions::*;
    use crate::tile::group::group::*;
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn norm_any_fwd<E: ElementType, const N: i32>(
        x: *mut E,
        res: *mut E,
        gate: *mut E,
        w: *mut f32,
        bias: *mut f32,
        y: *mut E,
        sum: *mut E,
        d: i32,
        size: i32,
        kind: i32,
        gate_code: i32,
        has_res: i32,
        has_sum: i32,
        has_w: i32,
        has_bias: i32,
        eps: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let from: i32 = pid.0 * d + pid.1 * size;
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let ends: Tile<i32, { [N] }> = broadcast_scalar(size, const_shape![N]);
        let start: Tile<i32, { [N] }> = broadcast_scalar(from, const_shape![N]);
        let column: Tile<i32, { [N] }> = broadcast_scalar(pid.1 * size, const_shape![N]);
        let steps: i32 = ceil_div(size, N);
        let mut mean: Tile<f32, { [N] }> = none;
        if kind == 1i32 {
            let mut a: Tile<f32, { [N] }> = none;
            for i in 0i32..steps {
                let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
                let m: Tile<bool, { [N] }> = lt_tile(c, ends);
                let u: Tile<f32, { [N] }> =
                    unsafe { argument::<E, N>(x, res, gate, start + c, m, has_res, gate_code) }.reshape(const_shape![N]);
                a = a + u;
            }
            mean = average::<N>(a, size).reshape(const_shape![N]);
        }
        let mut a: Tile<f32, { [N] }> = none;
        for i in 0i32..steps {
            let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
            let m: Tile<bool, { [N] }> = lt_tile(c, ends);
            let u: Tile<f32, { [N] }> =
                unsafe { argument::<E, N>(x, res, gate, start + c, m, has_res, gate_code) }.reshape(const_shape![N]);
            let v: Tile<f32, { [N] }> = select(m, u - mean, none);
            a = a + v * v;
        }
        let r: Tile<f32, { [N] }> = inverse_root::<N>(a, size, kind, eps).reshape(const_shape![N]);
        for i in 0i32..steps {
            let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
            let m: Tile<bool, { [N] }> = lt_tile(c, ends);
            let at: Tile<i32, { [N] }> = start + c;
            if has_sum == 1i32 {
                let none_code: i32 = 0i32;
                let s: Tile<f32, { [N] }> =
                    unsafe { argument::<E, N>(x, res, gate, at, m, has_res, none_code) }.reshape(const_shape![N]);
                let s: Tile<E, { [N] }> = convert_tile(s);
                unsafe { write::<E, N>(sum, at, s, m) };
            }
            let u: Tile<f32, { [N] }> =
                unsafe { argument::<E, N>(x, res, gate, at, m, has_res, gate_code) }.reshape(const_shape![N]);
            let mut h: Tile<f32, { [N] }> = (u - mean) * r;
            if has_w == 1i32 {
                let t: Tile<f32, { [N] }> = unsafe { read_f32::<N>(w, column + c, m) }.reshape(const_shape![N]);
                h = h * t;
            }
            if has_bias == 1i32 {
                let t: Tile<f32, { [N] }> = unsafe { read_f32::<N>(bias, column + c, m) }.reshape(const_shape![N]);
                h = h + t;
            }
            let f: Tile<f32, { [N] }> = unsafe { factor_last::<E, N>(gate, at, m, gate_code) }.reshape(const_shape![N]);
            let o: Tile<E, { [N] }> = convert_tile(h * f);
            unsafe { write::<E, N>(y, at, o, m) };
        }
    }
}
