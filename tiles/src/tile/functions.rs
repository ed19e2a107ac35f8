//! Activations of one number and their slopes, chosen by a code at run time: a block takes one branch.
//!
//! Codes: 0 max(x, 0), 1 sigmoid, 2 ln sigmoid, 3 x sigmoid(x), 4 max(x, 0)^2, 5 GELU by tanh, 6 GELU by erf, 7 ln(1 + e^(p x)) / p and x where
//! p x > q, 8 p ln sigmoid(x) but not below q. Far out on both sides nothing cancels: every tail is computed from its small end.

/// Functions.
#[cutile::module]
pub mod functions {
    use cutile::core::*;

    /// `e^x`, by one instruction and a few roundings: an error of 1e-7 (1 + |x|).
    pub fn exp_fast<const N: i32>(x: Tile<f32, { [N] }>) -> Tile<f32, { [N] }> {
        let c: Tile<f32, { [N] }> = constant(1.4426950409f32, const_shape![N]);
        let y: Tile<f32, { [N] }> = exp2(x * c, ftz::Enabled);
        y
    }

    /// `1 / (1 + e^-x)`.
    pub fn logistic<const N: i32>(x: Tile<f32, { [N] }>) -> Tile<f32, { [N] }> {
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let z: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let e: Tile<f32, { [N] }> = exp_fast::<N>(z - x).reshape(const_shape![N]);
        let y: Tile<f32, { [N] }> = divf(one, one + e, rounding::Approx, ftz::Enabled);
        y
    }

    /// `ln(1 + e^x)`: max(x, 0) + ln(1 + e), e = e^-|x|, with the logarithm exact where e vanishes beside 1.
    pub fn soft_plus<const N: i32>(x: Tile<f32, { [N] }>) -> Tile<f32, { [N] }> {
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let z: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let e: Tile<f32, { [N] }> = exp(z - absf(x));
        let u: Tile<f32, { [N] }> = one + e;
        let lost: Tile<bool, { [N] }> = eq_tile(u, one);
        // ln(u) e / (u - 1) undoes the rounding of u; the divisor is kept from 0 where its quotient is not used.
        let d: Tile<f32, { [N] }> = select(lost, one, u - one);
        let l: Tile<f32, { [N] }> = true_div(log(u) * e, d);
        let l: Tile<f32, { [N] }> = select(lost, e, l);
        let m: Tile<f32, { [N] }> = maxf(x, z, nan::Disabled, ftz::Disabled);
        let y: Tile<f32, { [N] }> = m + l;
        y
    }

    /// Twice the argument of the tanh in GELU's approximation: it is x sigmoid of this.
    pub fn gelu_argument<const N: i32>(x: Tile<f32, { [N] }>) -> Tile<f32, { [N] }> {
        let a: Tile<f32, { [N] }> = constant(1.5957691216f32, const_shape![N]);
        let b: Tile<f32, { [N] }> = constant(0.044715f32, const_shape![N]);
        let y: Tile<f32, { [N] }> = a * (x + b * x * x * x);
        y
    }

    /// The normal distribution function: erfc(-x / sqrt 2) / 2, erfc by a Chebyshev fit of 1.2e-7 relative error (Numerical Recipes, 6.2).
    pub fn normal_cdf<const N: i32>(x: Tile<f32, { [N] }>) -> Tile<f32, { [N] }> {
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let zero: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let half: Tile<f32, { [N] }> = constant(0.5f32, const_shape![N]);
        let root: Tile<f32, { [N] }> = constant(0.70710678f32, const_shape![N]);
        let z: Tile<f32, { [N] }> = absf(x) * root;
        let t: Tile<f32, { [N] }> = true_div(one, one + half * z);
        let c9: Tile<f32, { [N] }> = constant(0.17087277f32, const_shape![N]);
        let c8: Tile<f32, { [N] }> = constant(-0.82215223f32, const_shape![N]);
        let c7: Tile<f32, { [N] }> = constant(1.48851587f32, const_shape![N]);
        let c6: Tile<f32, { [N] }> = constant(-1.13520398f32, const_shape![N]);
        let c5: Tile<f32, { [N] }> = constant(0.27886807f32, const_shape![N]);
        let c4: Tile<f32, { [N] }> = constant(-0.18628806f32, const_shape![N]);
        let c3: Tile<f32, { [N] }> = constant(0.09678418f32, const_shape![N]);
        let c2: Tile<f32, { [N] }> = constant(0.37409196f32, const_shape![N]);
        let c1: Tile<f32, { [N] }> = constant(1.00002368f32, const_shape![N]);
        let c0: Tile<f32, { [N] }> = constant(-1.26551223f32, const_shape![N]);
        let p: Tile<f32, { [N] }> = c7 + t * (c8 + t * c9);
        let p: Tile<f32, { [N] }> = c4 + t * (c5 + t * (c6 + t * p));
        let p: Tile<f32, { [N] }> = c0 + t * (c1 + t * (c2 + t * (c3 + t * p)));
        let tail: Tile<f32, { [N] }> = half * t * exp(p - z * z);
        let y: Tile<f32, { [N] }> = select(gt_tile(x, zero), one - tail, tail);
        y
    }

