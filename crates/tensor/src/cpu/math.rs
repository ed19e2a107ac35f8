//! Scalar functions without branches or calls, so that loops over them vectorise; the same bits on every
//! machine. Derived functions (sigmoid, softplus, ...) exist once, generic over f32 and f64.

use crate::Real;

/// e^x for f32 within 2 ulp; flushes to 0 below the smallest normal result, infinity above the largest.
#[inline(always)]
pub fn exp_f32(x: f32) -> f32 {
    const LOG2E: f32 = std::f32::consts::LOG2_E;
    // Cody-Waite: ln 2 in two parts, the first exact in few bits.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest integer
    let c = x.clamp(-87.336, 88.722);
    let shifted = c * LOG2E + ROUND;
    let n = shifted - ROUND;
    let r = (c - n * LN2_HI) - n * LN2_LO;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = (p * r * r + r) + 1.0;
    // The integer is in the low bits of `shifted` (a cast would saturate, which costs). 2^n in two factors, so that
    // n = 128 does not overflow before the product.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let pow2 = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    let y = y * pow2(half) * pow2(n.wrapping_sub(half));
    let y = if x < -87.336 { 0.0 } else { y };
    let y = if x > 88.722_83 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// Natural logarithm for f32 within 2 ulp; -infinity at 0, NaN below.
#[inline(always)]
pub fn ln_f32(x: f32) -> f32 {
    // Subnormals are scaled into the normal range first.
    let tiny = x < f32::MIN_POSITIVE;
    let y = ln_normal(if tiny { x * 8_388_608.0 } else { x }, if tiny { -23.0 } else { 0.0 });
    ln_edges(x, y)
}

/// ln(1 + x) for f32 within 3 ulp, accurate near 0; -infinity at -1, NaN below.
#[inline(always)]
pub fn ln_1p_f32(x: f32) -> f32 {
    let u = 1.0 + x;
    // What the addition lost comes back to first order.
    let lost = if x < 1.0 { x - (u - 1.0) } else { 1.0 - (u - x) };
    ln_edges(u, ln_normal(u, 0.0) + lost / u)
}

/// ln(x 2^scale) of a positive, normal x (S. L. Moshier's polynomial, Cephes).
#[inline(always)]
fn ln_normal(x: f32, scale: f32) -> f32 {
    // x = m 2^e with m in [sqrt(1/2), sqrt(2)).
    const ROOT_HALF: u32 = 0x3f35_04f3;
    let bits = x.to_bits().wrapping_sub(ROOT_HALF);
    let e = ((bits as i32) >> 23) as f32 + scale;
    let f = f32::from_bits((bits & 0x007f_ffff).wrapping_add(ROOT_HALF)) - 1.0;
    let z = f * f;
    let p = 7.037_683_6e-2;
    let p = p * f - 1.151_461e-1;
    let p = p * f + 1.167_699_9e-1;
    let p = p * f - 1.242_014_1e-1;
    let p = p * f + 1.424_932_3e-1;
    let p = p * f - 1.666_805_8e-1;
    let p = p * f + 2.000_071_4e-1;
    let p = p * f - 2.499_999_4e-1;
    let p = p * f + 3.333_333e-1;
    let y = (p * f * z + e * -2.121_944_4e-4) - 0.5 * z;
    (f + y) + e * 0.693_359_4
}

/// `y` as the logarithm of `x`, but for the arguments that have none.
#[inline(always)]
fn ln_edges(x: f32, y: f32) -> f32 {
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

/// Hyperbolic tangent for f32 within 3 ulp.
#[inline(always)]
pub fn tanh_f32(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let p = -5.704_988_7e-3;
    let p = p * z + 2.063_909e-2;
    let p = p * z - 5.373_971_6e-2;
    let p = p * z + 1.333_144_2e-1;
    let p = p * z - 3.333_328e-1;
    let near = p * z * x + x;
    let far = (1.0 - 2.0 / (exp_f32(2.0 * a) + 1.0)).copysign(x);
    let y = if a < 0.625 { near } else { far };
    if x.is_nan() { x } else { y }
}

/// The functions that [`Real`] means: those above for f32, the standard library's for f64.
pub(crate) trait Fast {
    fn fast_exp(self) -> Self;
    fn fast_ln(self) -> Self;
    fn fast_ln_1p(self) -> Self;
    fn fast_tanh(self) -> Self;
}

impl Fast for f32 {
    #[inline(always)]
    fn fast_exp(self) -> Self {
        exp_f32(self)
    }
    #[inline(always)]
    fn fast_ln(self) -> Self {
        ln_f32(self)
    }
    #[inline(always)]
    fn fast_ln_1p(self) -> Self {
        ln_1p_f32(self)
    }
    #[inline(always)]
    fn fast_tanh(self) -> Self {
        tanh_f32(self)
    }
}

impl Fast for f64 {
    #[inline(always)]
    fn fast_exp(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn fast_ln(self) -> Self {
        self.ln()
    }
    #[inline(always)]
    fn fast_ln_1p(self) -> Self {
        self.ln_1p()
    }
    #[inline(always)]
    fn fast_tanh(self) -> Self {
        self.tanh()
    }
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (-x).exp())
}

/// x * sigmoid(x), also called swish.
#[inline(always)]
pub fn silu<R: Real>(x: R) -> R {
    x * sigmoid(x)
}

/// ln(1 + e^x) without overflow.
#[inline(always)]
pub fn softplus<R: Real>(x: R) -> R {
    x.max(R::ZERO) + (-x.abs()).exp().ln_1p()
}

/// ln sigmoid(x) = -softplus(-x)
#[inline(always)]
pub fn log_sigmoid<R: Real>(x: R) -> R {
    -softplus(-x)
}

/// The error function to about 1e-16 (W. J. Cody's method: a Maclaurin series near 0, a continued fraction far out).
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a > 6.0 {
        return x.signum();
    }
    let scale = 2.0 / std::f64::consts::PI.sqrt();
    if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-18 * sum.abs() && n < 200.0 {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        return x.signum() * scale * sum * if a == 0.0 { 0.0 } else { 1.0 };
    }
    // erfc(a) = exp(-a^2) / (sqrt(pi) (a + (1/2)/(a + 1/(a + (3/2)/(a + ...)))))
    let mut f = a;
    for k in (1..=120).rev() {
        f = a + 0.5 * k as f64 / f;
    }
    x.signum() * (1.0 - (-a * a).exp() / (f * std::f64::consts::PI.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_total() {
        let mut worst = 0f64;
        for i in -870_000..887_000 {
            let x = i as f32 * 1e-4;
            let want = (x as f64).exp();
            worst = worst.max((exp_f32(x) as f64 - want).abs() / want);
        }
        assert!(worst < 2.4e-7, "{worst}");
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-1e9), 0.0);
        assert_eq!(exp_f32(89.0), f32::INFINITY);
        assert!(exp_f32(88.7).is_finite());
        assert!(exp_f32(f32::NAN).is_nan());
    }

    /// Largest relative error over `n` arguments.
    fn worst(n: u32, x: impl Fn(u32) -> f32, f: fn(f32) -> f32, want: fn(f64) -> f64) -> f64 {
        let err = |x: f32| ((f(x) as f64 - want(x as f64)) / want(x as f64)).abs();
        (0..n).map(x).filter(|&x| want(x as f64) != 0.0).map(err).fold(0.0, f64::max)
    }

    #[test]
    fn logarithms_are_accurate_and_total() {
        // Every sixteenth of a binade, with steps within; all binades, subnormals too.
        let all = |i: u32| f32::from_bits(i * 1009 % 0x7f80_0000 + 1);
        assert!(worst(2_000_000, all, ln_f32, f64::ln) < 2.4e-7);
        assert!(worst(400_000, |i| 0.9 + i as f32 * 5e-7, ln_f32, f64::ln) < 2.4e-7);
        assert!(worst(2_000_000, all, ln_1p_f32, f64::ln_1p) < 3.6e-7);
        assert!(worst(1_000_000, |i| i as f32 * 1e-6 - 0.999_999, ln_1p_f32, f64::ln_1p) < 3.6e-7);
        for (f, zero) in [(ln_f32 as fn(f32) -> f32, 0.0), (ln_1p_f32, -1.0)] {
            assert_eq!(f(zero), f32::NEG_INFINITY);
            assert_eq!(f(f32::INFINITY), f32::INFINITY);
            assert!(f(zero - 0.5).is_nan() && f(f32::NAN).is_nan() && f(f32::NEG_INFINITY).is_nan());
        }
        assert_eq!((ln_f32(1.0), ln_1p_f32(0.0), ln_1p_f32(1e-30)), (0.0, 0.0, 1e-30));
    }

    #[test]
    fn tanh_is_accurate_and_total() {
        let x = |i: u32| (i as f32 - 600_000.0) * 2e-5;
        assert!(worst(1_200_000, x, tanh_f32, f64::tanh) < 3.6e-7);
        assert_eq!((tanh_f32(1e9), tanh_f32(f32::NEG_INFINITY), tanh_f32(0.0)), (1.0, -1.0, 0.0));
        assert_eq!(tanh_f32(1e-20), 1e-20);
        assert!(tanh_f32(f32::NAN).is_nan());
    }

    #[test]
    fn erf_matches_known_values() {
        for (x, y) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
            (-1.5, -0.966_105_146_475_310_8),
        ] {
            assert!((erf(x) - y).abs() < 1e-14, "erf({x}) = {}", erf(x));
        }
    }

    #[test]
    fn softplus_and_sigmoid_at_the_edges() {
        assert_eq!(softplus(1000f32), 1000.0);
        assert_eq!(softplus(-1000f32), 0.0);
        assert_eq!(sigmoid(-1000f32), 0.0);
        assert_eq!(sigmoid(1000f32), 1.0);
        assert_eq!(log_sigmoid(-1000f64), -1000.0);
    }
}
