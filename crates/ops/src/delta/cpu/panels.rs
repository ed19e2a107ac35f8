//! One chunk of one head as padded panels in the kernel's type, with the in-kernel activations applied on the way
//! in (l2 norm of the keys, gate formula, sigmoid of beta) and undone on the way out (their gradients).

use flashlin_tensor::cpu::vectorized;

use super::input::{Input, Rows, Seq};
use crate::gate::formulas::{self, DecayGate};
use crate::simd::{Arch, Buf, PAD, Real, dot, padded};

/// Epsilon of the in-kernel l2 norm: `x / sqrt(sum x^2 + eps)`.
pub(crate) const L2_EPS: f64 = 1e-6;

/// What the log-decay looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateKind {
    None,
    Scalar,
    Channel,
}

/// What the kernel is asked to compute, apart from the data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// Instruction set of the matrix products.
    pub arch: Arch,
    pub h: usize,
    pub hv: usize,
    pub k: usize,
    pub v: usize,
    pub chunk: usize,
    pub scale: f64,
    pub l2norm: bool,
    pub erase_before_decay: bool,
    pub gate: GateKind,
    pub activation: Option<DecayGate>,
    /// beta is one number for each value channel.
    pub beta_channel: bool,
    /// beta comes as a logit; the factor after the sigmoid.
    pub beta_sigmoid: bool,
    pub beta_factor: f64,
}

impl Spec {
    pub fn kp(&self) -> usize {
        padded(self.k)
    }

    pub fn vp(&self) -> usize {
        padded(self.v)
    }

    pub fn key_head(&self, hv: usize) -> usize {
        hv / (self.hv / self.h)
    }

    /// Numbers of the log-decay for a token and head.
    pub fn gate_dim(&self) -> usize {
        match self.gate {
            GateKind::None => 0,
            GateKind::Scalar => 1,
            GateKind::Channel => self.k,
        }
    }

    pub fn beta_dim(&self) -> usize {
        if self.beta_channel { self.v } else { 1 }
    }
}

/// The arguments of a call.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a, R> {
    pub q: Input<'a>,
    pub k: Input<'a>,
    pub erase: Option<Input<'a>>,
    pub v: Input<'a>,
    pub beta: Option<Input<'a>>,
    pub gate: Option<Input<'a>>,
    /// `exp(A_log)` of each value head (1 where `A_log` is absent).
    pub a: &'a [R],
    /// Bias of the gate's logit, `[HV]` or `[HV, K]`; empty when absent.
    pub dt_bias: &'a [R],
}

/// A chunk of one head; `c` is its number of tokens, padded.
pub(crate) struct Panels<R> {
    /// Tokens, and tokens padded to whole registers.
    pub rows: usize,
    pub c: usize,
    /// Queries over erase keys, `[2c, Kp]`.
    pub x: Buf<R>,
    /// Write keys `[c, Kp]`.
    pub k: Buf<R>,
    /// Values `[c, Vp]`.
    pub v: Buf<R>,
    /// Write strengths `[c]` or `[c, Vp]`.
    pub beta: Buf<R>,
    /// Decay factors `e^g`: `[c]` or `[c, Kp]`; 1 in padding.
    pub decay: Buf<R>,
    /// `1 / |x|` of queries, erase keys, keys: `[3c]`.
    pub rstd: Buf<R>,
    /// One row of gate logits or beta logits.
    row: Buf<R>,
}

impl<R: Real> Panels<R> {
    pub fn new(s: &Spec) -> Self {
        let (c, kp, vp) = (s.chunk, s.kp(), s.vp());
        let zeros = |n: usize| Buf::zeros(n);
        let decay = match s.gate {
            GateKind::None => 0,
            GateKind::Scalar => c,
            GateKind::Channel => c * kp,
        };
        Panels {
            rows: 0,
            c: 0,
            x: zeros(2 * c * kp),
            k: zeros(c * kp),
            v: zeros(c * vp),
            beta: zeros(if s.beta_channel { c * vp } else { c }),
            decay: zeros(decay),
            rstd: zeros(3 * c),
            row: zeros(kp.max(vp)),
        }
    }

    /// Memory for single tokens.
    pub fn for_tokens(s: &Spec) -> Self {
        Self::new(&Spec { chunk: 1, ..*s })
    }

    /// Loads tokens `from..from + rows` of a sequence, padded to whole registers.
    pub fn load(&mut self, s: &Spec, x: &Inputs<'_, R>, seq: Seq, hv: usize, from: usize, rows: usize) {
        self.load_padded(s, x, seq, hv, from, rows, padded(rows));
    }

