//! The activations as textbooks write them, one number at a time: the oracle of the vectorised loops.
//!
//! No function is shared with the fast path: sigmoid, softplus and the error function are written again, and slopes are
//! derived from these formulas (a test holds them against finite differences in f64).

use flashlin_tensor::Real;

use super::Activation;

fn lit<R: Real>(x: f64) -> R {
    R::from_f64(x)
}

/// `1 / (1 + e^-x)`
pub fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (-x).exp())
}

/// `2 / sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!`: all terms have one sign, so nothing cancels.
fn erf<R: Real>(x: R) -> R {
    if x.abs() > lit(7.0) {
        return if x > R::ZERO { R::ONE } else { -R::ONE };
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..300 {
        term *= lit::<R>(2.0) * x * x / lit(2.0 * n as f64 + 1.0);
        sum += term;
    }
    lit::<R>(2.0 / std::f64::consts::PI.sqrt()) * (-x * x).exp() * sum
}

/// The argument of the tanh in GELU's approximation, and its derivative.
fn gelu_argument<R: Real>(x: R) -> (R, R) {
    let c = lit::<R>((2.0 / std::f64::consts::PI).sqrt());
    let cubic = lit::<R>(0.044715);
    (c * (x + cubic * x * x * x), c * (R::ONE + lit::<R>(3.0) * cubic * x * x))
}

fn normal_cdf<R: Real>(x: R) -> R {
    lit::<R>(0.5) * (R::ONE + erf(x / lit(2f64.sqrt())))
}

/// `act(x)`
pub fn value<R: Real>(act: Activation, x: R) -> R {
    match act {
        Activation::Relu => x.max(R::ZERO),
        Activation::Sigmoid => sigmoid(x),
        Activation::LogSigmoid => -(R::ONE + (-x).exp()).ln(),
        Activation::Silu => x * sigmoid(x),
        Activation::SqRelu => x.max(R::ZERO) * x.max(R::ZERO),
        Activation::Gelu => lit::<R>(0.5) * x * (R::ONE + gelu_argument(x).0.tanh()),
        Activation::GeluErf => x * normal_cdf(x),
    }
}

/// `act'(x)`
pub fn slope<R: Real>(act: Activation, x: R) -> R {
    let s = sigmoid(x);
    match act {
        Activation::Relu => lit(if x > R::ZERO { 1.0 } else { 0.0 }),
        Activation::Sigmoid => s * (R::ONE - s),
        Activation::LogSigmoid => R::ONE - s,
        Activation::Silu => s + x * s * (R::ONE - s),
        Activation::SqRelu => lit::<R>(2.0) * x.max(R::ZERO),
        Activation::Gelu => {
            let (u, du) = gelu_argument(x);
            let t = u.tanh();
            lit::<R>(0.5) * (R::ONE + t) + lit::<R>(0.5) * x * (R::ONE - t * t) * du
        }
        Activation::GeluErf => {
            let density = (-x * x / lit(2.0)).exp() / lit((2.0 * std::f64::consts::PI).sqrt());
            normal_cdf(x) + x * density
        }
    }
}

/// `ln(1 + e^(beta x)) / beta`, and x where `beta x > threshold`.
pub fn softplus<R: Real>(x: R, beta: f64, threshold: f64) -> R {
    let z = x * lit(beta);
    if z > lit(threshold) { x } else { (R::ONE + z.exp()).ln() / lit(beta) }
}

/// Derivative of [`softplus`] by x.
pub fn softplus_slope<R: Real>(x: R, beta: f64, threshold: f64) -> R {
    let z = x * lit(beta);
    if z > lit(threshold) { R::ONE } else { sigmoid(z) }
}

/// `act(gate) up`
pub fn glu<R: Real>(act: Activation, gate: &[R], up: &[R]) -> Vec<R> {
    gate.iter().zip(up).map(|(&g, &u)| value(act, g) * u).collect()
}

/// Gradients of gate and up from that of [`glu`]'s result.
pub fn glu_backward<R: Real>(act: Activation, gate: &[R], up: &[R], dy: &[R]) -> [Vec<R>; 2] {
    let at = |i: usize| (slope(act, gate[i]) * up[i] * dy[i], value(act, gate[i]) * dy[i]);
    let (d_gate, d_up) = (0..dy.len()).map(at).unzip();
    [d_gate, d_up]
}
