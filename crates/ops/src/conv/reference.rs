//! The convolution one token at a time, with the list of past inputs written out: the oracle of the blocked kernel.

use flashlin_tensor::Real;

use crate::activation::{Activation, reference as act};

/// Inputs of packed sequences; `x` and `residual` are `[tokens, D]`, the weight `[D, W]`, the state `[N, D, W]`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Inputs<'a, R> {
    pub lens: &'a [usize],
    pub channels: usize,
    pub taps: usize,
    pub silu: bool,
    pub x: &'a [R],
    pub weight: &'a [R],
    pub bias: Option<&'a [R]>,
    pub residual: Option<&'a [R]>,
    pub initial_state: Option<&'a [R]>,
}

/// Gradients in the shapes of the inputs; those of absent inputs are meaningless.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Gradients<R> {
    pub x: Vec<R>,
    pub weight: Vec<R>,
    pub bias: Vec<R>,
    pub residual: Vec<R>,
    pub initial_state: Vec<R>,
}

impl<R: Real> Inputs<'_, R> {
    /// (sequence, first token, length, channel) of everything that runs on its own.
    fn lines(&self) -> Vec<(usize, usize, usize, usize)> {
        let mut start = 0;
        let mut all = Vec::new();
        for (n, &len) in self.lens.iter().enumerate() {
            all.extend((0..self.channels).map(|c| (n, start, len, c)));
            start += len;
        }
        all
    }

    /// The state's W inputs and then the sequence's.
    fn past(&self, (n, start, len, c): (usize, usize, usize, usize)) -> Vec<R> {
        let at = (n * self.channels + c) * self.taps;
        let mut past = match self.initial_state {
            Some(s) => s[at..at + self.taps].to_vec(),
            None => vec![R::ZERO; self.taps],
        };
        past.extend((start..start + len).map(|t| self.x[t * self.channels + c]));
        past
    }

    /// z of token t (within the sequence), before the activation.
    fn sum(&self, past: &[R], t: usize, c: usize) -> R {
        let weight = &self.weight[c * self.taps..][..self.taps];
        let taps: R = past[t + 1..].iter().zip(weight).map(|(&p, &w)| p * w).sum();
        taps + self.bias.map_or(R::ZERO, |b| b[c])
    }
}

/// y `[tokens, D]` and the final states `[N, D, W]`.
pub fn forward<R: Real>(x: &Inputs<R>) -> (Vec<R>, Vec<R>) {
    let mut y = vec![R::ZERO; x.x.len()];
    let mut last = Vec::new();
    for line in x.lines() {
        let (_, start, len, c) = line;
        let past = x.past(line);
        for t in 0..len {
            let z = x.sum(&past, t, c);
            let at = (start + t) * x.channels + c;
            let z = if x.silu { act::value(Activation::Silu, z) } else { z };
            y[at] = z + x.residual.map_or(R::ZERO, |r| r[at]);
        }
        last.extend_from_slice(&past[len..]);
    }
    (y, last)
}

/// Gradients from those of y and of the final states.
pub fn backward<R: Real>(x: &Inputs<R>, dy: &[R], d_last: &[R]) -> Gradients<R> {
    let mut g = Gradients {
        x: vec![R::ZERO; x.x.len()],
        weight: vec![R::ZERO; x.weight.len()],
        bias: vec![R::ZERO; x.channels],
        residual: dy.to_vec(),
        initial_state: Vec::new(),
    };
    for line in x.lines() {
        let (n, start, len, c) = line;
        let past = x.past(line);
        let mut d_past = vec![R::ZERO; past.len()];
        d_past[len..].copy_from_slice(&d_last[(n * x.channels + c) * x.taps..][..x.taps]);
        for t in 0..len {
            let d = dy[(start + t) * x.channels + c];
            let slope = if x.silu { act::slope(Activation::Silu, x.sum(&past, t, c)) } else { R::ONE };
            let dz = d * slope;
            g.bias[c] += dz;
            for w in 0..x.taps {
                g.weight[c * x.taps + w] += dz * past[t + 1 + w];
                d_past[t + 1 + w] += dz * x.weight[c * x.taps + w];
            }
        }
        g.initial_state.extend_from_slice(&d_past[..x.taps]);
        for t in 0..len {
            g.x[(start + t) * x.channels + c] = d_past[x.taps + t];
        }
    }
    g
}