    /// Loads tokens `from..from + rows` of a sequence, padded to `c` with tokens that do nothing.
    pub fn load_padded(
        &mut self,
        s: &Spec,
        x: &Inputs<'_, R>,
        seq: Seq,
        hv: usize,
        from: usize,
        rows: usize,
        c: usize,
    ) {
        self.rows = rows;
        self.c = c;
        let (c, kp, vp) = (self.c, s.kp(), s.vp());
        let (h, b, t0) = (s.key_head(hv), seq.batch, seq.start + from);
        vectorized(
            #[inline(always)]
            || {
                let (q, p) = self.x.split_at_mut(c * kp);
                let (rq, rest) = self.rstd.split_at_mut(c);
                let (rp, rk) = rest.split_at_mut(c);
                load_keys(s, &x.q, b, t0, h, rows, &mut q[..c * kp], rq);
                load_keys(s, &x.k, b, t0, h, rows, &mut self.k[..c * kp], rk);
                match &x.erase {
                    Some(e) => load_keys(s, e, b, t0, h, rows, &mut p[..c * kp], rp),
                    None => p[..c * kp].copy_from_slice(&self.k[..c * kp]),
                }
                self.v[..c * vp].fill(R::ZERO);
                for r in 0..rows {
                    x.v.row(b, t0 + r, hv, &mut self.v[r * vp..][..s.v]);
                }
                self.load_beta(s, x, b, t0, hv);
                self.load_decay(s, x, b, t0, hv);
            },
        );
    }

