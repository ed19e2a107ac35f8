//! The reverse of `norm_any_fwd`. With d the gradient before a last gate: `du = r (d w - mean(d w) - h mean(d w h))` (the first mean only for
//! kind 1, sums for means in kind 2); dx = du (times act(gate) where it came first) + dsum. The statistics are taken again.
//!
//! x is what the forward pass took them of: x + res. gate, dy, dsum, dx, dgate `[rows, D]`; w, bias f32 `[D]`; dw, db f32 `[rows, D]` receive each
//! row's part of the parameters' gradients, where `has_dw` and `has_db`. Grid: `(rows, groups, 1)`.

/// Kernel.
#[cutile::module]
pub mod norm_any_bwd {
    use crate::tile::functions::functions::*;
    use crate::tile::group::group::*;
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn norm_any_bwd<E: ElementType, const N: i32>(
        x: *mut E,
        gate: *mut E,
        w: *mut f32,
        bias: *mut f32,
        dy: *mut E,
        dsum: *mut E,
        dx: *mut E,
        dgate: *mut E,
        dw: *mut f32,
        db: *mut f32,
        d: i32,
        size: i32,
        kind: i32,
        gate_code: i32,
        has_w: i32,
        has_bias: i32,
        has_dsum: i32,
        has_dw: i32,
        has_db: i32,
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
        let zero: i32 = 0i32;
        let mut mean: Tile<f32, { [N] }> = none;
        if kind == 1i32 {
            let mut a: Tile<f32, { [N] }> = none;
            for i in 0i32..steps {
                let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
                let m: Tile<bool, { [N] }> = lt_tile(c, ends);
                let u: Tile<f32, { [N] }> =
                    unsafe { argument::<E, N>(x, x, gate, start + c, m, zero, gate_code) }.reshape(const_shape![N]);
                a = a + u;
            }
            mean = average::<N>(a, size).reshape(const_shape![N]);
        }
        let mut a: Tile<f32, { [N] }> = none;
        for i in 0i32..steps {
            let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
            let m: Tile<bool, { [N] }> = lt_tile(c, ends);
            let u: Tile<f32, { [N] }> =
                unsafe { argument::<E, N>(x, x, gate, start + c, m, zero, gate_code) }.reshape(const_shape![N]);
            let v: Tile<f32, { [N] }> = select(m, u - mean, none);
            a = a + v * v;
        }
        let r: Tile<f32, { [N] }> = inverse_root::<N>(a, size, kind, eps).reshape(const_shape![N]);
        let mut along: Tile<f32, { [N] }> = none;
        let mut level: Tile<f32, { [N] }> = none;
        for i in 0i32..steps {
            let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
            let m: Tile<bool, { [N] }> = lt_tile(c, ends);
            let at: Tile<i32, { [N] }> = start + c;
            let u: Tile<f32, { [N] }> =
                unsafe { argument::<E, N>(x, x, gate, at, m, zero, gate_code) }.reshape(const_shape![N]);
            let h: Tile<f32, { [N] }> = select(m, (u - mean) * r, none);
            let f: Tile<f32, { [N] }> = unsafe { factor_last::<E, N>(gate, at, m, gate_code) }.reshape(const_shape![N]);
            let g: Tile<E, { [N] }> = unsafe { read::<E, N>(dy, at, m) }.reshape(const_shape![N]);
            let g: Tile<f32, { [N] }> = convert_tile(g);
            let mut g: Tile<f32, { [N] }> = select(m, g * f, none);
            if has_w == 1i32 {
                let t: Tile<f32, { [N] }> = unsafe { read_f32::<N>(w, column + c, m) }.reshape(const_shape![N]);
                g = select(m, g * t, none);
            }
            along = along + g * h;
            level = level + g;
        }
        let mut along: Tile<f32, { [N] }> = total::<N>(along).reshape(const_shape![N]);
        let mut base: Tile<f32, { [N] }> = none;
        let fsize: f32 = convert_scalar::<f32>(size);
        let sizes: Tile<f32, { [N] }> = broadcast_scalar(fsize, const_shape![N]);
        if kind < 2i32 {
            along = true_div(along, sizes);
        }
        if kind == 1i32 {
            base = average::<N>(level, size).reshape(const_shape![N]);
        }
        for i in 0i32..steps {
            let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
            let m: Tile<bool, { [N] }> = lt_tile(c, ends);
            let at: Tile<i32, { [N] }> = start + c;
            let u: Tile<f32, { [N] }> =
                unsafe { argument::<E, N>(x, x, gate, at, m, zero, gate_code) }.reshape(const_shape![N]);
            let h: Tile<f32, { [N] }> = (u - mean) * r;
            let g: Tile<E, { [N] }> = unsafe { read::<E, N>(dy, at, m) }.reshape(const_shape![N]);
            let g: Tile<f32, { [N] }> = convert_tile(g);
            let mut t: Tile<f32, { [N] }> = one;
            let mut b: Tile<f32, { [N] }> = none;
            if has_w == 1i32 {
                t = unsafe { read_f32::<N>(w, column + c, m) }.reshape(const_shape![N]);
            }
            if has_bias == 1i32 {
                b = unsafe { read_f32::<N>(bias, column + c, m) }.reshape(const_shape![N]);
            }
            let f: Tile<f32, { [N] }> = unsafe { factor_last::<E, N>(gate, at, m, gate_code) }.reshape(const_shape![N]);
            let k: Tile<f32, { [N] }> = unsafe { gate_slope::<E, N>(gate, at, m, gate_code) }.reshape(const_shape![N]);
            let gf: Tile<f32, { [N] }> = g * f;
            if has_dw == 1i32 {
                unsafe { write_f32::<N>(dw, at, gf * h, m) };
            }
            if has_db == 1i32 {
                unsafe { write_f32::<N>(db, at, gf, m) };
            }
            let mut du: Tile<f32, { [N] }> = (gf * t - base - h * along) * r;
            if gate_code > 0i32 {
                let mut dg: Tile<f32, { [N] }> = g * (h * t + b) * k;
                if gate_code > 2i32 {
                    let s: Tile<f32, { [N] }> =
                        unsafe { argument::<E, N>(x, x, gate, at, m, zero, zero) }.reshape(const_shape![N]);
                    dg = du * s * k;
                    let p: Tile<f32, { [N] }> = unsafe { factor::<E, N>(gate, at, m, gate_code) }.reshape(const_shape![N]);
                    du = du * p;
                }
                let o: Tile<E, { [N] }> = convert_tile(dg);
                unsafe { write::<E, N>(dgate, at, o, m) };
            }
            if has_dsum == 1i32 {
                let s: Tile<E, { [N] }> = unsafe { read::<E, N>(dsum, at, m) }.reshape(const_shape![N]);
                let s: Tile<f32, { [N] }> = convert_tile(s);
                du = du + s;
            }
            let o: Tile<E, { [N] }> = convert_tile(du);
            unsafe { write::<E, N>(dx, at, o, m) };
        }
    }
}
