//! One group of a row in lanes: what a norm normalises, its statistics, and the gate's factors.

/// Groups.
#[cutile::module]
pub mod group {
    use crate::tile::functions::functions::*;
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    /// The sum of all lanes, in each.
    pub fn total<const N: i32>(a: Tile<f32, { [N] }>) -> Tile<f32, { [N] }> {
        let s: Tile<f32, { [] }> = reduce_sum(a, 0i32);
        let s: Tile<f32, { [1] }> = s.reshape(const_shape![1]);
        let t: Tile<f32, { [N] }> = s.broadcast(const_shape![N]);
        t
    }

    /// The same over `size`.
    pub fn average<const N: i32>(a: Tile<f32, { [N] }>, size: i32) -> Tile<f32, { [N] }> {
        let t: Tile<f32, { [N] }> = total::<N>(a).reshape(const_shape![N]);
        let f: f32 = convert_scalar::<f32>(size);
        let d: Tile<f32, { [N] }> = broadcast_scalar(f, const_shape![N]);
        let y: Tile<f32, { [N] }> = true_div(t, d);
        y
    }

    /// (sum a + eps)^(-1/2), the sum over `size` unless `kind` is 2.
    pub fn inverse_root<const N: i32>(a: Tile<f32, { [N] }>, size: i32, kind: i32, eps: f32) -> Tile<f32, { [N] }> {
        let mut t: Tile<f32, { [N] }> = total::<N>(a).reshape(const_shape![N]);
        if kind < 2i32 {
            let f: f32 = convert_scalar::<f32>(size);
            let d: Tile<f32, { [N] }> = broadcast_scalar(f, const_shape![N]);
            t = true_div(t, d);
        }
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let e: Tile<f32, { [N] }> = broadcast_scalar(eps, const_shape![N]);
        let root: Tile<f32, { [N] }> = sqrt(t + e, rounding::NearestEven, ftz::Disabled);
        let y: Tile<f32, { [N] }> = true_div(one, root);
        y
    }

    /// act(gate): silu of the odd codes, sigmoid of the even ones.
    pub unsafe fn factor<E: ElementType, const N: i32>(
        gate: *mut E,
        at: Tile<i32, { [N] }>,
        m: Tile<bool, { [N] }>,
        code: i32,
    ) -> Tile<f32, { [N] }> {
        let g: Tile<E, { [N] }> = unsafe { read::<E, N>(gate, at, m) }.reshape(const_shape![N]);
        let g: Tile<f32, { [N] }> = convert_tile(g);
        let s: Tile<f32, { [N] }> = logistic::<N>(g).reshape(const_shape![N]);
        let mut f: Tile<f32, { [N] }> = s;
        if code == 1i32 {
            f = s * g;
        }
        if code == 3i32 {
            f = s * g;
        }
        f
    }

    /// act(gate) where the gate comes last, else 1.
    pub unsafe fn factor_last<E: ElementType, const N: i32>(
        gate: *mut E,
        at: Tile<i32, { [N] }>,
        m: Tile<bool, { [N] }>,
        code: i32,
    ) -> Tile<f32, { [N] }> {
        let mut f: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        if code == 1i32 {
            f = unsafe { factor::<E, N>(gate, at, m, code) }.reshape(const_shape![N]);
        }
        if code == 2i32 {
            f = unsafe { factor::<E, N>(gate, at, m, code) }.reshape(const_shape![N]);
        }
        f
    }

    /// act'(gate), 0 without one.
    pub unsafe fn gate_slope<E: ElementType, const N: i32>(
        gate: *mut E,
        at: Tile<i32, { [N] }>,
        m: Tile<bool, { [N] }>,
        code: i32,
    ) -> Tile<f32, { [N] }> {
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let mut k: Tile<f32, { [N] }> = none;
        if code > 0i32 {
            let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
            let g: Tile<E, { [N] }> = unsafe { read::<E, N>(gate, at, m) }.reshape(const_shape![N]);
            let g: Tile<f32, { [N] }> = convert_tile(g);
            let s: Tile<f32, { [N] }> = logistic::<N>(g).reshape(const_shape![N]);
            let r: Tile<f32, { [N] }> = logistic::<N>(none - g).reshape(const_shape![N]);
            k = s * r;
            if code == 1i32 {
                k = s * (one + g * r);
            }
            if code == 3i32 {
                k = s * (one + g * r);
            }
        }
        k
    }

    /// What is normalised: x (+ res), times act(gate) where the gate comes first; 0 outside.
    pub unsafe fn argument<E: ElementType, const N: i32>(
        x: *mut E,
        res: *mut E,
        gate: *mut E,
        at: Tile<i32, { [N] }>,
        m: Tile<bool, { [N] }>,
        has_res: i32,
        code: i32,
    ) -> Tile<f32, { [N] }> {
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let v: Tile<E, { [N] }> = unsafe { read::<E, N>(x, at, m) }.reshape(const_shape![N]);
        let mut u: Tile<f32, { [N] }> = convert_tile(v);
        if has_res == 1i32 {
            let t: Tile<E, { [N] }> = unsafe { read::<E, N>(res, at, m) }.reshape(const_shape![N]);
            let t: Tile<f32, { [N] }> = convert_tile(t);
            u = u + t;
        }
        if code > 2i32 {
            let f: Tile<f32, { [N] }> = unsafe { factor::<E, N>(gate, at, m, code) }.reshape(const_shape![N]);
            u = u * f;
        }
        let y: Tile<f32, { [N] }> = select(m, u, none);
        y
    }
}
