//! The recurrences token by token, written from their formulas, over any [`Number`]: values in f64, gradients by the tape.

use crate::conformance::{Number, dot};

/// Sizes of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    /// Tokens.
    pub t: usize,
    /// Heads of queries and keys.
    pub h: usize,
    /// Heads of values, a multiple of `h`.
    pub hv: usize,
    /// Width of keys.
    pub k: usize,
    /// Width of values.
    pub v: usize,
}

/// One sequence of [`delta_product`](super::delta_product): k, v and beta hold n entries a token.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a, N> {
    /// Sizes.
    pub dims: Dims,
    /// Steps a token.
    pub n: usize,
    /// `[T, H, K]`
    pub q: &'a [N],
    /// `[T, n, H, K]`
    pub k: &'a [N],
    /// `[T, n, HV, V]`
    pub v: &'a [N],
    /// `[T, n, HV]`
    pub beta: &'a [N],
    /// `[T, HV]`
    pub g: Option<&'a [N]>,
    /// `[HV, K, V]`
    pub h0: Option<&'a [N]>,
    /// Factor on the output.
    pub scale: f64,
}

/// One sequence of [`dplr`](super::dplr).
#[derive(Clone, Copy, Debug)]
pub struct Generalised<'a, N> {
    /// Sizes.
    pub dims: Dims,
    /// `[T, H, K]`
    pub q: &'a [N],
    /// `[T, H, K]`
    pub k: &'a [N],
    /// `[T, HV, V]`
    pub v: &'a [N],
    /// `[T, H, K]`
    pub a: &'a [N],
    /// `[T, H, K]`
    pub b: &'a [N],
    /// `[T, HV, K]`
    pub g: Option<&'a [N]>,
    /// `[HV, K, V]`
    pub h0: Option<&'a [N]>,
    /// Factor on the output.
    pub scale: f64,
}

fn first<N: Number>(d: Dims, h0: Option<&[N]>) -> Vec<N> {
    h0.map_or_else(|| vec![N::of(0.0); d.hv * d.k * d.v], <[N]>::to_vec)
}

/// S^T x of one head.
fn read<N: Number>(s: &[N], x: &[N], width: usize) -> Vec<N> {
    (0..width).map(|j| (0..x.len()).fold(N::of(0.0), |sum, c| sum + s[c * width + j] * x[c])).collect()
}

/// S += k u^T
fn write<N: Number>(s: &mut [N], k: &[N], u: &[N]) {
    for (row, &k) in s.chunks_mut(u.len()).zip(k) {
        row.iter_mut().zip(u).for_each(|(s, &u)| *s = *s + k * u);
    }
}

impl<N: Number> Product<'_, N> {
    /// Outputs `[T, HV, V]` and the last state `[HV, K, V]`.
    pub fn forward(&self) -> (Vec<N>, Vec<N>) {
        let d = self.dims;
        let mut state = first(d, self.h0);
        let mut o = Vec::new();
        for t in 0..d.t {
            for head in 0..d.hv {
                let s = &mut state[head * d.k * d.v..][..d.k * d.v];
                if let Some(g) = self.g {
                    let decay = g[t * d.hv + head].exp();
                    s.iter_mut().for_each(|s| *s = *s * decay);
                }
                let key_head = head / (d.hv / d.h);
                for step in t * self.n..(t + 1) * self.n {
                    let k = &self.k[(step * d.h + key_head) * d.k..][..d.k];
                    let v = &self.v[(step * d.hv + head) * d.v..][..d.v];
                    let beta = self.beta[step * d.hv + head];
                    let held = read(s, k, d.v);
                    let u: Vec<N> = v.iter().zip(held).map(|(&v, held)| beta * (v - held)).collect();
                    write(s, k, &u);
                }
                let q = &self.q[(t * d.h + key_head) * d.k..][..d.k];
                o.extend(read(s, q, d.v).into_iter().map(|o| o * N::of(self.scale)));
            }
        }
        (o, state)
    }
}

impl<N: Number> Generalised<'_, N> {
    /// Outputs `[T, HV, V]` and the last state `[HV, K, V]`.
    pub fn forward(&self) -> (Vec<N>, Vec<N>) {
        let d = self.dims;
        let mut state = first(d, self.h0);
        let mut o = Vec::new();
        for t in 0..d.t {
            for head in 0..d.hv {
                let s = &mut state[head * d.k * d.v..][..d.k * d.v];
                let row = |x: &'_ [N]| x[(t * d.h + head / (d.hv / d.h)) * d.k..][..d.k].to_vec();
                let held = read(s, &row(self.a), d.v);
                if let Some(g) = self.g {
                    for (c, line) in s.chunks_mut(d.v).enumerate() {
                        let decay = g[(t * d.hv + head) * d.k + c].exp();
                        line.iter_mut().for_each(|s| *s = *s * decay);
                    }
                }
                write(s, &row(self.b), &held);
                write(s, &row(self.k), &self.v[(t * d.hv + head) * d.v..][..d.v]);
                o.extend(read(s, &row(self.q), d.v).into_iter().map(|o| o * N::of(self.scale)));
            }
        }
        (o, state)
    }

    /// The same from the paper's other side: the state is never formed. Token j's value reaches token i through the transitions
    /// `D_t + b_t a_t^T` after j, applied to its key one by one (no initial state).
    pub fn unrolled(&self) -> Vec<N> {
        let d = self.dims;
        let mut o = vec![N::of(0.0); d.t * d.hv * d.v];
        for head in 0..d.hv {
            let row = |x: &'_ [N], t: usize| x[(t * d.h + head / (d.hv / d.h)) * d.k..][..d.k].to_vec();
            for j in 0..d.t {
                let mut key = row(self.k, j);
                let v = &self.v[(j * d.hv + head) * d.v..][..d.v];
                for i in j..d.t {
                    if i > j {
                        let along = dot(&row(self.a, i), &key);
                        let b = row(self.b, i);
                        for c in 0..d.k {
                            let decay = self.g.map_or(N::of(1.0), |g| g[(i * d.hv + head) * d.k + c].exp());
                            key[c] = decay * key[c] + b[c] * along;
                        }
                    }
                    let weight = dot(&row(self.q, i), &key) * N::of(self.scale);
                    for (o, &v) in o[(i * d.hv + head) * d.v..][..d.v].iter_mut().zip(v) {
                        *o = *o + weight * v;
                    }
                }
            }
        }
        o
    }
}
