//! Decayed scores inside a chunk, for each kind of gate, and the panels that tie a chunk to its states.
//!
//! With `D(s, t]` the product of the decay factors `e^g` of tokens s+1..t, a chunk needs
//! - `Aq[t, s] = scale q_t^T D(s, t] k_s` for s <= t and `Ap[t, s] = p_t^T D(s, t] k_s` for s < t,
//! - queries and erase keys decayed from the chunk's start, `D(start, t] q_t`,
//! - keys decayed to its end, `D(s, end] k_s`.
//!
//! Every decay is a running product of factors `e^g <= 1`: nothing is divided, no cumulated gate is subtracted and
//! no positive number is exponentiated, so gates of any strength stay finite and keep their relative accuracy; what
//! underflows is below the smallest float anyway. With a gate for each channel, the scores of 16 x 16 diagonal
//! blocks come from keys that decay along; below them the product goes through a reference point between the two
//! tokens (the start of the row block), where both factors are <= 1.

use flashlin_tensor::cpu::vectorized;

use super::diagonal::Diagonal;
use super::panels::{GateKind, Panels, Spec};
use crate::simd::{Buf, Extent, Mat, PAD, Real, Store, mm_nn, transpose};

/// Score matrices and decayed panels of one chunk.
pub(crate) struct Scores<R> {
    /// `Aq` over `Ap`, `[2c, c]`; above the diagonal only the diagonal 16 x 16 blocks are written (with zeros).
    pub a: Buf<R>,
    /// Queries (with scale) over erase keys, decayed from the chunk's start, `[2c, Kp]`.
    pub x: Buf<R>,
    /// The same decayed from the start of their block of 16 only (per-channel gates), `[2c, Kp]`.
    pub local: Buf<R>,
    /// Keys decayed to the chunk's end, transposed, `[Kp, c]`.
    pub kt: Buf<R>,
    /// Decay over the whole chunk for each key channel, `[Kp]`.
    pub total: Buf<R>,
    /// Per-channel gates: decay factors from the start of the block of 16 to each token, `[c, Kp]`.
    pub into: Buf<R>,
    /// A running row, `[max(c, Kp)]`.
    run: Buf<R>,
    /// Scalar gate: decays to the chunk's end, `[c]`.
    pub suffix: Buf<R>,
}

impl<R: Real> Scores<R> {
    pub fn new(s: &Spec) -> Self {
        let (c, kp) = (s.chunk, s.kp());
        let zeros = |n: usize| Buf::zeros(n);
        let channel = s.gate == GateKind::Channel;
        Scores {
            a: zeros(2 * c * c),
            x: zeros(2 * c * kp),
            local: zeros(if channel { 2 * c * kp } else { 0 }),
            kt: zeros(kp * c),
            total: zeros(kp),
            into: zeros(if channel { c * kp } else { 0 }),
            run: zeros(c.max(kp)),
            suffix: zeros(c),
        }
    }

    /// Fills everything for the chunk in `p`.
    pub fn compute(&mut self, s: &Spec, p: &Panels<R>) {
        match s.gate {
            GateKind::Channel => self.channel(s, p),
            _ => self.scalar(s, p),
        }
    }

