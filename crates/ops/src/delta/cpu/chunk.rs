//! The chunked forward pass of one chunk of one head.
//!
//! With `S` the state at the chunk's start, `P~, Q~` the erase keys and queries decayed from it, `K^` the keys decayed
//! to the chunk's end and `Ap, Aq` the scores of [`super::scores`]:
//! ```text
//! (I + diag(beta) Ap) U = diag(beta) (V - P~ S)      Ap strictly lower: the UT transform's system
//! O  = Q~ S + Aq U
//! S' = D S + K^^T U
//! ```
//! The triangular system is solved by blocks of 16 rows rather than by inverting it first (the WY form `U = u - w S`):
//! on a CPU a head's chunks are taken in order anyway, the direct solution saves the product that makes `w`, and it
//! serves a beta for each value channel, where the inverse would differ from column to column. Ap is built from any
//! two key streams (write and erase).

use flashlin_tensor::cpu::vectorized;

use super::panels::{Panels, Spec};
use super::scores::Scores;
use super::substitute::Forward;
use crate::simd::{Buf, Extent, Mat, PAD, Real, Store, mm_nn};

/// Everything a task needs for the chunk at hand.
pub(crate) struct Chunk<R> {
    pub panels: Panels<R>,
    pub scores: Scores<R>,
    /// Outputs over what the erase keys leave of the values (`Y`, with `U = beta Y`), `[2c, Vp]`.
    pub oy: Buf<R>,
    /// Writes `U`, `[c, Vp]`.
    pub u: Buf<R>,
}

impl<R: Real> Chunk<R> {
    pub fn new(s: &Spec) -> Self {
        let (c, vp) = (s.chunk, s.vp());
        Chunk {
            panels: Panels::new(s),
            scores: Scores::new(s),
            oy: Buf::zeros(2 * c * vp),
            u: Buf::zeros(c * vp),
        }
    }

    /// From loaded panels: fills `oy` and `u`, and moves `state` `[Kp, Vp]` from the chunk's start to its end.
    pub fn forward(&mut self, s: &Spec, state: &mut [R]) {
        let (c, kp, vp) = (self.panels.c, s.kp(), s.vp());
        let Chunk { panels, scores, oy, u } = self;
        scores.compute(s, panels);
        let (x, first) = (Mat::new(&scores.x, kp), Mat::new(state, vp));
        mm_nn(s.arch, (2 * c, vp, kp), x, first, (oy, vp), Store::Set, Extent::Full);
        let (o, y) = oy.split_at_mut(c * vp);
        vectorized(
            #[inline(always)]
            || {
                for (y, &v) in y.iter_mut().zip(&panels.v[..c * vp]) {
                    *y = v - *y;
                }
            },
        );
        solve(s, &scores.a[c * c..], &panels.beta, c, y, u);
        let (aq, writes) = (Mat::new(&scores.a, c), Mat::new(u, vp));
        mm_nn(s.arch, (c, vp, c), aq, writes, (o, vp), Store::Add, Extent::LowerInner);
        decay_state(&scores.total, vp, state);
        mm_nn(s.arch, (kp, vp, c), Mat::new(&scores.kt, c), writes, (state, vp), Store::Add, Extent::Full);
    }
}

/// `state[ch, ..] *= total[ch]`
pub(crate) fn decay_state<R: Real>(total: &[R], vp: usize, state: &mut [R]) {
    vectorized(
        #[inline(always)]
        || {
            for (row, &e) in state.chunks_exact_mut(vp).zip(total) {
                row.iter_mut().for_each(|x| *x *= e);
            }
        },
    );
}

/// `row * beta` for row `t` of a panel, with beta `[c]` or `[c, Vp]`.
#[inline(always)]
pub(crate) fn beta_row<R: Real>(s: &Spec, beta: &[R], t: usize, row: &[R], out: &mut [R]) {
    let vp = row.len();
    if s.beta_channel {
        for (o, (&x, &b)) in out.iter_mut().zip(row.iter().zip(&beta[t * vp..][..vp])) {
            *o = x * b;
        }
    } else {
        let b = beta[t];
        for (o, &x) in out.iter_mut().zip(row) {
            *o = x * b;
        }
    }
}

/// Forward substitution: `y` comes in as the right side and leaves as `Y = y - Ap U`; `u` gets `U = beta Y`.
fn solve<R: Real>(s: &Spec, ap: &[R], beta: &[R], c: usize, y: &mut [R], u: &mut [R]) {
    let vp = s.vp();
    for i in (0..c).step_by(PAD) {
        if i > 0 {
            let out = (&mut y[i * vp..], vp);
            let (rows, done) = (Mat::new(&ap[i * c..], c), Mat::new(u, vp));
            mm_nn(s.arch, (PAD, vp, i), rows, done, out, Store::Sub, Extent::Full);
        }
        s.arch.dispatch(Forward { s, ap, beta, c, i, y: &mut *y, u: &mut *u });
    }
}
