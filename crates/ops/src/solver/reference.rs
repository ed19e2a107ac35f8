//! The Mesa layer token by token with an exact solver (Gaussian elimination): what conjugate gradients approach.

use crate::conformance::{Number, dot};

/// One sequence; row-major.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a, N> {
    /// Tokens.
    pub t: usize,
    /// Heads.
    pub h: usize,
    /// Width of q and k.
    pub k_dim: usize,
    /// Width of v.
    pub v_dim: usize,
    /// `[T, H, K]`
    pub q: &'a [N],
    /// `[T, H, K]`
    pub k: &'a [N],
    /// `[T, H, V]`
    pub v: &'a [N],
    /// `[T, H]`
    pub g: &'a [N],
    /// `[T, H]`
    pub beta: &'a [N],
    /// `[H, K]`
    pub lambda: &'a [N],
    /// `[H, K, K]`
    pub kk: &'a [N],
    /// `[H, K, V]`
    pub kv: &'a [N],
}

/// x with `a x = b`, a `[n, n]` symmetric and positive.
fn solve<N: Number>(a: &[N], b: &[N]) -> Vec<N> {
    let n = b.len();
    let (mut a, mut x) = (a.to_vec(), b.to_vec());
    for i in 0..n {
        for j in i + 1..n {
            let factor = a[j * n + i] / a[i * n + i];
            for c in i..n {
                a[j * n + c] = a[j * n + c] - factor * a[i * n + c];
            }
            x[j] = x[j] - factor * x[i];
        }
    }
    for i in (0..n).rev() {
        let rest = dot(&a[i * n + i + 1..(i + 1) * n], &x[i + 1..]);
        x[i] = (x[i] - rest) / a[i * n + i];
    }
    x
}

impl<N: Number> Problem<'_, N> {
    /// Outputs `[T, H, V]`, A and B after the last token.
    pub fn forward(&self) -> [Vec<N>; 3] {
        let (h, dk, dv) = (self.h, self.k_dim, self.v_dim);
        let (mut kk, mut kv) = (self.kk.to_vec(), self.kv.to_vec());
        let mut o = Vec::new();
        for at in 0..self.t * h {
            let head = at % h;
            let (k, v) = (&self.k[at * dk..][..dk], &self.v[at * dv..][..dv]);
            let decay = self.g[at].exp();
            let (a, b) = (&mut kk[head * dk * dk..][..dk * dk], &mut kv[head * dk * dv..][..dk * dv]);
            for i in 0..dk {
                for j in 0..dk {
                    a[i * dk + j] = a[i * dk + j] * decay + self.beta[at] * k[i] * k[j];
                }
                for j in 0..dv {
                    b[i * dv + j] = b[i * dv + j] * decay + self.beta[at] * k[i] * v[j];
                }
            }
            let mut system = a.to_vec();
            (0..dk).for_each(|i| system[i * dk + i] = system[i * dk + i] + self.lambda[head * dk + i]);
            let x = solve(&system, &self.q[at * dk..][..dk]);
            o.extend((0..dv).map(|j| (0..dk).fold(N::of(0.0), |sum, i| sum + x[i] * b[i * dv + j])));
        }
        [o, kk, kv]
    }
}
