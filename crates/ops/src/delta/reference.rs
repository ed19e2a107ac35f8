//! The delta recurrence token by token, forward and backward, on plain slices: the oracle of this family.
//!
//! Nothing here is fast. It is written from the recurrence alone, so that every kernel can be held against it,
//! and its backward (the reverse recurrence) is held against finite differences in f64.

use flashlin_tensor::Real;

/// Sizes of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Tokens.
    pub t: usize,
    /// Heads of q, k and the erase key.
    pub h: usize,
    /// Value heads; a multiple of `h`.
    pub hv: usize,
    /// Key dimension.
    pub k: usize,
    /// Value dimension.
    pub v: usize,
}

impl Dims {
    /// The key head that value head `hv` reads.
    pub fn key_head(&self, hv: usize) -> usize {
        hv / (self.hv / self.h)
    }
}

/// The log-decay of a sequence.
#[derive(Clone, Copy, Debug)]
pub enum Gate<'a, R> {
    /// No decay.
    None,
    /// `[T, HV]`
    Scalar(&'a [R]),
    /// `[T, HV, K]`
    Channel(&'a [R]),
}

/// One sequence's inputs, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a, R> {
    /// Sizes.
    pub dims: Dims,
    /// Queries `[T, H, K]`.
    pub q: &'a [R],
    /// Write keys `[T, H, K]`.
    pub k: &'a [R],
    /// Erase keys `[T, H, K]`; the write keys when absent.
    pub erase: Option<&'a [R]>,
    /// Values `[T, HV, V]`.
    pub v: &'a [R],
    /// Write strengths `[T, HV]` or `[T, HV, V]` (told apart by length); 1 when absent.
    pub beta: Option<&'a [R]>,
    /// Log-decay.
    pub gate: Gate<'a, R>,
    /// Initial state `[HV, K, V]`; zero when absent.
    pub h0: Option<&'a [R]>,
    /// Factor on the output.
    pub scale: R,
    /// The erase key reads the state as it was before this token's decay (Comba) rather than after it.
    pub erase_before_decay: bool,
}

/// Gradients of every input of a [`Problem`]; shapes as there.
#[derive(Clone, Debug, Default)]
pub struct Grads<R> {
    /// Gradient of q.
    pub q: Vec<R>,
    /// Gradient of k (including the erase part when there is no erase key of its own).
    pub k: Vec<R>,
    /// Gradient of the erase key; empty when there is none.
    pub erase: Vec<R>,
    /// Gradient of v.
    pub v: Vec<R>,
    /// Gradient of beta; empty when there is none.
    pub beta: Vec<R>,
    /// Gradient of the gate; empty when there is none.
    pub gate: Vec<R>,
    /// Gradient of the initial state (also when it was absent).
    pub h0: Vec<R>,
}

impl<R: Real> Problem<'_, R> {
    fn decay(&self, t: usize, hv: usize, c: usize) -> R {
        let d = self.dims;
        match self.gate {
            Gate::None => R::ONE,
            Gate::Scalar(g) => g[t * d.hv + hv].exp(),
            Gate::Channel(g) => g[(t * d.hv + hv) * d.k + c].exp(),
        }
    }

    fn beta_at(&self, t: usize, hv: usize, j: usize) -> R {
        let d = self.dims;
        match self.beta {
            None => R::ONE,
            Some(b) if b.len() == d.t * d.hv => b[t * d.hv + hv],
            Some(b) => b[(t * d.hv + hv) * d.v + j],
        }
    }

    fn row<'b>(&self, x: &'b [R], t: usize, hv: usize) -> &'b [R] {
        let d = self.dims;
        &x[(t * d.h + d.key_head(hv)) * d.k..][..d.k]
    }

    fn initial(&self, hv: usize) -> Vec<R> {
        let n = self.dims.k * self.dims.v;
        self.h0.map_or_else(|| vec![R::ZERO; n], |h| h[hv * n..][..n].to_vec())
    }

    /// One token of one head: from the state before it, the decayed state, what the erase key leaves of the value
    /// (`y = v - S^T p`) and the state after it.
    fn step(&self, t: usize, hv: usize, before: &[R]) -> Step<R> {
        let d = self.dims;
        let (k, p) = (self.row(self.k, t, hv), self.row(self.erase.unwrap_or(self.k), t, hv));
        let v = &self.v[(t * d.hv + hv) * d.v..][..d.v];
        let decayed: Vec<R> = (0..d.k * d.v).map(|i| before[i] * self.decay(t, hv, i / d.v)).collect();
        let read = if self.erase_before_decay { before } else { &decayed };
        let y: Vec<R> =
            (0..d.v).map(|j| v[j] - (0..d.k).map(|c| read[c * d.v + j] * p[c]).sum::<R>()).collect();
        let u = |j: usize| self.beta_at(t, hv, j) * y[j];
        let after = (0..d.k * d.v).map(|i| decayed[i] + k[i / d.v] * u(i % d.v)).collect();
        Step { decayed, y, after }
    }
}

