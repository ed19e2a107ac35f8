//! The loss of one row of logits, and its gradient: what both losses are made of.

use flashlin_tensor::Real;

use super::LossOptions;
use crate::rows::sum2;

/// Settings in the compute type.
#[derive(Clone, Copy)]
pub(super) struct RowLoss<R> {
    smoothing: R,
    z: R,
    scale: R,
    cap: Option<R>,
}

/// What backward needs of a row.
#[derive(Clone, Copy, Default)]
pub(super) struct RowStats<R> {
    pub loss: R,
    pub lse: R,
    /// Index and value of the largest raw logit.
    pub top: (usize, R),
}

/// tanh from one exponential: exact to the last bits of 1, which is what soft-capping multiplies.
#[inline(always)]
fn tanh<R: Real>(x: R) -> R {
    R::ONE - (R::ONE + R::ONE) / ((x + x).exp() + R::ONE)
}

impl<R: Real> RowLoss<R> {
    pub fn new(o: &LossOptions) -> Self {
        RowLoss {
            smoothing: R::from_f64(o.label_smoothing),
            z: R::from_f64(o.lse_square_scale),
            scale: R::from_f64(o.logit_scale),
            cap: o.logit_softcapping.map(R::from_f64),
        }
    }

    #[inline(always)]
    fn logit(&self, x: R) -> R {
        let l = x * self.scale;
        self.cap.map_or(l, |cap| cap * tanh(l / cap))
    }

    /// Loss and statistics of a row of raw logits; ignored rows have loss 0. `warp` asks for the largest logit.
    #[inline(always)]
    pub fn forward(&self, x: &[R], label: Option<usize>, warp: bool) -> RowStats<R> {
        let mut stats = RowStats::default();
        if warp && !x.is_empty() {
            stats.top = top(x);
        }
        let Some(label) = label else { return stats };
        let max = max_of(x, |x| self.logit(x));
        let total = sum2(x, x, |x, _| (self.logit(x) - max).exp());
        stats.lse = max + total.ln();
        let mean = if self.smoothing == R::ZERO {
            R::ZERO
        } else {
            sum2(x, x, |x, _| self.logit(x)) / R::from_f64(x.len() as f64)
        };
        stats.loss = stats.lse - (R::ONE - self.smoothing) * self.logit(x[label]) - self.smoothing * mean
            + self.z * stats.lse * stats.lse;
        stats
    }

    /// Writes weight * d loss / d raw logit over the logits; `warp` is what the largest logit adds, per unit of it.
    #[inline(always)]
    pub fn gradient(&self, x: &mut [R], label: Option<usize>, stats: &RowStats<R>, weight: R, warp: R) {
        match label {
            None => x.fill(R::ZERO),
            Some(label) => {
                let lse = stats.lse;
                let coef = weight * (R::ONE + (self.z + self.z) * lse);
                let even = weight * self.smoothing / R::from_f64(x.len() as f64);
                let hit = x[label];
                match self.cap {
                    None => x.iter_mut().for_each(|x| {
                        *x = self.scale * (coef * (*x * self.scale - lse).exp() - even);
                    }),
                    Some(cap) => x.iter_mut().for_each(|x| {
                        let t = tanh(*x * self.scale / cap);
                        *x = self.scale * (coef * (cap * t - lse).exp() - even) * (R::ONE - t * t);
                    }),
                }
                let t = self.cap.map_or(R::ZERO, |cap| tanh(hit * self.scale / cap));
                x[label] -= weight * (R::ONE - self.smoothing) * self.scale * (R::ONE - t * t);
            }
        }
        if warp != R::ZERO && !x.is_empty() {
            x[stats.top.0] += warp * stats.top.1;
        }
    }
}

#[inline(always)]
fn max_of<R: Real>(x: &[R], f: impl Fn(R) -> R) -> R {
    let mut lanes = [-R::MAX; 16];
    let groups = x.chunks_exact(16);
    for (l, &v) in lanes.iter_mut().zip(groups.remainder()) {
        *l = l.max(f(v));
    }
    for g in groups {
        for i in 0..16 {
            let v = f(g[i]);
            lanes[i] = if v > lanes[i] { v } else { lanes[i] };
        }
    }
    lanes.into_iter().fold(-R::MAX, |a, b| a.max(b))
}

/// Index (the first of equals) and value of the largest.
#[inline(always)]
fn top<R: Real>(x: &[R]) -> (usize, R) {
    let max = max_of(x, |x| x);
    (x.iter().position(|&v| v == max).unwrap_or(0), max)
}
