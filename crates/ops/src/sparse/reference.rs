//! Native sparse attention token by token.

use super::select::{Selection, pick};
use crate::conformance::{Number, dot};

/// One sequence; row-major.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a, N> {
    /// Queries: the last of the keys' positions.
    pub t: usize,
    /// Keys.
    pub s: usize,
    /// Query heads, a multiple of `h`.
    pub hq: usize,
    /// Key heads.
    pub h: usize,
    /// Width of q and k.
    pub d: usize,
    /// Width of v.
    pub dv: usize,
    /// `[T, HQ, D]`
    pub q: &'a [N],
    /// `[S, H, D]`
    pub k: &'a [N],
    /// `[S, H, V]`
    pub v: &'a [N],
    /// Three of `[T, HQ]`.
    pub gates: [&'a [N]; 3],
    /// Tokens of a block.
    pub block_size: usize,
    /// Blocks that a query selects.
    pub block_count: usize,
    /// Keys of the window.
    pub window: Option<usize>,
    /// Factor on the scores.
    pub scale: f64,
}

/// Softmax weights of scores.
fn softmax<N: Number>(scores: &[N]) -> Vec<N> {
    let top = scores.iter().map(|s| s.value()).fold(f64::MIN, f64::max);
    let e: Vec<N> = scores.iter().map(|&s| (s - N::of(top)).exp()).collect();
    let total = e.iter().fold(N::of(0.0), |sum, &x| sum + x);
    e.into_iter().map(|x| x / total).collect()
}

impl<N: Number> Problem<'_, N> {
    fn mean(&self, x: &[N], block: usize, head: usize, width: usize) -> Vec<N> {
        let row = |j: usize| &x[(j * self.h + head) * width..][..width];
        let sum = |c: usize| {
            (block * self.block_size..(block + 1) * self.block_size)
                .fold(N::of(0.0), |sum, j| sum + row(j)[c])
        };
        (0..width).map(|c| sum(c) / N::of(self.block_size as f64)).collect()
    }

    /// Attention of one query over keys and values.
    fn attend(&self, q: &[N], keys: &[Vec<N>], values: &[Vec<N>]) -> Vec<N> {
        if keys.is_empty() {
            return vec![N::of(0.0); self.dv];
        }
        let p = softmax(&keys.iter().map(|k| dot(q, k) * N::of(self.scale)).collect::<Vec<_>>());
        (0..self.dv).map(|c| p.iter().zip(values).fold(N::of(0.0), |sum, (&p, v)| sum + p * v[c])).collect()
    }

    /// Outputs `[T, HQ, V]`.
    pub fn forward(&self) -> Vec<N> {
        let (group, before) = (self.hq / self.h, self.s - self.t);
        let mut o = vec![N::of(0.0); self.t * self.hq * self.dv];
        for t in 0..self.t {
            let position = before + t;
            for head in 0..self.h {
                let q = |g: usize| &self.q[(t * self.hq + head * group + g) * self.d..][..self.d];
                let complete = (position + 1) / self.block_size;
                let keys: Vec<_> = (0..complete).map(|c| self.mean(self.k, c, head, self.d)).collect();
                let values: Vec<_> = (0..complete).map(|c| self.mean(self.v, c, head, self.dv)).collect();
                let mut mean = vec![0.0; complete];
                for g in 0..group {
                    let scores: Vec<N> = keys.iter().map(|k| dot(q(g), k) * N::of(self.scale)).collect();
                    let p = softmax(&scores);
                    mean.iter_mut().zip(p).for_each(|(m, p)| *m += p.value() / group as f64);
                }
                let selection = Selection {
                    at: position,
                    rows: 1,
                    keys: self.s,
                    block_size: self.block_size,
                    block_count: self.block_count,
                };
                let own: Vec<usize> = pick(&selection, position, &mean)
                    .into_iter()
                    .flat_map(|c| c * self.block_size..((c + 1) * self.block_size).min(position + 1))
                    .collect();
                let near: Vec<usize> = self
                    .window
                    .map_or(Vec::new(), |w| ((position + 1).saturating_sub(w)..=position).collect());
                let rows = |x: &[N], places: &[usize], width: usize| -> Vec<Vec<N>> {
                    places.iter().map(|j| x[(j * self.h + head) * width..][..width].to_vec()).collect()
                };
                for g in 0..group {
                    let branches = [
                        self.attend(q(g), &keys, &values),
                        self.attend(q(g), &rows(self.k, &own, self.d), &rows(self.v, &own, self.dv)),
                        self.attend(q(g), &rows(self.k, &near, self.d), &rows(self.v, &near, self.dv)),
                    ];
                    let at = t * self.hq + head * group + g;
                    for (branch, gate) in branches.iter().zip(self.gates) {
                        for (o, &x) in o[at * self.dv..][..self.dv].iter_mut().zip(branch) {
                            *o = *o + gate[at] * x;
                        }
                    }
                }
            }
        }
        o
    }
}