struct Step<R> {
    decayed: Vec<R>,
    y: Vec<R>,
    after: Vec<R>,
}

/// Outputs `[T, HV, V]` and the final state `[HV, K, V]`.
pub fn forward<R: Real>(x: &Problem<'_, R>) -> (Vec<R>, Vec<R>) {
    let d = x.dims;
    let mut o = vec![R::ZERO; d.t * d.hv * d.v];
    let mut last = Vec::with_capacity(d.hv * d.k * d.v);
    for hv in 0..d.hv {
        let mut s = x.initial(hv);
        for t in 0..d.t {
            s = x.step(t, hv, &s).after;
            let q = x.row(x.q, t, hv);
            for j in 0..d.v {
                o[(t * d.hv + hv) * d.v + j] = x.scale * (0..d.k).map(|c| s[c * d.v + j] * q[c]).sum::<R>();
            }
        }
        last.extend(s);
    }
    (o, last)
}

/// Gradients of all inputs from those of the outputs and of the final state (zero when absent).
pub fn backward<R: Real>(x: &Problem<'_, R>, d_o: &[R], d_last: Option<&[R]>) -> Grads<R> {
    let d = x.dims;
    let keys = || vec![R::ZERO; d.t * d.h * d.k];
    let mut g = Grads {
        q: keys(),
        k: keys(),
        erase: if x.erase.is_some() { keys() } else { Vec::new() },
        v: vec![R::ZERO; x.v.len()],
        beta: vec![R::ZERO; x.beta.map_or(0, <[R]>::len)],
        gate: match x.gate {
            Gate::None => Vec::new(),
            Gate::Scalar(g) | Gate::Channel(g) => vec![R::ZERO; g.len()],
        },
        h0: Vec::with_capacity(d.hv * d.k * d.v),
    };
    for hv in 0..d.hv {
        let mut states = vec![x.initial(hv)];
        for t in 0..d.t {
            let next = x.step(t, hv, &states[t]).after;
            states.push(next);
        }
        let n = d.k * d.v;
        let mut ds = d_last.map_or_else(|| vec![R::ZERO; n], |s| s[hv * n..][..n].to_vec());
        for t in (0..d.t).rev() {
            reverse_step(x, t, hv, &states[t], &d_o[(t * d.hv + hv) * d.v..][..d.v], &mut ds, &mut g);
        }
        g.h0.extend(ds);
    }
    g
}

