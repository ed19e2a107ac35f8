//! Scans on the CPU: chunks of tokens at once, carries one after another. Rows of all channels are contiguous, so every loop runs along them.

use std::ops::Range;

use flashlin_tensor::{Device, Real, Result, Tensor, cpu::vectorized};
use rayon::prelude::*;

use crate::PackedSeqs;

/// Tokens of a chunk.
const CHUNK: usize = 64;

/// A recurrence of rows: how a token moves the carry, and how a whole chunk does.
pub(super) trait Step<R: Real>: Sync {
    /// What a chunk does to any carry.
    type Effect: Send;
    /// Of the tokens of `chunk` (walked backwards where `reverse`).
    fn effect(&self, chunk: Range<usize>, reverse: bool) -> Self::Effect;
    /// The carry after the chunk.
    fn apply(&self, effect: &Self::Effect, carry: &mut [R]);
    /// The output of token `t`, and the carry after it.
    fn token(&self, t: usize, carry: &mut [R], out: &mut [R]);
}

fn walk(chunk: Range<usize>, reverse: bool) -> impl Iterator<Item = usize> {
    let (start, end) = (chunk.start, chunk.end);
    (0..end - start).map(move |i| if reverse { end - 1 - i } else { start + i })
}

/// Runs a scan over `[tokens, D]` from `first` `[N, D]`: the carry before a sequence's first token, or after its last where `reverse`.
pub(super) fn scan<R: Real, S: Step<R>>(
    step: &S,
    first: &Tensor,
    seqs: &PackedSeqs,
    reverse: bool,
) -> Result<Tensor> {
    let d = first.dim(1);
    let mut out = Tensor::empty(&[seqs.total(), d], R::DTYPE, &Device::Cpu)?;
    if d == 0 || seqs.total() == 0 {
        return Ok(out);
    }
    let mut carry = first.to_vec::<R>()?;
    let chunks = chunks_of(seqs);
    // The last chunk of a sequence (in walking order) has nobody after it.
    let ends = |i: usize| {
        let next = if reverse { i.checked_sub(1) } else { Some(i + 1).filter(|&n| n < chunks.len()) };
        next.is_none_or(|n| chunks[n].0 != chunks[i].0)
    };
    let effects: Vec<Option<S::Effect>> = (0..chunks.len())
        .into_par_iter()
        .map(|i| (!ends(i)).then(|| vectorized(|| step.effect(chunks[i].1.clone(), reverse))))
        .collect();
    let mut starts = vec![R::ZERO; chunks.len() * d];
    for i in walk(0..chunks.len(), reverse) {
        let (row, _) = chunks[i];
        let carry = &mut carry[row * d..][..d];
        starts[i * d..][..d].copy_from_slice(carry);
        if let Some(effect) = &effects[i] {
            vectorized(|| step.apply(effect, carry));
        }
    }
    let outputs = out.as_mut_slice::<R>()?;
    let parts = pieces(outputs, chunks.iter().map(|c| c.1.len() * d));
    parts.into_par_iter().zip(starts.par_chunks_mut(d)).zip(&chunks).for_each(
        |((out, carry), (_, chunk))| {
            vectorized(|| {
                for t in walk(chunk.clone(), reverse) {
                    step.token(t, carry, &mut out[(t - chunk.start) * d..][..d]);
                }
            });
        },
    );
    Ok(out)
}

/// (sequence, tokens) of every chunk, in order.
fn chunks_of(seqs: &PackedSeqs) -> Vec<(usize, Range<usize>)> {
    let of = |(row, r): (usize, Range<usize>)| {
        let end = r.end;
        r.step_by(CHUNK).map(move |t| (row, t..(t + CHUNK).min(end)))
    };
    seqs.ranges().enumerate().flat_map(of).collect()
}

/// Consecutive parts of `all` with these lengths.
fn pieces<R>(mut all: &mut [R], lens: impl Iterator<Item = usize>) -> Vec<&mut [R]> {
    lens.map(|n| {
        let (part, rest) = std::mem::take(&mut all).split_at_mut(n);
        all = rest;
        part
    })
    .collect()
}

/// `h = a c + x` with the carry `c = h`; its adjoint is `h = x + c` with the carry `c = a h`.
pub(super) struct Linear<'a, R> {
    pub a: &'a [R],
    pub x: &'a [R],
    pub width: usize,
    pub adjoint: bool,
}

impl<R: Real> Linear<'_, R> {
    fn row<'s>(&self, of: &'s [R], t: usize) -> &'s [R] {
        &of[t * self.width..][..self.width]
    }
}

impl<R: Real> Step<R> for Linear<'_, R> {
    /// Product of the factors, and the carry that zero becomes.
    type Effect = (Vec<R>, Vec<R>);

    fn effect(&self, chunk: Range<usize>, reverse: bool) -> Self::Effect {
        let (mut product, mut carry) = (vec![R::ONE; self.width], vec![R::ZERO; self.width]);
        let mut out = vec![R::ZERO; self.width];
        for t in walk(chunk, reverse) {
            product.iter_mut().zip(self.row(self.a, t)).for_each(|(p, &a)| *p *= a);
            self.token(t, &mut carry, &mut out);
        }
        (product, carry)
    }

    fn apply(&self, (product, from_zero): &Self::Effect, carry: &mut [R]) {
        for ((c, &p), &z) in carry.iter_mut().zip(product).zip(from_zero) {
            *c = *c * p + z;
        }
    }

    #[inline(always)]
    fn token(&self, t: usize, carry: &mut [R], out: &mut [R]) {
        let (a, x) = (self.row(self.a, t), self.row(self.x, t));
        let rows = carry.iter_mut().zip(out).zip(a.iter().zip(x));
        if self.adjoint {
            rows.for_each(|((c, h), (&a, &x))| {
                *h = x + *c;
                *c = a * *h;
            });
        } else {
            rows.for_each(|((c, h), (&a, &x))| {
                *h = a * *c + x;
                *c = *h;
            });
        }
    }
}

/// `z = ln(e^z + e^x)`, in either direction.
pub(super) struct LogSum<'a, R> {
    pub x: &'a [R],
    pub width: usize,
}

/// `ln(e^a + e^b)`, where both may be minus infinity.
#[inline(always)]
pub(super) fn log_add<R: Real>(a: R, b: R) -> R {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    let gap = low - high;
    // Minus infinity on both sides has no difference.
    if gap <= R::ZERO { high + gap.exp().ln_1p() } else { high }
}

impl<R: Real> Step<R> for LogSum<'_, R> {
    type Effect = Vec<R>;

    fn effect(&self, chunk: Range<usize>, _: bool) -> Self::Effect {
        let mut all = vec![R::from_f64(f64::NEG_INFINITY); self.width];
        for t in chunk {
            let row = &self.x[t * self.width..][..self.width];
            all.iter_mut().zip(row).for_each(|(z, &x)| *z = log_add(*z, x));
        }
        all
    }

    fn apply(&self, effect: &Self::Effect, carry: &mut [R]) {
        carry.iter_mut().zip(effect).for_each(|(z, &e)| *z = log_add(*z, e));
    }

    #[inline(always)]
    fn token(&self, t: usize, carry: &mut [R], out: &mut [R]) {
        let row = &self.x[t * self.width..][..self.width];
        for ((c, z), &x) in carry.iter_mut().zip(out).zip(row) {
            *c = log_add(*c, x);
            *z = *c;
        }
    }
}
