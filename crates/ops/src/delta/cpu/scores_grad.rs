//! Backward of [`super::scores`]: from the gradients of scores and decayed panels to those of queries, keys, erase
//! keys and the log-decay.
//!
//! The gradient of `g_r` is the sum over everything that decays across token r: pairs (t, s) with s < r <= t inside
//! the chunk, reads of the chunk's first state by t >= r, writes s < r to its last state, and the state itself. Where
//! the erase key reads the state before the decay (Comba), its pairs end at t - 1.

use flashlin_tensor::cpu::vectorized;

use super::panels::{GateKind, Panels, Spec};
use super::scores::{Scores, mul_rows, product_row};
use crate::pairs::panel;
use crate::simd::{Buf, Extent, Mat, PAD, Real, Store, dot, mm_nn, mm_tn};

/// Working memory of the scores' backward.
pub(crate) struct ScoreGrads<R> {
    /// In: gradients of `Aq` over `Ap`, `[2c, c]` (lower blocks). Scratch afterwards.
    pub da: Buf<R>,
    /// Out: gradient of the log-decay, `[c]` or `[c, Kp]`.
    pub dg: Buf<R>,
    /// What the decay of the whole state contributes: `[1]` or `[Kp]`.
    whole: Buf<R>,
    /// Scalar gate: products of scores and their gradients, `[c, c]`.
    pairs: Buf<R>,
    /// A running row, `[max(c, Kp)]`.
    run: Buf<R>,
    /// Per-channel gate: gradients of the queries' scores of their own tokens `[c]`, and keys times the part of their
    /// gradients that comes from after the chunk `[c, Kp]`.
    own: Buf<R>,
    far: Buf<R>,
}

impl<R: Real> ScoreGrads<R> {
    pub fn new(s: &Spec) -> Self {
        let (c, kp) = (s.chunk, s.kp());
        let zeros = |n: usize| Buf::zeros(n);
        let channel = |n: usize| Buf::zeros(if s.gate == GateKind::Channel { n } else { 0 });
        ScoreGrads {
            da: zeros(2 * c * c),
            dg: zeros(match s.gate {
                GateKind::None => 0,
                GateKind::Scalar => c,
                GateKind::Channel => c * kp,
            }),
            whole: zeros(kp),
            pairs: zeros(if s.gate == GateKind::Scalar { c * c } else { 0 }),
            run: zeros(c.max(kp)),
            own: channel(c),
            far: channel(c * kp),
        }
    }

    /// The whole state's decay: `state` at the chunk's start, `ds` the gradient at its end.
    pub fn state_decay(&mut self, s: &Spec, total: &[R], state: &[R], ds: &[R]) {
        let (kp, vp) = (s.kp(), s.vp());
        let whole = &mut self.whole;
        vectorized(
            #[inline(always)]
            || {
                for ch in 0..kp {
                    whole[ch] = total[ch] * dot(&state[ch * vp..][..vp], &ds[ch * vp..][..vp]);
                }
            },
        );
        if s.gate == GateKind::Scalar {
            self.whole[0] = self.whole[..kp].iter().copied().sum();
        }
    }

    /// `dx` and `dk` come in as gradients of the panels decayed from the chunk's start and to its end, and leave as
    /// those of queries, erase keys and keys.
    pub fn run(&mut self, s: &Spec, p: &Panels<R>, sc: &mut Scores<R>, dx: &mut [R], dk: &mut [R]) {
        match s.gate {
            GateKind::Channel => self.channel(s, p, sc, dx, dk),
            _ => self.scalar(s, p, sc, dx, dk),
        }
    }