/// One token of one head backwards: `ds` comes in as the gradient of the state after it and leaves as that of the
/// state before it.
fn reverse_step<R: Real>(
    x: &Problem<'_, R>,
    t: usize,
    hv: usize,
    before: &[R],
    d_o: &[R],
    ds: &mut [R],
    g: &mut Grads<R>,
) {
    let d = x.dims;
    let key = (t * d.h + d.key_head(hv)) * d.k;
    let val = (t * d.hv + hv) * d.v;
    let (q, k) = (x.row(x.q, t, hv), x.row(x.k, t, hv));
    let p = x.row(x.erase.unwrap_or(x.k), t, hv);
    let Step { decayed, y, after } = x.step(t, hv, before);
    let mut dy = vec![R::ZERO; d.v];
    for c in 0..d.k {
        for j in 0..d.v {
            g.q[key + c] += x.scale * after[c * d.v + j] * d_o[j];
            ds[c * d.v + j] += x.scale * q[c] * d_o[j];
        }
    }
    for j in 0..d.v {
        let beta = x.beta_at(t, hv, j);
        let mut du = R::ZERO;
        for c in 0..d.k {
            du += ds[c * d.v + j] * k[c];
            g.k[key + c] += ds[c * d.v + j] * beta * y[j];
        }
        dy[j] = beta * du;
        g.v[val + j] += dy[j];
        match x.beta {
            None => {}
            Some(b) if b.len() == d.t * d.hv => g.beta[t * d.hv + hv] += du * y[j],
            Some(_) => g.beta[val + j] += du * y[j],
        }
    }
    let read = if x.erase_before_decay { before } else { &decayed };
    let dp = if x.erase.is_some() { &mut g.erase } else { &mut g.k };
    for c in 0..d.k {
        for j in 0..d.v {
            dp[key + c] += -read[c * d.v + j] * dy[j];
        }
    }
    for c in 0..d.k {
        let decay = x.decay(t, hv, c);
        for j in 0..d.v {
            let i = c * d.v + j;
            let erased = -p[c] * dy[j];
            if !x.erase_before_decay {
                ds[i] += erased;
            }
            match x.gate {
                Gate::None => {}
                Gate::Scalar(_) => g.gate[t * d.hv + hv] += ds[i] * decayed[i],
                Gate::Channel(_) => g.gate[(t * d.hv + hv) * d.k + c] += ds[i] * decayed[i],
            }
            ds[i] *= decay;
            if x.erase_before_decay {
                ds[i] += erased;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn noise(n: usize, seed: u64) -> Vec<f64> {
        let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (s >> 33) as f64 / (1u64 << 30) as f64 - 1.0
            })
            .collect()
    }

    /// Every gradient of the reverse recurrence against central differences of the forward recurrence.
    fn check(gate_dim: usize, beta_dim: usize, erase: bool, before: bool) {
        let dims = Dims { t: 5, h: 2, hv: 4, k: 3, v: 2 };
        let gate_len = match gate_dim {
            0 => 0,
            1 => dims.t * dims.hv,
            _ => dims.t * dims.hv * dims.k,
        };
        let beta_len = match beta_dim {
            0 => 0,
            1 => dims.t * dims.hv,
            _ => dims.t * dims.hv * dims.v,
        };
        let keys = dims.t * dims.h * dims.k;
        let sizes = [
            keys,
            keys,
            if erase { keys } else { 0 },
            dims.t * dims.hv * dims.v,
            beta_len,
            gate_len,
            dims.hv * dims.k * dims.v,
        ];
        let mut inputs: Vec<Vec<f64>> =
            sizes.iter().enumerate().map(|(i, &n)| noise(n, i as u64 + 1)).collect();
        for g in &mut inputs[5] {
            *g = -g.abs();
        }
        let (wo, wh) = (noise(sizes[3], 11), noise(sizes[6], 12));
        fn problem<'a>(
            dims: Dims,
            x: &'a [Vec<f64>],
            gate_dim: usize,
            beta: bool,
            erase: bool,
            before: bool,
        ) -> Problem<'a, f64> {
            Problem {
                dims,
                q: &x[0],
                k: &x[1],
                erase: erase.then_some(&x[2][..]),
                v: &x[3],
                beta: beta.then_some(&x[4][..]),
                gate: match gate_dim {
                    0 => Gate::None,
                    1 => Gate::Scalar(&x[5]),
                    _ => Gate::Channel(&x[5]),
                },
                h0: Some(&x[6]),
                scale: 0.7,
                erase_before_decay: before,
            }
        }
        let loss = |x: &[Vec<f64>]| {
            let (o, s) = forward(&problem(dims, x, gate_dim, beta_dim > 0, erase, before));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
            dot(&o, &wo) + dot(&s, &wh)
        };
        let g = backward(&problem(dims, &inputs, gate_dim, beta_dim > 0, erase, before), &wo, Some(&wh));
        let got = [&g.q, &g.k, &g.erase, &g.v, &g.beta, &g.gate, &g.h0];
        for (i, grad) in got.iter().enumerate() {
            assert_eq!(grad.len(), sizes[i]);
            for j in 0..sizes[i] {
                let x = inputs[i][j];
                let eps = 1e-5;
                inputs[i][j] = x + eps;
                let up = loss(&inputs);
                inputs[i][j] = x - eps;
                let down = loss(&inputs);
                inputs[i][j] = x;
                let want = (up - down) / (2.0 * eps);
                assert!(
                    (grad[j] - want).abs() < 1e-7 * (1.0 + want.abs()),
                    "input {i}[{j}]: {} {want}",
                    grad[j]
                );
            }
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for gate in 0..3 {
            for beta in 0..3 {
                for (erase, before) in [(false, false), (true, false), (true, true), (false, true)] {
                    check(gate, beta, erase, before);
                }
            }
        }
    }
}