    #[inline(always)]
    fn load_beta(&mut self, s: &Spec, x: &Inputs<'_, R>, b: usize, t0: usize, hv: usize) {
        let (n, ld) = (s.beta_dim(), if s.beta_channel { s.vp() } else { 1 });
        self.beta[..self.c * ld].fill(R::ZERO);
        let factor = R::from_f64(s.beta_factor);
        for r in 0..self.rows {
            let row = &mut self.beta[r * ld..][..n];
            match &x.beta {
                None => row.fill(factor),
                Some(beta) => {
                    beta.row(b, t0 + r, hv, row);
                    for e in row {
                        *e = if s.beta_sigmoid { formulas::beta(*e, factor) } else { *e * factor };
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn load_decay(&mut self, s: &Spec, x: &Inputs<'_, R>, b: usize, t0: usize, hv: usize) {
        let Some(gate) = &x.gate else { return };
        let (n, ld) = (s.gate_dim(), if s.gate == GateKind::Channel { s.kp() } else { 1 });
        self.decay[..self.c * ld].fill(R::ONE);
        for r in 0..self.rows {
            let row = &mut self.decay[r * ld..][..n];
            gate.row(b, t0 + r, hv, row);
            if let Some(f) = s.activation {
                let a = x.a[hv];
                if !x.dt_bias.is_empty() {
                    let bias = &x.dt_bias[hv * n..][..n];
                    for (e, &b) in row.iter_mut().zip(bias) {
                        *e += b;
                    }
                }
                for e in row.iter_mut() {
                    *e = f.value(*e, a);
                }
            }
            for e in row {
                *e = e.exp();
            }
        }
    }

    /// Turns a gradient of beta `[c]` or `[c, Vp]` into that of the argument and writes it.
    pub fn store_beta_grad(
        &mut self,
        s: &Spec,
        x: &Inputs<'_, R>,
        seq: Seq,
        hv: usize,
        from: usize,
        grad: &[R],
        out: &mut Rows<'_, R>,
    ) {
        let Some(beta) = &x.beta else { return };
        let (n, ld) = (s.beta_dim(), if s.beta_channel { s.vp() } else { 1 });
        let factor = R::from_f64(s.beta_factor);
        for r in 0..self.rows {
            let logit = &mut self.row[..n];
            beta.row(seq.batch, seq.start + from + r, hv, logit);
            let dst = &mut out[from + r];
            for j in 0..n {
                let slope = if s.beta_sigmoid { formulas::beta_derivative(logit[j], factor) } else { factor };
                dst[j] = grad[r * ld + j] * slope;
            }
        }
    }

    /// Turns a gradient of the log-decay `[c]` or `[c, Kp]` into that of the gate argument and writes it; adds to
    /// the gradients of `A_log` and `dt_bias` of this head.
    pub fn store_gate_grad(
        &mut self,
        s: &Spec,
        x: &Inputs<'_, R>,
        seq: Seq,
        hv: usize,
        from: usize,
        grad: &[R],
        out: &mut Option<Rows<'_, R>>,
        params: &mut GateParamGrads,
    ) {
        let Some(gate) = &x.gate else { return };
        let (n, ld) = (s.gate_dim(), if s.gate == GateKind::Channel { s.kp() } else { 1 });
        let (rows, logit) = (self.rows, &mut self.row[..n]);
        vectorized(
            #[inline(always)]
            || {
                for r in 0..rows {
                    let grad = &grad[r * ld..][..n];
                    match s.activation {
                        None => {
                            if let Some(out) = out {
                                out[from + r].copy_from_slice(grad);
                            }
                        }
                        Some(f) => {
                            gate.row(seq.batch, seq.start + from + r, hv, logit);
                            if !x.dt_bias.is_empty() {
                                for (e, &b) in logit.iter_mut().zip(&x.dt_bias[hv * n..][..n]) {
                                    *e += b;
                                }
                            }
                            activation_grad(f, x.a[hv], logit, grad, params);
                            if let Some(out) = out {
                                out[from + r].copy_from_slice(logit);
                            }
                        }
                    }
                }
            },
        );
    }
}

/// Gradients of one head's gate parameters, summed in f64 over its tokens.
#[derive(Clone, Debug)]
pub(crate) struct GateParamGrads {
    pub a_log: f64,
    /// `[1]` or `[K]`.
    pub dt_bias: Vec<f64>,
}

/// `logit` comes in with the bias added and leaves as the gradient of the logit.
#[inline(always)]
fn activation_grad<R: Real>(f: DecayGate, a: R, logit: &mut [R], grad: &[R], params: &mut GateParamGrads) {
    let mut d_a = 0f64;
    for (j, x) in logit.iter_mut().enumerate() {
        let (dx, da) = f.derivatives(*x, a);
        d_a += (grad[j] * da).to_f64();
        *x = grad[j] * dx;
        params.dt_bias[j] += x.to_f64();
    }
    params.a_log += d_a;
}

/// Key-like rows into a padded panel, normalised when asked.
#[inline(always)]
fn load_keys<R: Real>(
    s: &Spec,
    x: &Input<'_>,
    b: usize,
    t0: usize,
    h: usize,
    rows: usize,
    dst: &mut [R],
    rstd: &mut [R],
) {
    let kp = s.kp();
    dst[rows * kp..].fill(R::ZERO);
    for r in 0..rows {
        let row = &mut dst[r * kp..][..kp];
        x.row(b, t0 + r, h, &mut row[..s.k]);
        row[s.k..].fill(R::ZERO);
        if s.l2norm {
            let scale = R::ONE / (dot(row, row) + R::from_f64(L2_EPS)).sqrt();
            rstd[r] = scale;
            for e in row {
                *e *= scale;
            }
        }
    }
}

/// Gradient of a key-like panel to the argument's rows, through the norm when there is one. `x` holds the
/// (normalised) keys, `grad` their gradient.
pub(crate) fn store_keys_grad<R: Real>(
    s: &Spec,
    rows: usize,
    x: &[R],
    rstd: &[R],
    grad: &[R],
    from: usize,
    out: &mut Option<Rows<'_, R>>,
) {
    let Some(out) = out else { return };
    let kp = s.kp();
    debug_assert_eq!(kp % PAD, 0);
    vectorized(
        #[inline(always)]
        || {
            for r in 0..rows {
                let (x, g) = (&x[r * kp..][..kp], &grad[r * kp..][..kp]);
                let dst = &mut out[from + r];
                if s.l2norm && s.k < PAD {
                    norm_grad::<R, f64>(x, g, rstd[r], dst);
                } else if s.l2norm {
                    norm_grad::<R, R>(x, g, rstd[r], dst);
                } else {
                    dst.copy_from_slice(&g[..s.k]);
                }
            }
        },
    );
}

/// Gradient through `x / sqrt(sum x^2 + eps)`, from the normalised row: `rstd (g - x c)`, where `c = x g` up to rounding.
/// Short rows are projected in f64 (`A`): there, little or nothing may be left across `x`, and with one channel the
/// gradient is what epsilon leaves.
#[inline(always)]
fn norm_grad<R: Real, A: Real>(x: &[R], g: &[R], rstd: R, out: &mut [R]) {
    let wide = |v: R| A::from_f64(v.to_f64());
    let mut c = wide(dot(x, g));
    if A::DTYPE != R::DTYPE {
        let sum = |a: &[R], b: &[R]| a.iter().zip(b).map(|(&a, &b)| wide(a) * wide(b)).sum::<A>();
        let own = sum(x, x);
        let left = A::ONE - A::from_f64(L2_EPS) * wide(rstd) * wide(rstd);
        c = if own > A::ZERO { sum(x, g) / own * left } else { A::ZERO };
    }
    for (o, (&x, &g)) in out.iter_mut().zip(x.iter().zip(g)) {
        *o = R::from_f64(((wide(g) - wide(x) * c) * wide(rstd)).to_f64());
    }
}
