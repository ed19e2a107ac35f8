//! The norms from their definition, row by row: the oracle of the vectorised kernels.

use flashlin_tensor::Real;

use super::NormKind;
use crate::activation::{Activation, reference as act};

/// What is computed, apart from the data.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Statistic.
    pub kind: NormKind,
    /// Equal parts of a row with statistics of their own.
    pub groups: usize,
    /// Added under the root.
    pub eps: f64,
    /// Activation of the gate, and whether the gate multiplies before the norm.
    pub gate: Option<(Activation, bool)>,
    /// D.
    pub width: usize,
}

/// Inputs: rows `[.., D]` and parameters `[D]`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Inputs<'a, R> {
    pub x: &'a [R],
    pub weight: Option<&'a [R]>,
    pub bias: Option<&'a [R]>,
    pub residual: Option<&'a [R]>,
    /// Present where the spec has a gate.
    pub gate: Option<&'a [R]>,
}

/// Gradients in the shapes of the inputs; those of absent inputs are meaningless.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Gradients<R> {
    pub x: Vec<R>,
    pub weight: Vec<R>,
    pub bias: Vec<R>,
    pub residual: Vec<R>,
    pub gate: Vec<R>,
}

/// One group after its statistics: x-hat and `1 / root`.
struct Normed<R> {
    hat: Vec<R>,
    inverse: R,
    /// What the squares were divided by.
    n: R,
}

impl Spec {
    fn size(&self) -> usize {
        self.width / self.groups
    }

    fn normed<R: Real>(&self, u: &[R]) -> Normed<R> {
        let size = R::from_f64(u.len() as f64);
        let mean = if self.kind == NormKind::Layer { u.iter().copied().sum::<R>() / size } else { R::ZERO };
        let n = if self.kind == NormKind::L2 { R::ONE } else { size };
        let squares: R = u.iter().map(|&u| (u - mean) * (u - mean)).sum();
        let inverse = R::ONE / (squares / n + R::from_f64(self.eps)).sqrt();
        Normed { hat: u.iter().map(|&u| (u - mean) * inverse).collect(), inverse, n }
    }

    /// act(gate) at element i, 1 without a gate.
    fn factor<R: Real>(&self, x: &Inputs<R>, i: usize) -> R {
        match (self.gate, x.gate) {
            (Some((f, _)), Some(gate)) => act::value(f, gate[i]),
            _ => R::ONE,
        }
    }

    fn before(&self) -> bool {
        self.gate.is_some_and(|(_, before)| before)
    }

    /// What is normalised.
    fn argument<R: Real>(&self, x: &Inputs<R>, i: usize) -> R {
        let sum = x.x[i] + x.residual.map_or(R::ZERO, |r| r[i]);
        if self.before() { sum * self.factor(x, i) } else { sum }
    }
}

/// y, and x + residual.
pub fn forward<R: Real>(s: &Spec, x: &Inputs<R>) -> (Vec<R>, Vec<R>) {
    let mut y = Vec::with_capacity(x.x.len());
    for start in (0..x.x.len()).step_by(s.size()) {
        let u: Vec<R> = (start..start + s.size()).map(|i| s.argument(x, i)).collect();
        for (i, hat) in (start..).zip(s.normed(&u).hat) {
            let c = i % s.width;
            let affine = hat * x.weight.map_or(R::ONE, |w| w[c]) + x.bias.map_or(R::ZERO, |b| b[c]);
            y.push(if s.before() { affine } else { affine * s.factor(x, i) });
        }
    }
    let sum = (0..x.x.len()).map(|i| x.x[i] + x.residual.map_or(R::ZERO, |r| r[i])).collect();
    (y, sum)
}

/// Gradients from those of y and, where it was returned, of x + residual.
pub fn backward<R: Real>(s: &Spec, x: &Inputs<R>, dy: &[R], d_sum: Option<&[R]>) -> Gradients<R> {
    let zeros = |n: usize| vec![R::ZERO; n];
    let mut g = Gradients {
        x: zeros(x.x.len()),
        weight: zeros(s.width),
        bias: zeros(s.width),
        residual: Vec::new(),
        gate: zeros(x.x.len()),
    };
    for start in (0..x.x.len()).step_by(s.size()) {
        let u: Vec<R> = (start..start + s.size()).map(|i| s.argument(x, i)).collect();
        let normed = s.normed(&u);
        let mut d_hat = Vec::with_capacity(u.len());
        for (i, &hat) in (start..).zip(&normed.hat) {
            let c = i % s.width;
            let (w, b) = (x.weight.map_or(R::ONE, |w| w[c]), x.bias.map_or(R::ZERO, |b| b[c]));
            let mut d = dy[i];
            if let (Some((f, false)), Some(gate)) = (s.gate, x.gate) {
                g.gate[i] = d * (hat * w + b) * act::slope(f, gate[i]);
                d *= s.factor(x, i);
            }
            g.weight[c] += d * hat;
            g.bias[c] += d;
            d_hat.push(d * w);
        }
        let size = R::from_f64(u.len() as f64);
        let mean = if s.kind == NormKind::Layer { d_hat.iter().copied().sum::<R>() / size } else { R::ZERO };
        let along: R = d_hat.iter().zip(&normed.hat).map(|(&d, &h)| d * h).sum();
        for (i, (&d, &hat)) in (start..).zip(d_hat.iter().zip(&normed.hat)) {
            let mut du = (d - mean - hat * along / normed.n) * normed.inverse;
            if let (Some((f, true)), Some(gate)) = (s.gate, x.gate) {
                let sum = x.x[i] + x.residual.map_or(R::ZERO, |r| r[i]);
                g.gate[i] = du * sum * act::slope(f, gate[i]);
                du *= s.factor(x, i);
            }
            g.x[i] = du + d_sum.map_or(R::ZERO, |d| d[i]);
        }
    }
    g.residual = g.x.clone();
    g
}
