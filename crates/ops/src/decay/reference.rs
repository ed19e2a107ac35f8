//! The recurrence of the decay family token by token, on plain slices: the oracle of every other path.
//!
//! Policy: the formula as the papers write it, in one precision, with every state kept; no blocking, no fusion, no
//! shared code with the fast paths. The backward is the reverse recurrence and is itself checked against finite
//! differences in f64. With `a_t[i] = e^{gk_t[i] + g_t + gamma}` and `b_t[j] = e^{gv_t[j]}`:
//!
//! ```text
//! S_t[i,j] = a_t[i] S_{t-1}[i,j] b_t[j] + k_t[i] v_t[j]
//! o_t[j]   = scale sum_i q_t[i] S_t[i,j]                                        without a bonus
//! o_t[j]   = scale sum_i q_t[i] (S_{t-1}[i,j] + u[i] k_t[i] v_t[j])             with a bonus u
//! ```

use crate::simd::Real;

/// Everything the recurrence reads; contiguous, tokens of all sequences one after another (`T` in total).
/// The state is `[N, HV, K, V]`, N sequences.
#[derive(Clone, Debug)]
pub struct Inputs<'a, R> {
    /// (first token, number of tokens) of each sequence.
    pub seqs: &'a [(usize, usize)],
    /// Heads of q and k.
    pub heads: usize,
    /// Heads of v, a multiple of `heads`; value head j reads q and k of head `j / (value_heads / heads)`.
    pub value_heads: usize,
    /// K, the width of q and k.
    pub key_dim: usize,
    /// V, the width of v.
    pub value_dim: usize,
    /// Factor on q.
    pub scale: R,
    /// Queries `[T, H, K]`.
    pub q: &'a [R],
    /// Keys `[T, H, K]`.
    pub k: &'a [R],
    /// Values `[T, HV, V]`.
    pub v: &'a [R],
    /// Scalar log-decay `[T, HV]`.
    pub g: Option<&'a [R]>,
    /// Constant log-decay `[HV]`.
    pub g_gamma: Option<&'a [R]>,
    /// Log-decay of key channels, `[T, HV, K]` or `[T, H, K]`.
    pub gk: Option<&'a [R]>,
    /// Log-decay of value channels `[T, HV, V]`.
    pub gv: Option<&'a [R]>,
    /// Bonus `[H, K]`.
    pub u: Option<&'a [R]>,
    /// First state `[N, HV, K, V]`; zero when absent.
    pub h0: Option<&'a [R]>,
}

/// Gradients, each with the shape of the input; None where the input is absent.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Gradients<R> {
    pub q: Vec<R>,
    pub k: Vec<R>,
    pub v: Vec<R>,
    pub g: Option<Vec<R>>,
    pub g_gamma: Option<Vec<R>>,
    pub gk: Option<Vec<R>>,
    pub gv: Option<Vec<R>>,
    pub u: Option<Vec<R>>,
    pub h0: Vec<R>,
}

impl<R: Real> Inputs<'_, R> {
    fn state_len(&self) -> usize {
        self.key_dim * self.value_dim
    }

    /// Heads of gk: `[T, heads, K]`.
    fn gk_heads(&self) -> usize {
        match self.gk {
            Some(gk) if gk.len() == self.k.len() && self.heads != self.value_heads => self.heads,
            _ => self.value_heads,
        }
    }

    /// Offset of the gk row of token t and value head j.
    fn gk_row(&self, t: usize, j: usize) -> usize {
        (t * self.gk_heads() + j / (self.value_heads / self.gk_heads())) * self.key_dim
    }

    fn key_row(&self, t: usize, j: usize) -> usize {
        (t * self.heads + j / (self.value_heads / self.heads)) * self.key_dim
    }

    fn value_row(&self, t: usize, j: usize) -> usize {
        (t * self.value_heads + j) * self.value_dim
    }

    /// `a_t` of value head j.
    fn key_decay(&self, t: usize, j: usize, i: usize) -> R {
        let mut x = R::ZERO;
        if let Some(gk) = self.gk {
            x += gk[self.gk_row(t, j) + i];
        }
        if let Some(g) = self.g {
            x += g[t * self.value_heads + j];
        }
        if let Some(gamma) = self.g_gamma {
            x += gamma[j];
        }
        x.exp()
    }

    /// `b_t` of value head j.
    fn value_decay(&self, t: usize, j: usize, c: usize) -> R {
        self.gv.map_or(R::ONE, |gv| gv[self.value_row(t, j) + c].exp())
    }

    fn initial(&self, n: usize, j: usize) -> Vec<R> {
        let len = self.state_len();
        match self.h0 {
            Some(h0) => h0[(n * self.value_heads + j) * len..][..len].to_vec(),
            None => vec![R::ZERO; len],
        }
    }

    /// States S_0 .. S_len of one sequence and head.
    fn states(&self, n: usize, j: usize) -> Vec<Vec<R>> {
        let (start, len) = self.seqs[n];
        let (kd, vd) = (self.key_dim, self.value_dim);
        let mut all = vec![self.initial(n, j)];
        for t in start..start + len {
            let prev = &all[all.len() - 1];
            let mut s = vec![R::ZERO; kd * vd];
            for i in 0..kd {
                let a = self.key_decay(t, j, i);
                for c in 0..vd {
                    let kv = self.k[self.key_row(t, j) + i] * self.v[self.value_row(t, j) + c];
                    s[i * vd + c] = a * prev[i * vd + c] * self.value_decay(t, j, c) + kv;
                }
            }
            all.push(s);
        }
        all
    }
}

