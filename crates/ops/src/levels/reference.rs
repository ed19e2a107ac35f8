//! Log-linear attention from its definition: for each token its buckets, by taking the lowest bit off the position again and again.

use crate::conformance::{Number, dot};

/// One sequence; row-major.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a, N> {
    /// Tokens.
    pub t: usize,
    /// Heads of q and k.
    pub h: usize,
    /// Heads of v, a multiple of `h`.
    pub hv: usize,
    /// Width of q and k.
    pub k_dim: usize,
    /// Width of v.
    pub v_dim: usize,
    /// Levels.
    pub levels: usize,
    /// `[T, H, K]`
    pub q: &'a [N],
    /// `[T, H, K]`
    pub k: &'a [N],
    /// `[T, HV, V]`
    pub v: &'a [N],
    /// `[T, HV]`
    pub g: &'a [N],
    /// `[T, HV, L]`
    pub lambda: &'a [N],
    /// `[L, HV, K, V]`
    pub state: &'a [N],
    /// Tokens before the first.
    pub seen: usize,
    /// Factor on the output.
    pub scale: f64,
}

/// What a token reads: a new one, or a slot of the state.
#[derive(Clone, Copy)]
enum Source {
    Token(usize),
    Slot(usize),
}

impl<N: Number> Problem<'_, N> {
    /// The buckets of position p: (level, sources).
    fn buckets(&self, p: usize, own: bool) -> Vec<(usize, Vec<Source>)> {
        let mut all = Vec::new();
        if own {
            all.push((0, vec![Source::Token(p - self.seen)]));
        }
        let mut end = p;
        while end > 0 {
            let low = end & end.wrapping_neg();
            let start = end - low;
            let mut sources: Vec<Source> =
                (start.max(self.seen)..end.max(self.seen)).map(|s| Source::Token(s - self.seen)).collect();
            // The state's own blocks that lie in this one.
            let mut old = self.seen;
            while old > 0 {
                let size = old & old.wrapping_neg();
                if old - size >= start && old <= end {
                    sources.push(Source::Slot(size.trailing_zeros() as usize + 1));
                }
                old -= size;
            }
            all.push((low.trailing_zeros() as usize + 1, sources));
            end = start;
        }
        all
    }

    /// e^(sum of the gates after `source` up to and with token t).
    fn decay(&self, source: Source, t: usize, head: usize) -> N {
        let from = match source {
            Source::Token(s) => s + 1,
            Source::Slot(_) => 0,
        };
        (from..=t).fold(N::of(0.0), |sum, r| sum + self.g[r * self.hv + head]).exp()
    }

    /// Outputs `[T, HV, V]` and the last state `[L, HV, K, V]`.
    pub fn forward(&self) -> (Vec<N>, Vec<N>) {
        let (h, hv, dk, dv) = (self.h, self.hv, self.k_dim, self.v_dim);
        let key = |x: &'_ [N], t: usize, head: usize| x[(t * h + head / (hv / h)) * dk..][..dk].to_vec();
        let slot = |l: usize, head: usize| &self.state[(l * hv + head) * dk * dv..][..dk * dv];
        let mut o = Vec::new();
        for t in 0..self.t {
            for head in 0..hv {
                let q = key(self.q, t, head);
                let mut row = vec![N::of(0.0); dv];
                for (level, sources) in self.buckets(self.seen + t, true) {
                    let lambda = self.lambda[(t * hv + head) * self.levels + level] * N::of(self.scale);
                    for source in sources {
                        let weight = lambda * self.decay(source, t, head);
                        for (j, out) in row.iter_mut().enumerate() {
                            let read = match source {
                                Source::Token(s) => {
                                    dot(&q, &key(self.k, s, head)) * self.v[(s * hv + head) * dv + j]
                                }
                                Source::Slot(l) => {
                                    let s = slot(l, head);
                                    (0..dk).fold(N::of(0.0), |sum, c| sum + q[c] * s[c * dv + j])
                                }
                            };
                            *out = *out + weight * read;
                        }
                    }
                }
                o.extend(row);
            }
        }
        (o, self.last())
    }

    fn last(&self) -> Vec<N> {
        let (h, hv, dk, dv) = (self.h, self.hv, self.k_dim, self.v_dim);
        if self.t == 0 {
            return self.state.to_vec();
        }
        let mut out = vec![N::of(0.0); self.levels * hv * dk * dv];
        for (level, sources) in self.buckets(self.seen + self.t, false) {
            for head in 0..hv {
                for &source in &sources {
                    let decay = self.decay(source, self.t - 1, head);
                    for c in 0..dk {
                        for j in 0..dv {
                            let value = match source {
                                Source::Token(s) => {
                                    self.k[(s * h + head / (hv / h)) * dk + c]
                                        * self.v[(s * hv + head) * dv + j]
                                }
                                Source::Slot(l) => self.state[((l * hv + head) * dk + c) * dv + j],
                            };
                            let at = ((level * hv + head) * dk + c) * dv + j;
                            out[at] = out[at] + decay * value;
                        }
                    }
                }
            }
        }
        out
    }
}
