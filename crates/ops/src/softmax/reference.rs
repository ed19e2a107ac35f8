//! Attention by its definition, one query at a time with all its scores: the oracle of the blocked passes.

use flashlin_tensor::Real;

/// Packed sequences of queries and keys; `q [Tq, HQ, K]`, `k [Tk, H, K]`, `v [Tk, H, V]`, `decay [Tk, HQ]`.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, R> {
    /// (queries, keys) of each sequence; the last query stands at the last key.
    pub seqs: &'a [(usize, usize)],
    /// HQ, a multiple of `heads`.
    pub q_heads: usize,
    /// H.
    pub heads: usize,
    /// K.
    pub key_dim: usize,
    /// V.
    pub value_dim: usize,
    /// Factor on the scores.
    pub scale: R,
    /// Keys after the query are hidden.
    pub causal: bool,
    /// Keys that a query sees, itself included.
    pub window: Option<usize>,
    /// Queries.
    pub q: &'a [R],
    /// Keys.
    pub k: &'a [R],
    /// Values.
    pub v: &'a [R],
    /// Log-decays of keys.
    pub decay: Option<&'a [R]>,
}

/// Gradients in the shapes of the inputs.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Gradients<R> {
    pub q: Vec<R>,
    pub k: Vec<R>,
    pub v: Vec<R>,
    pub decay: Option<Vec<R>>,
}

/// One query of one head, and what it sees.
struct Query {
    /// Rows of `q`, and of the first key's token.
    q: usize,
    k0: usize,
    /// Place among the keys.
    place: i64,
    head: usize,
    /// Keys that it sees, counted from `k0`.
    keys: Vec<usize>,
}

impl<R: Real> Inputs<'_, R> {
    fn queries(&self) -> Vec<Query> {
        let (mut all, mut q0, mut k0) = (Vec::new(), 0, 0);
        for &(queries, keys) in self.seqs {
            for i in 0..queries {
                let place = i as i64 + keys as i64 - queries as i64;
                let sees = |j: &usize| {
                    let away = place - *j as i64;
                    !self.causal || (away >= 0 && self.window.is_none_or(|w| away < w as i64))
                };
                let keys: Vec<usize> = (0..keys).filter(sees).collect();
                let of = |head| Query { q: q0 + i, k0, place, head, keys: keys.clone() };
                all.extend((0..self.q_heads).map(of));
            }
            (q0, k0) = (q0 + queries, k0 + keys);
        }
        all
    }

    /// Offsets of a query's row and of key j's rows in q, k and v.
    fn rows(&self, at: &Query, j: usize) -> [usize; 3] {
        let key = (at.k0 + j) * self.heads + at.head / (self.q_heads / self.heads);
        [(at.q * self.q_heads + at.head) * self.key_dim, key * self.key_dim, key * self.value_dim]
    }

    /// Tokens whose decay lies between key j and the query, and the sign with which it enters the score.
    fn between(&self, at: &Query, j: usize) -> (std::ops::Range<usize>, R) {
        let (a, b) = (j as i64 + 1, at.place + 1);
        let rows = |x: i64| (at.k0 as i64 + x) as usize;
        if a <= b { (rows(a)..rows(b), R::ONE) } else { (rows(b)..rows(a), -R::ONE) }
    }

    /// The probabilities of the keys that a query sees.
    fn probabilities(&self, at: &Query) -> Vec<R> {
        let score = |&j: &usize| {
            let [q, k, _] = self.rows(at, j);
            let dot: R = (0..self.key_dim).map(|c| self.q[q + c] * self.k[k + c]).sum();
            let bias = self.decay.map_or(R::ZERO, |g| {
                let (tokens, sign) = self.between(at, j);
                sign * tokens.map(|t| g[t * self.q_heads + at.head]).sum::<R>()
            });
            dot * self.scale + bias
        };
        let scores: Vec<R> = at.keys.iter().map(score).collect();
        let top = scores.iter().fold(-R::MAX, |a, &b| a.max(b));
        let total: R = scores.iter().map(|&s| (s - top).exp()).sum();
        scores.into_iter().map(|s| (s - top).exp() / total).collect()
    }
}

/// Outputs `[Tq, HQ, V]` and maps `[HQ, Tq, Tk]` (keys of all sequences side by side).
pub fn forward<R: Real>(x: &Inputs<R>) -> (Vec<R>, Vec<R>) {
    let tq: usize = x.seqs.iter().map(|s| s.0).sum();
    let tk: usize = x.seqs.iter().map(|s| s.1).sum();
    let mut o = vec![R::ZERO; tq * x.q_heads * x.value_dim];
    let mut maps = vec![R::ZERO; x.q_heads * tq * tk];
    for at in x.queries() {
        let out = (at.q * x.q_heads + at.head) * x.value_dim;
        for (&j, p) in at.keys.iter().zip(x.probabilities(&at)) {
            maps[(at.head * tq + at.q) * tk + at.k0 + j] = p;
            let v = x.rows(&at, j)[2];
            for c in 0..x.value_dim {
                o[out + c] += p * x.v[v + c];
            }
        }
    }
    (o, maps)
}

/// Gradients from that of the outputs.
pub fn backward<R: Real>(x: &Inputs<R>, d_o: &[R]) -> Gradients<R> {
    let zeros = |like: &[R]| vec![R::ZERO; like.len()];
    let mut g = Gradients { q: zeros(x.q), k: zeros(x.k), v: zeros(x.v), decay: x.decay.map(zeros) };
    for at in x.queries() {
        let p = x.probabilities(&at);
        let d = &d_o[(at.q * x.q_heads + at.head) * x.value_dim..][..x.value_dim];
        let by_p = |&j: &usize| -> R {
            let v = x.rows(&at, j)[2];
            d.iter().zip(&x.v[v..]).map(|(&d, &v)| d * v).sum()
        };
        let dp: Vec<R> = at.keys.iter().map(by_p).collect();
        let mean: R = p.iter().zip(&dp).map(|(&p, &d)| p * d).sum();
        for (i, &j) in at.keys.iter().enumerate() {
            let [q, k, v] = x.rows(&at, j);
            let ds = p[i] * (dp[i] - mean);
            for c in 0..x.key_dim {
                g.q[q + c] += ds * x.scale * x.k[k + c];
                g.k[k + c] += ds * x.scale * x.q[q + c];
            }
            for c in 0..x.value_dim {
                g.v[v + c] += p[i] * d[c];
            }
            if let Some(decay) = &mut g.decay {
                let (tokens, sign) = x.between(&at, j);
                tokens.for_each(|t| decay[t * x.q_heads + at.head] += sign * ds);
            }
        }
    }
    g
}
