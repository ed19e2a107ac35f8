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

/// The exponential that [`Real::exp`] means: [`exp_f32`] for f32, the standard library's for f64.
pub(crate) trait Exp {
    fn fast_exp(self) -> Self;
}

impl Exp for f32 {
    #[inline(always)]
    fn fast_exp(self) -> Self {
        exp_f32(self)
    }
}

impl Exp for f64 {
    #[inline(always)]
    fn fast_exp(self) -> Self {
        self.exp()
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
