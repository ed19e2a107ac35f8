//! Decayed scores inside a chunk, for each kind of gate, and the panels that tie a chunk to its states.
//!
//! With `D(s, t]` the product of the decay factors `e^g` of tokens s+1..t, a chunk needs
//! - `Aq[t, s] = scale q_t^T D(s, t] k_s` for s <= t and `Ap[t, s] = p_t^T D(s, t] k_s` for s < t,
//! - queries and erase keys decayed from the chunk's start, `D(start, t] q_t`,
//! - keys decayed to its end, `D(s, end] k_s`.
//!
//! With a scalar gate every decay is a running product of factors `e^g <= 1`: nothing is divided, no cumulated gate is
//! subtracted and no positive number is exponentiated, so gates of any strength stay finite and keep their relative
//! accuracy; what underflows is below the smallest float anyway. With a gate for each channel the work is that of
//! [`crate::pairs`], which the decay family shares: two readers (queries, erase keys) of one key panel.

use flashlin_tensor::cpu::vectorized;

use super::panels::{GateKind, Panels, Spec};
use crate::pairs::Pairs;
use crate::simd::{Buf, Extent, Mat, PAD, Real, Store, dot, mm_nn, transpose};

/// Score matrices and decayed panels of one chunk.
pub(crate) struct Scores<R> {
    /// `Aq` over `Ap`, `[2c, c]`; above the diagonal only the diagonal 16 x 16 blocks are written (with zeros).
    pub a: Buf<R>,
    /// Queries (with scale) over erase keys, decayed from the chunk's start, `[2c, Kp]`.
    pub x: Buf<R>,
    /// Keys decayed to the chunk's end, transposed, `[Kp, c]`.
    pub kt: Buf<R>,
    /// Decay over the whole chunk for each key channel, `[Kp]`.
    pub total: Buf<R>,
    /// Per-channel gates: queries and erase keys against the keys, with the decays between them.
    pub pairs: Option<Pairs<R, 2>>,
    /// A running row, `[c]`.
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
            kt: zeros(kp * c),
            total: zeros(kp),
            pairs: channel.then(|| Pairs::new(s.arch, c, s.k, true, [false, s.erase_before_decay])),
            run: zeros(c),
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
        let n = c * kp;
        let Scores { a, x, kt, total, pairs, .. } = self;
        let Some(pairs) = pairs else { return };
        let (queries, erase) = p.x[..2 * n].split_at(n);
        vectorized(
            #[inline(always)]
            || scale_row(queries, R::from_f64(s.scale), &mut pairs.x[0].rows[..n]),
        );
        pairs.x[1].rows[..n].copy_from_slice(erase);
        pairs.y[..n].copy_from_slice(&p.k[..n]);
        pairs.decay[..n].copy_from_slice(&p.decay[..n]);
        pairs.prepare(c, None);
        for (i, half) in a[..2 * c * c].chunks_exact_mut(c * c).enumerate() {
            pairs.scores(i, c, half, c);
            x[i * n..(i + 1) * n].copy_from_slice(&pairs.x_far(i, false)[..n]);
        }
        // A query reads what its own token writes.
        for t in 0..c {
            a[t * c + t] = dot(&pairs.x[0].rows[t * kp..][..kp], &p.k[t * kp..][..kp]);
        }
        transpose(s.arch, pairs.y_far(false), kp, c, kp, kt, c);
        total.copy_from_slice(&pairs.total);
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
