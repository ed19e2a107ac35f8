//! The gates from their formulas, one number at a time, with parameters' gradients summed over all tokens.

use flashlin_tensor::Real;

use super::DecayGate;

/// A gate's inputs: logits `[tokens, HV, n]` (n = 1, or the channels of a head), `A_log [HV]` (0 when absent) and the
/// logits' bias `[HV, n]` (0 when absent).
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, R> {
    /// The formula.
    pub formula: DecayGate,
    /// HV.
    pub heads: usize,
    /// n.
    pub per_head: usize,
    /// Logits.
    pub x: &'a [R],
    /// Log of the rate.
    pub a_log: Option<&'a [R]>,
    /// Bias of the logits.
    pub dt_bias: Option<&'a [R]>,
}

/// Gradients, each in the shape of its input.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Gradients<R> {
    pub x: Vec<R>,
    pub a_log: Vec<R>,
    pub dt_bias: Vec<R>,
}

impl<R: Real> Inputs<'_, R> {
    /// (head, index into the bias, biased logit, rate) of logit i.
    fn at(&self, i: usize) -> (usize, usize, R, R) {
        let j = i % (self.heads * self.per_head);
        let head = j / self.per_head;
        let z = self.x[i] + self.dt_bias.map_or(R::ZERO, |b| b[j]);
        (head, j, z, self.a_log.map_or(R::ONE, |a| a[head].exp()))
    }
}

/// `-e^A ln(1 + e^z)` or `bound / (1 + e^(-e^A z))`.
pub fn forward<R: Real>(x: &Inputs<R>) -> Vec<R> {
    let value = |i: usize| {
        let (_, _, z, rate) = x.at(i);
        match x.formula {
            DecayGate::Softplus => -rate * (R::ONE + z.exp()).ln(),
            DecayGate::LowerBound(bound) => R::from_f64(bound) / (R::ONE + (-rate * z).exp()),
        }
    };
    (0..x.x.len()).map(value).collect()
}

/// Gradients from that of [`forward`]'s result.
pub fn backward<R: Real>(x: &Inputs<R>, dy: &[R]) -> Gradients<R> {
    let mut grads = Gradients {
        x: vec![R::ZERO; x.x.len()],
        a_log: vec![R::ZERO; x.heads],
        dt_bias: vec![R::ZERO; x.heads * x.per_head],
    };
    for i in 0..dy.len() {
        let (head, j, z, rate) = x.at(i);
        let (by_z, by_a) = match x.formula {
            DecayGate::Softplus => {
                let e = z.exp();
                (-rate * e / (R::ONE + e), -rate * (R::ONE + e).ln())
            }
            DecayGate::LowerBound(bound) => {
                let s = R::ONE / (R::ONE + (-rate * z).exp());
                let by_product = R::from_f64(bound) * s * (R::ONE - s);
                (by_product * rate, by_product * rate * z)
            }
        };
        grads.x[i] = by_z * dy[i];
        grads.dt_bias[j] += by_z * dy[i];
        grads.a_log[head] += by_a * dy[i];
    }
    grads
}

/// `max(-ln(1 + e^-x) / normalizer, clamp)`
pub fn log_sigmoid<R: Real>(x: R, normalizer: f64, clamp: Option<f64>) -> R {
    let g = -(R::ONE + (-x).exp()).ln() / R::from_f64(normalizer);
    clamp.map_or(g, |c| g.max(R::from_f64(c)))
}

/// Derivative of [`log_sigmoid`]: 0 where the clamp holds.
pub fn log_sigmoid_slope<R: Real>(x: R, normalizer: f64, clamp: Option<f64>) -> R {
    if clamp.is_some_and(|c| log_sigmoid(x, normalizer, None) < R::from_f64(c)) {
        return R::ZERO;
    }
    R::ONE / (R::ONE + x.exp()) / R::from_f64(normalizer)
}