    fn scalar(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>, dx: &mut [R], dk: &mut [R]) {
        let (c, kp) = (p.c, s.kp());
        if s.gate == GateKind::Scalar {
            self.scalar_panels_decay_grad(s, p, sc, dx, dk);
        }
        self.mask_score_grads(s, p, sc);
        if s.gate == GateKind::Scalar {
            self.scalar_pairs_decay_grad(c);
        }
        undecay_scalar(s, p, sc, dx, dk);
        for half in [0, c] {
            let (da, x) = (Mat::new(&self.da[half * c..], c), Mat::new(&p.x[half * kp..], kp));
            let out = (&mut dx[half * kp..], kp);
            mm_nn(s.arch, (c, kp, c), da, Mat::new(&p.k, kp), out, Store::Add, Extent::LowerInner);
            mm_tn(s.arch, (c, kp, c), da, x, (dk, kp), Store::Add, Extent::UpperInner);
        }
    }

    /// Reads of the first state, writes to the last state and the state itself.
    fn scalar_panels_decay_grad(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>, dx: &[R], dk: &[R]) {
        let (c, kp) = (p.c, s.kp());
        let (dg, whole) = (&mut self.dg, self.whole[0]);
        vectorized(
            #[inline(always)]
            || {
                let mut later = R::ZERO;
                for t in (0..c).rev() {
                    if s.erase_before_decay {
                        later += row_dot(&sc.x, dx, t, kp);
                        dg[t] = later;
                        later += row_dot(&sc.x, dx, c + t, kp);
                    } else {
                        later += row_dot(&sc.x, dx, t, kp) + row_dot(&sc.x, dx, c + t, kp);
                        dg[t] = later;
                    }
                }
                let mut earlier = whole;
                for t in 0..c {
                    dg[t] += earlier;
                    earlier += sc.suffix[t] * dot(&p.k[t * kp..][..kp], &dk[t * kp..][..kp]);
                }
            },
        );
    }