    /// `f(x)` of this code.
    pub fn activated<const N: i32>(x: Tile<f32, { [N] }>, code: i32, p: f32, q: f32) -> Tile<f32, { [N] }> {
        let zero: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let mut y: Tile<f32, { [N] }> = maxf(x, zero, nan::Disabled, ftz::Disabled);
        if code == 1i32 {
            y = logistic::<N>(x).reshape(const_shape![N]);
        }
        if code == 2i32 {
            let s: Tile<f32, { [N] }> = soft_plus::<N>(zero - x).reshape(const_shape![N]);
            y = zero - s;
        }
        if code == 3i32 {
            let s: Tile<f32, { [N] }> = logistic::<N>(x).reshape(const_shape![N]);
            y = x * s;
        }
        if code == 4i32 {
            y = y * y;
        }
        if code == 5i32 {
            let a: Tile<f32, { [N] }> = gelu_argument::<N>(x).reshape(const_shape![N]);
            let s: Tile<f32, { [N] }> = logistic::<N>(a).reshape(const_shape![N]);
            y = x * s;
        }
        if code == 6i32 {
            let s: Tile<f32, { [N] }> = normal_cdf::<N>(x).reshape(const_shape![N]);
            y = x * s;
        }
        let pt: Tile<f32, { [N] }> = broadcast_scalar(p, const_shape![N]);
        let qt: Tile<f32, { [N] }> = broadcast_scalar(q, const_shape![N]);
        if code == 7i32 {
            let px: Tile<f32, { [N] }> = pt * x;
            let s: Tile<f32, { [N] }> = soft_plus::<N>(px).reshape(const_shape![N]);
            y = select(gt_tile(px, qt), x, true_div(s, pt));
        }
        if code == 8i32 {
            let s: Tile<f32, { [N] }> = soft_plus::<N>(zero - x).reshape(const_shape![N]);
            let g: Tile<f32, { [N] }> = zero - pt * s;
            y = select(lt_tile(g, qt), qt, g);
        }
        y
    }

    /// `f'(x)` of this code.
    pub fn activated_slope<const N: i32>(x: Tile<f32, { [N] }>, code: i32, p: f32, q: f32) -> Tile<f32, { [N] }> {
        let zero: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let mut y: Tile<f32, { [N] }> = select(gt_tile(x, zero), one, zero);
        if code == 4i32 {
            y = (y + y) * x;
        }
        if code == 1i32 {
            let s: Tile<f32, { [N] }> = logistic::<N>(x).reshape(const_shape![N]);
            let r: Tile<f32, { [N] }> = logistic::<N>(zero - x).reshape(const_shape![N]);
            y = s * r;
        }
        if code == 2i32 {
            y = logistic::<N>(zero - x).reshape(const_shape![N]);
        }
        if code == 3i32 {
            let s: Tile<f32, { [N] }> = logistic::<N>(x).reshape(const_shape![N]);
            let r: Tile<f32, { [N] }> = logistic::<N>(zero - x).reshape(const_shape![N]);
            y = s * (one + x * r);
        }
        if code == 5i32 {
            let a: Tile<f32, { [N] }> = gelu_argument::<N>(x).reshape(const_shape![N]);
            let s: Tile<f32, { [N] }> = logistic::<N>(a).reshape(const_shape![N]);
            let r: Tile<f32, { [N] }> = logistic::<N>(zero - a).reshape(const_shape![N]);
            let c: Tile<f32, { [N] }> = constant(1.5957691216f32, const_shape![N]);
            let b: Tile<f32, { [N] }> = constant(0.134145f32, const_shape![N]);
            y = s + x * s * r * c * (one + b * x * x);
        }
        if code == 6i32 {
            let s: Tile<f32, { [N] }> = normal_cdf::<N>(x).reshape(const_shape![N]);
            let h: Tile<f32, { [N] }> = constant(-0.5f32, const_shape![N]);
            let c: Tile<f32, { [N] }> = constant(0.39894228f32, const_shape![N]);
            y = s + x * exp(x * x * h) * c;
        }
        let pt: Tile<f32, { [N] }> = broadcast_scalar(p, const_shape![N]);
        let qt: Tile<f32, { [N] }> = broadcast_scalar(q, const_shape![N]);
        if code == 7i32 {
            let px: Tile<f32, { [N] }> = pt * x;
            let s: Tile<f32, { [N] }> = logistic::<N>(px).reshape(const_shape![N]);
            y = select(gt_tile(px, qt), one, s);
        }
        if code == 8i32 {
            let s: Tile<f32, { [N] }> = soft_plus::<N>(zero - x).reshape(const_shape![N]);
            let g: Tile<f32, { [N] }> = zero - pt * s;
            let r: Tile<f32, { [N] }> = logistic::<N>(zero - x).reshape(const_shape![N]);
            y = select(lt_tile(g, qt), zero, pt * r);
        }
        y
    }
}
