//! PaTH attention token by token: every key is transformed at every token, then read.

use crate::conformance::{Number, dot};

/// One sequence; row-major. The past's keys are transformed up to before the first token.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a, N> {
    /// Tokens.
    pub t: usize,
    /// Query heads, a multiple of `h`.
    pub hq: usize,
    /// Heads of k, v, w and beta.
    pub h: usize,
    /// Width of q, k and w.
    pub d: usize,
    /// Width of v.
    pub dv: usize,
    /// `[T, HQ, D]`
    pub q: &'a [N],
    /// `[T, H, D]`
    pub k: &'a [N],
    /// `[T, H, V]`
    pub v: &'a [N],
    /// `[T, H, D]`
    pub w: &'a [N],
    /// `[T, H]`
    pub beta: &'a [N],
    /// `[T, HQ]`
    pub g: Option<&'a [N]>,
    /// Factor on scores and gates.
    pub scale: f64,
}

impl<N: Number> Problem<'_, N> {
    /// Outputs `[T, HQ, V]`.
    pub fn forward(&self) -> Vec<N> {
        let (hq, h, d, dv) = (self.hq, self.h, self.d, self.dv);
        let mut o = vec![N::of(0.0); self.t * hq * dv];
        for head in 0..hq {
            let kv = head / (hq / h);
            let (mut keys, mut decay): (Vec<Vec<N>>, Vec<N>) = (Vec::new(), Vec::new());
            for i in 0..self.t {
                let w = &self.w[(i * h + kv) * d..][..d];
                for key in &mut keys {
                    let along = self.beta[i * h + kv] * dot(w, key);
                    key.iter_mut().zip(w).for_each(|(k, &w)| *k = *k - along * w);
                }
                keys.push(self.k[(i * h + kv) * d..][..d].to_vec());
                if let Some(g) = self.g {
                    decay.iter_mut().for_each(|c| *c = *c + g[i * hq + head]);
                }
                decay.push(N::of(0.0));
                let q = &self.q[(i * hq + head) * d..][..d];
                let scores: Vec<N> =
                    keys.iter().zip(&decay).map(|(k, &c)| (dot(q, k) + c) * N::of(self.scale)).collect();
                let top = scores.iter().map(|s| s.value()).fold(f64::MIN, f64::max);
                let weights: Vec<N> = scores.iter().map(|&s| (s - N::of(top)).exp()).collect();
                let total = weights.iter().fold(N::of(0.0), |sum, &p| sum + p);
                for c in 0..dv {
                    let sum = weights
                        .iter()
                        .enumerate()
                        .fold(N::of(0.0), |sum, (j, &p)| sum + p * self.v[(j * h + kv) * dv + c]);
                    o[(i * hq + head) * dv + c] = sum / total;
                }
            }
        }
        o
    }
}