/// Outputs `o [T, HV, V]` and the final states `[N, HV, K, V]`.
pub fn forward<R: Real>(x: &Inputs<R>) -> (Vec<R>, Vec<R>) {
    let (kd, vd) = (x.key_dim, x.value_dim);
    let mut o = vec![R::ZERO; x.v.len()];
    let mut last = Vec::with_capacity(x.seqs.len() * x.value_heads * x.state_len());
    for (n, &(start, len)) in x.seqs.iter().enumerate() {
        for j in 0..x.value_heads {
            let states = x.states(n, j);
            for t in 0..len {
                let (kr, vr) = (x.key_row(start + t, j), x.value_row(start + t, j));
                for i in 0..kd {
                    let q = x.scale * x.q[kr + i];
                    for c in 0..vd {
                        o[vr + c] += q * match x.u {
                            None => states[t + 1][i * vd + c],
                            Some(u) => {
                                let u = u[j / (x.value_heads / x.heads) * kd + i];
                                states[t][i * vd + c] + u * x.k[kr + i] * x.v[vr + c]
                            }
                        };
                    }
                }
            }
            last.extend_from_slice(&states[len]);
        }
    }
    (o, last)
}

/// Gradients of a loss whose gradient by `o` is `d_o [T, HV, V]` and by the final state is `d_last`
/// `[N, HV, K, V]` (zero when absent).
pub fn backward<R: Real>(x: &Inputs<R>, d_o: &[R], d_last: Option<&[R]>) -> Gradients<R> {
    let zeros = |like: Option<&[R]>| like.map(|s| vec![R::ZERO; s.len()]);
    let mut grads = Gradients {
        q: vec![R::ZERO; x.q.len()],
        k: vec![R::ZERO; x.k.len()],
        v: vec![R::ZERO; x.v.len()],
        g: zeros(x.g),
        g_gamma: zeros(x.g_gamma),
        gk: zeros(x.gk),
        gv: zeros(x.gv),
        u: zeros(x.u),
        h0: Vec::new(),
    };
    let len = x.state_len();
    for n in 0..x.seqs.len() {
        for j in 0..x.value_heads {
            let ds = match d_last {
                Some(d) => d[(n * x.value_heads + j) * len..][..len].to_vec(),
                None => vec![R::ZERO; len],
            };
            let first = backward_head(x, n, j, d_o, ds, &mut grads);
            grads.h0.extend_from_slice(&first);
        }
    }
    grads
}

/// The reverse recurrence of one sequence and head; `ds` is the gradient by the last state, the gradient by the first
/// one comes back.
fn backward_head<R: Real>(
    x: &Inputs<R>,
    n: usize,
    j: usize,
    d_o: &[R],
    mut ds: Vec<R>,
    grads: &mut Gradients<R>,
) -> Vec<R> {
    let (kd, vd) = (x.key_dim, x.value_dim);
    let (start, len) = x.seqs[n];
    let states = x.states(n, j);
    let bonus_row = j / (x.value_heads / x.heads) * kd;
    for t in (0..len).rev() {
        let (kr, vr) = (x.key_row(start + t, j), x.value_row(start + t, j));
        let mut d_prev = vec![R::ZERO; kd * vd];
        for i in 0..kd {
            let (q, k) = (x.scale * x.q[kr + i], x.k[kr + i]);
            let a = x.key_decay(start + t, j, i);
            let mut d_a = R::ZERO;
            for c in 0..vd {
                let at = i * vd + c;
                let (v, d) = (x.v[vr + c], d_o[vr + c]);
                match x.u {
                    None => {
                        grads.q[kr + i] += x.scale * states[t + 1][at] * d;
                        ds[at] += q * d;
                    }
                    Some(u) => {
                        let u = u[bonus_row + i];
                        grads.q[kr + i] += x.scale * (states[t][at] + u * k * v) * d;
                        grads.k[kr + i] += q * u * v * d;
                        grads.v[vr + c] += q * u * k * d;
                        if let Some(du) = &mut grads.u {
                            du[bonus_row + i] += q * k * v * d;
                        }
                        d_prev[at] += q * d;
                    }
                }
                grads.k[kr + i] += ds[at] * v;
                grads.v[vr + c] += ds[at] * k;
                let b = x.value_decay(start + t, j, c);
                let through = ds[at] * a * b;
                d_prev[at] += through;
                // d loss / d log-decay = through * S_{t-1}, for either side's gate.
                d_a += through * states[t][at];
                if let Some(gv) = &mut grads.gv {
                    gv[vr + c] += through * states[t][at];
                }
            }
            if let Some(gk) = &mut grads.gk {
                gk[x.gk_row(start + t, j) + i] += d_a;
            }
            if let Some(g) = &mut grads.g {
                g[(start + t) * x.value_heads + j] += d_a;
            }
            if let Some(gamma) = &mut grads.g_gamma {
                gamma[j] += d_a;
            }
        }
        ds = d_prev;
    }
    ds
}
