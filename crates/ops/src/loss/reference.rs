//! The losses from their definition: a cross entropy against the smoothed distribution, term by term.

use flashlin_tensor::Real;

use super::{LossOptions, Reduction};

/// Logits l after scale and cap, and dl / d raw logit.
fn logits<R: Real>(o: &LossOptions, row: &[R]) -> (Vec<R>, Vec<R>) {
    let scale = R::from_f64(o.logit_scale);
    let of = |&x: &R| match o.logit_softcapping.map(R::from_f64) {
        None => (x * scale, scale),
        Some(cap) => {
            let t = (x * scale / cap).tanh();
            (cap * t, scale * (R::ONE - t * t))
        }
    };
    row.iter().map(of).unzip()
}

/// ln of the sum of exponentials, taken relative to the largest.
fn log_sum_exp<R: Real>(l: &[R]) -> R {
    let top = l.iter().fold(-R::MAX, |a, &b| a.max(b));
    top + l.iter().map(|&l| (l - top).exp()).sum::<R>().ln()
}

/// Probability of class i in the smoothed target.
fn target<R: Real>(o: &LossOptions, i: usize, label: usize, classes: usize) -> R {
    let hit = if i == label { 1.0 - o.label_smoothing } else { 0.0 };
    R::from_f64(o.label_smoothing / classes as f64 + hit)
}

/// The class of a label, None where it is ignored.
fn class(o: &LossOptions, label: i64) -> Option<usize> {
    (label != o.ignore_index).then_some(label as usize)
}

/// What one counted token's loss is multiplied by in the result.
fn weight<R: Real>(o: &LossOptions, labels: &[i64]) -> R {
    let counted = labels.iter().filter(|&&l| l != o.ignore_index).count();
    R::from_f64(if o.reduction == Reduction::Mean { 1.0 / counted.max(1) as f64 } else { 1.0 })
}

/// The loss of each token (0 where ignored) of raw logits `[tokens, V]`.
pub fn token_losses<R: Real>(o: &LossOptions, x: &[R], labels: &[i64]) -> Vec<R> {
    let classes = x.len() / labels.len().max(1);
    let loss = |(row, &label): (&[R], &i64)| {
        let Some(y) = class(o, label) else { return R::ZERO };
        let (l, _) = logits(o, row);
        let lse = log_sum_exp(&l);
        let entropy: R = l.iter().enumerate().map(|(i, &l)| target::<R>(o, i, y, classes) * (lse - l)).sum();
        entropy + R::from_f64(o.lse_square_scale) * lse * lse
    };
    x.chunks(classes.max(1)).zip(labels).map(loss).collect()
}

/// The result: one number, or one a token with [`Reduction::None`].
pub fn forward<R: Real>(o: &LossOptions, x: &[R], labels: &[i64]) -> Vec<R> {
    let each = token_losses(o, x, labels);
    match o.reduction {
        Reduction::None => each,
        _ => vec![each.into_iter().sum::<R>() * weight::<R>(o, labels)],
    }
}

/// Gradient of the raw logits from that of [`forward`]'s result; the l2 warp's part included.
pub fn backward<R: Real>(o: &LossOptions, x: &[R], labels: &[i64], d: &[R]) -> Vec<R> {
    let classes = x.len() / labels.len().max(1);
    let weight = weight::<R>(o, labels);
    let warp = R::from_f64(o.l2_warp.unwrap_or(0.0) / labels.len().max(1) as f64);
    let mut dx = vec![R::ZERO; x.len()];
    for (t, (row, &label)) in x.chunks(classes.max(1)).zip(labels).enumerate() {
        let up = if o.reduction == Reduction::None { d[t] } else { d[0] };
        let out = &mut dx[t * classes..][..classes];
        if let Some(y) = class(o, label) {
            let (l, slope) = logits(o, row);
            let lse = log_sum_exp(&l);
            // d lse / d l_i is the probability p_i.
            let by_lse = R::ONE + R::from_f64(2.0 * o.lse_square_scale) * lse;
            for i in 0..classes {
                let by_logit = (l[i] - lse).exp() * by_lse - target::<R>(o, i, y, classes);
                out[i] = by_logit * slope[i] * weight * up;
            }
        }
        let top = (0..classes).fold(0, |a, i| if row[i] > row[a] { i } else { a });
        if let (Some(out), true) = (out.get_mut(top), o.l2_warp.is_some()) {
            *out += warp * row[top] * up;
        }
    }
    dx
}

/// A linear layer before the loss: x `[tokens, H]`, weight `[V, H]`, bias `[V]`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Linear<'a, R> {
    pub hidden: usize,
    pub x: &'a [R],
    pub weight: &'a [R],
    pub bias: Option<&'a [R]>,
}

impl<R: Real> Linear<'_, R> {
    /// `x W^T + b`, whole.
    pub fn logits(&self) -> Vec<R> {
        let mut all = Vec::new();
        for x in self.x.chunks(self.hidden) {
            for (v, w) in self.weight.chunks(self.hidden).enumerate() {
                let sum: R = x.iter().zip(w).map(|(&x, &w)| x * w).sum();
                all.push(sum + self.bias.map_or(R::ZERO, |b| b[v]));
            }
        }
        all
    }

    /// Gradients of x, weight and bias from that of the logits.
    pub fn backward(&self, d: &[R]) -> [Vec<R>; 3] {
        let (h, classes) = (self.hidden, self.weight.len() / self.hidden);
        let zeros = |n: usize| vec![R::ZERO; n];
        let (mut dx, mut dw, mut db) = (zeros(self.x.len()), zeros(self.weight.len()), zeros(classes));
        for (i, &d) in d.iter().enumerate() {
            let (t, v) = (i / classes, i % classes);
            db[v] += d;
            for c in 0..h {
                dx[t * h + c] += d * self.weight[v * h + c];
                dw[v * h + c] += d * self.x[t * h + c];
            }
        }
        [dx, dw, db]
    }
}