    /// `da` becomes the gradient of the undecayed products; `pairs` gets score times gradient at the row of the last
    /// decay that the pair crosses.
    fn mask_score_grads(&mut self, s: &Spec, p: &Panels<R>, sc: &Scores<R>) {
        let c = p.c;
        let gated = s.gate == GateKind::Scalar;
        let scale = R::from_f64(s.scale);
        let ScoreGrads { da, pairs, run, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                let (dq, dp) = da.split_at_mut(c * c);
                let lanes = &mut run[..c];
                lanes.fill(R::ZERO);
                for t in 0..c {
                    let n = t / PAD * PAD + PAD;
                    let (dq, dp) = (&mut dq[t * c..][..n], &mut dp[t * c..][..n]);
                    let lanes = &mut lanes[..n];
                    if gated {
                        product_row(dq, &sc.a[t * c..][..n], R::ONE, &mut pairs[t * c..][..n]);
                        let at = if s.erase_before_decay { t.wrapping_sub(1) } else { t };
                        if at < c {
                            let ap = &sc.a[(c + t) * c..][..n];
                            let row = &mut pairs[at * c..][..at / PAD * PAD + PAD];
                            for (o, (&a, &d)) in row.iter_mut().zip(ap.iter().zip(dp.iter())) {
                                *o = a.mul_add(d, *o);
                            }
                        }
                        if s.erase_before_decay {
                            mul_rows(dp, lanes, R::ONE);
                        }
                        lanes.iter_mut().for_each(|l| *l *= p.decay[t]);
                        if !s.erase_before_decay {
                            mul_rows(dp, lanes, R::ONE);
                        }
                    } else {
                        mul_rows(dp, lanes, R::ONE);
                    }
                    lanes[t] = R::ONE;
                    mul_rows(dq, lanes, scale);
                }
            },
        );
    }

    /// Pairs (t, s) with s < r <= t, for each r.
    fn scalar_pairs_decay_grad(&mut self, c: usize) {
        let ScoreGrads { dg, pairs, run, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                let sums = &mut run[..c];
                sums.fill(R::ZERO);
                for t in (0..c).rev() {
                    let n = t / PAD * PAD + PAD;
                    for (a, &m) in sums[..n].iter_mut().zip(&pairs[t * c..][..n]) {
                        *a += m;
                    }
                    // Columns from t on take part in no further pair (and the diagonal in none).
                    sums[t] = R::ZERO;
                    let mut partial = [R::ZERO; PAD];
                    for block in sums[..n].chunks_exact(PAD) {
                        for l in 0..PAD {
                            partial[l] += block[l];
                        }
                    }
                    dg[t] += partial.iter().copied().sum::<R>();
                }
            },
        );
    }

    /// Through [`crate::pairs`]: what the chunk's pairs add to the gradients of the decayed panels, and the log-decay's
    /// gradient from the products of panels with their gradients.
    fn channel(&mut self, s: &Spec, p: &Panels<R>, sc: &mut Scores<R>, dx: &mut [R], dk: &mut [R]) {
        let (c, kp) = (p.c, s.kp());
        let n = c * kp;
        let ScoreGrads { da, dg, whole, run, own, far, .. } = self;
        let Some(pairs) = &mut sc.pairs else { return };
        let (dq_scores, dp_scores) = da[..2 * c * c].split_at_mut(c * c);
        // Pairs of a query with its own token do not decay: they are left out of the gate's gradient, not cancelled.
        for t in 0..c {
            own[t] = dq_scores[t * c + t];
            dq_scores[t * c + t..(t + 1) * c].fill(R::ZERO);
            dp_scores[t * c + t..(t + 1) * c].fill(R::ZERO);
        }
        let (dq_scores, dp_scores) = (&*dq_scores, &*dp_scores);
        let (dq, dp) = dx[..2 * n].split_at_mut(n);
        panel::mul(s.arch, &dk[..n], pairs.y_far(false), &mut far[..n]);
        pairs.finish_x(0, c, (dq_scores, c), None, dq);
        pairs.finish_x(1, c, (dp_scores, c), None, dp);
        pairs.finish_y(c, [(dq_scores, c), (dp_scores, c)], None, dk);
        let (q, k) = (&pairs.x[0].rows[..n], &p.k[..n]);
        let reads = [(q, &dq[..], false), (&pairs.x[1].rows[..n], &dp[..], s.erase_before_decay)];
        let run = &mut run[..kp];
        run.copy_from_slice(&whole[..kp]);
        panel::gate_gradient(s.arch, reads, (k, &dk[..n]), &far[..n], run, &mut dg[..n]);
        let scale = R::from_f64(s.scale);
        vectorized(
            #[inline(always)]
            || {
                for (t, &own) in own[..c].iter().enumerate() {
                    let row = t * kp..(t + 1) * kp;
                    let (q, k) = (&q[row.clone()], &k[row.clone()]);
                    for (d, &k) in dq[row.clone()].iter_mut().zip(k) {
                        *d = own.mul_add(k, *d) * scale;
                    }
                    for (d, &q) in dk[row].iter_mut().zip(q) {
                        *d = own.mul_add(q, *d);
                    }
                }
            },
        );
    }
}

/// `dx` and `dk` from gradients of decayed panels to gradients of the panels, for a scalar gate or none.
fn undecay_scalar<R: Real>(s: &Spec, p: &Panels<R>, sc: &Scores<R>, dx: &mut [R], dk: &mut [R]) {
    let (c, kp) = (p.c, s.kp());
    let scale = R::from_f64(s.scale);
    let gated = s.gate == GateKind::Scalar;
    vectorized(
        #[inline(always)]
        || {
            let mut prefix = R::ONE;
            for t in 0..c {
                let before = prefix;
                if gated {
                    prefix *= p.decay[t];
                    dk[t * kp..][..kp].iter_mut().for_each(|x| *x *= sc.suffix[t]);
                }
                let at_erase = if s.erase_before_decay { before } else { prefix };
                dx[t * kp..][..kp].iter_mut().for_each(|x| *x *= prefix * scale);
                dx[(c + t) * kp..][..kp].iter_mut().for_each(|x| *x *= at_erase);
            }
        },
    );
}

/// Sum of products of row `t` of two panels. (A closure would not be compiled for the vectors of its caller.)
#[inline(always)]
fn row_dot<R: Real>(a: &[R], b: &[R], t: usize, width: usize) -> R {
    dot(&a[t * width..][..width], &b[t * width..][..width])
}