    fn scalar(&mut self, s: &Spec, p: &Panels<R>) {
        let (c, kp) = (p.c, s.kp());
        let (arch, scale) = (s.arch, R::from_f64(s.scale));
        transpose(arch, &p.k, kp, c, kp, &mut self.kt, c);
        for half in [0, c] {
            let x = Mat::new(&p.x[half * kp..], kp);
            let out = (&mut self.a[half * c..], c);
            mm_nn(arch, (c, c, kp), x, Mat::new(&self.kt, c), out, Store::Set, Extent::LowerOut);
        }
        let gated = s.gate == GateKind::Scalar;
        let Scores { a, x, kt, total, run, suffix, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                let one = |t: usize| if gated { p.decay[t] } else { R::ONE };
                let (aq, ap) = a.split_at_mut(c * c);
                let lanes = &mut run[..c];
                lanes.fill(R::ZERO);
                for t in 0..c {
                    // `lanes[s]` is D(s, t-1] for s < t, then D(s, t]; zero beyond, which masks the scores.
                    let n = t / PAD * PAD + PAD;
                    let (aq, ap, lanes) = (&mut aq[t * c..][..n], &mut ap[t * c..][..n], &mut lanes[..n]);
                    let e = one(t);
                    if s.erase_before_decay {
                        mul_rows(ap, lanes, R::ONE);
                    }
                    if gated {
                        lanes.iter_mut().for_each(|l| *l *= e);
                    }
                    if !s.erase_before_decay {
                        mul_rows(ap, lanes, R::ONE);
                    }
                    lanes[t] = R::ONE;
                    mul_rows(aq, lanes, scale);
                }
                suffix[c - 1] = R::ONE;
                for t in (1..c).rev() {
                    suffix[t - 1] = suffix[t] * one(t);
                }
                let mut prefix = R::ONE;
                for t in 0..c {
                    let before = prefix;
                    prefix *= one(t);
                    let at_erase = if s.erase_before_decay { before } else { prefix };
                    scale_row(&p.x[t * kp..][..kp], prefix * scale, &mut x[t * kp..][..kp]);
                    scale_row(&p.x[(c + t) * kp..][..kp], at_erase, &mut x[(c + t) * kp..][..kp]);
                }
                total.fill(prefix);
                if gated {
                    for row in kt.chunks_exact_mut(c).take(kp) {
                        mul_rows(row, &suffix[..c], R::ONE);
                    }
                }
            },
        );
    }

    fn channel(&mut self, s: &Spec, p: &Panels<R>) {
        let (c, kp) = (p.c, s.kp());
        self.local_panels(s, p);
        let Scores { a, x, local, kt, total, into, .. } = self;
        total.fill(R::ONE);
        for i in (0..c).step_by(PAD) {
            if i > 0 {
                for half in [0, c] {
                    let rows = Mat::new(&local[(half + i) * kp..], kp);
                    let out = (&mut a[(half + i) * c..], c);
                    mm_nn(s.arch, (PAD, i, kp), rows, Mat::new(kt, c), out, Store::Set, Extent::Full);
                }
            }
            s.arch.dispatch(Diagonal { s, p, i, kt: &mut kt[..], a: &mut a[..] });
            let whole = &into[(i + PAD - 1) * kp..][..kp];
            vectorized(
                #[inline(always)]
                || {
                    for (row, &e) in kt.chunks_exact_mut(c).zip(whole) {
                        row[..i].iter_mut().for_each(|k| *k *= e);
                    }
                    for half in [0, c] {
                        for t in half + i..half + i + PAD {
                            let (src, dst) = (&local[t * kp..][..kp], &mut x[t * kp..][..kp]);
                            for (d, (&x, &e)) in dst.iter_mut().zip(src.iter().zip(total.iter())) {
                                *d = x * e;
                            }
                        }
                    }
                    mul_rows(total, whole, R::ONE);
                },
            );
        }
    }

    /// Decays from the start of each block of 16, and queries and erase keys with them.
    fn local_panels(&mut self, s: &Spec, p: &Panels<R>) {
        let (c, kp) = (p.c, s.kp());
        let scale = R::from_f64(s.scale);
        let Scores { local, into, run, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                let run = &mut run[..kp];
                for t in 0..c {
                    if t % PAD == 0 {
                        run.fill(R::ONE);
                    }
                    let erase = (&p.x[(c + t) * kp..][..kp], c + t);
                    if s.erase_before_decay {
                        product_row(erase.0, run, R::ONE, &mut local[erase.1 * kp..][..kp]);
                    }
                    mul_rows(run, &p.decay[t * kp..][..kp], R::ONE);
                    if !s.erase_before_decay {
                        product_row(erase.0, run, R::ONE, &mut local[erase.1 * kp..][..kp]);
                    }
                    product_row(&p.x[t * kp..][..kp], run, scale, &mut local[t * kp..][..kp]);
                    into[t * kp..][..kp].copy_from_slice(run);
                }
            },
        );
    }
}

/// `a *= b * scale`
#[inline(always)]
pub(crate) fn mul_rows<R: Real>(a: &mut [R], b: &[R], scale: R) {
    for (a, &b) in a.iter_mut().zip(b) {
        *a = *a * b * scale;
    }
}

/// `out = a * b * scale`
#[inline(always)]
pub(crate) fn product_row<R: Real>(a: &[R], b: &[R], scale: R, out: &mut [R]) {
    for (o, (&a, &b)) in out.iter_mut().zip(a.iter().zip(b)) {
        *o = a * b * scale;
    }
}

/// `out = a * scale`
#[inline(always)]
pub(crate) fn scale_row<R: Real>(a: &[R], scale: R, out: &mut [R]) {
    for (o, &a) in out.iter_mut().zip(a) {
        *o = a * scale;
    }
}
