//! The chunked backward pass of one chunk of one head, and the memory it works in.
//!
//! The chunk's scores are computed again from the inputs; its first state and `Y` were saved. With `Z = [dO; -dY]`
//! stacked over `X = [Q; P]`, every product serves queries and erase keys at once:
//! ```text
//! dU = Aq^T dO + K^ dS'          dY = beta (dU - Ap^T dY)   (back substitution)
//! dX~ = Z S^T     dA = Z U^T     dK^ = U dS'^T     dS = D dS' + X~^T Z
//! ```
//! Gradients of the log-decay are never taken as the difference of large numbers: what a decay between two tokens
//! contributes is summed over the tokens in between only.

use flashlin_tensor::cpu::vectorized;

use super::chunk::{Chunk, beta_row, decay_state};
use super::panels::{GateKind, Spec};
use super::scores_grad::ScoreGrads;
use super::substitute::Transposed;
use crate::simd::{Buf, Extent, Mat, PAD, Real, Store, dot, mm_nn, mm_tn, transpose};

/// Working memory of the backward pass and the gradients of the chunk at hand.
pub(crate) struct Backward<R> {
    /// Output gradients over minus the gradients of `Y`, `[2c, Vp]`.
    pub z: Buf<R>,
    /// Gradients of `U`, `[c, Vp]`.
    pub du: Buf<R>,
    /// `U`, `S`, `dS'` transposed.
    ut: Buf<R>,
    st: Buf<R>,
    dst: Buf<R>,
    /// Gradients of queries over erase keys `[2c, Kp]`, and of keys `[c, Kp]`.
    pub dx: Buf<R>,
    pub dk: Buf<R>,
    /// Gradient of beta `[c]` or `[c, Vp]`.
    pub dbeta: Buf<R>,
    /// Scores' part: `dA`, and the gradient of the log-decay.
    pub scores: ScoreGrads<R>,
}

impl<R: Real> Backward<R> {
    pub fn new(s: &Spec) -> Self {
        let (c, kp, vp) = (s.chunk, s.kp(), s.vp());
        let zeros = |n: usize| Buf::zeros(n);
        Backward {
            z: zeros(2 * c * vp),
            du: zeros(c * vp),
            ut: zeros(vp * c),
            st: zeros(vp * kp),
            dst: zeros(vp * kp),
            dx: zeros(2 * c * kp),
            dk: zeros(c * kp),
            dbeta: zeros(if s.beta_channel { c * vp } else { c }),
            scores: ScoreGrads::new(s),
        }
    }

    /// From loaded panels, `z`'s first half (output gradients), the chunk's first state and `y` (in `ch.oy`'s second
    /// half): fills the gradients and moves `ds` from the chunk's end to its start.
    pub fn run(&mut self, s: &Spec, ch: &mut Chunk<R>, state: &[R], ds: &mut [R]) {
        let (c, kp, vp) = (ch.panels.c, s.kp(), s.vp());
        ch.scores.compute(s, &ch.panels);
        let Chunk { panels, scores, oy, u } = ch;
        let y = &oy[c * vp..][..c * vp];
        vectorized(
            #[inline(always)]
            || {
                for t in 0..c {
                    beta_row(s, &panels.beta, t, &y[t * vp..][..vp], &mut u[t * vp..][..vp]);
                }
            },
        );
        self.writes_grad(s, &scores.a, &scores.kt, c, ds);
        self.solve_transposed(s, &scores.a[c * c..], &panels.beta, c);
        self.beta_grad(s, y, c);

        transpose(s.arch, u, vp, c, vp, &mut self.ut, c);
        transpose(s.arch, state, vp, kp, vp, &mut self.st, kp);
        transpose(s.arch, ds, vp, kp, vp, &mut self.dst, kp);
        let (z, st, dst) = (Mat::new(&self.z, vp), Mat::new(&self.st, kp), Mat::new(&self.dst, kp));
        mm_nn(s.arch, (2 * c, kp, vp), z, st, (&mut self.dx, kp), Store::Set, Extent::Full);
        mm_nn(s.arch, (c, kp, vp), Mat::new(u, vp), dst, (&mut self.dk, kp), Store::Set, Extent::Full);
        for half in [0, c] {
            let (z, out) = (Mat::new(&self.z[half * vp..], vp), (&mut self.scores.da[half * c..], c));
            mm_nn(s.arch, (c, c, vp), z, Mat::new(&self.ut, c), out, Store::Set, Extent::LowerOut);
        }
        if s.gate != GateKind::None {
            self.scores.state_decay(s, &scores.total, state, ds);
        }
        decay_state(&scores.total, vp, ds);
        let x = Mat::new(&scores.x, kp);
        mm_tn(s.arch, (kp, vp, 2 * c), x, z, (ds, vp), Store::Add, Extent::Full);
        self.scores.run(s, panels, scores, &mut self.dx, &mut self.dk);
    }

    /// `dU = Aq^T dO + K^ dS'`
    fn writes_grad(&mut self, s: &Spec, aq: &[R], kt: &[R], c: usize, ds: &[R]) {
        let (kp, vp) = (s.kp(), s.vp());
        let (kt, ds) = (Mat::new(kt, c), Mat::new(ds, vp));
        mm_tn(s.arch, (c, vp, kp), kt, ds, (&mut self.du, vp), Store::Set, Extent::Full);
        let (aq, z) = (Mat::new(aq, c), Mat::new(&self.z, vp));
        mm_tn(s.arch, (c, vp, c), aq, z, (&mut self.du, vp), Store::Add, Extent::UpperInner);
    }

    /// Back substitution: `du` becomes the gradient of `U` with all its uses, `z`'s second half `-beta du`.
    fn solve_transposed(&mut self, s: &Spec, ap: &[R], beta: &[R], c: usize) {
        let vp = s.vp();
        let z = &mut self.z[c * vp..2 * c * vp];
        for i in (0..c).step_by(PAD).rev() {
            let next = i + PAD;
            if next < c {
                let (cols, later) = (Mat::new(&ap[next * c + i..], c), Mat::new(&z[next * vp..], vp));
                let out = (&mut self.du[i * vp..], vp);
                mm_tn(s.arch, (PAD, vp, c - next), cols, later, out, Store::Add, Extent::Full);
            }
            let du = &mut self.du[..];
            s.arch.dispatch(Transposed { s, ap, beta, c, i, du, z: &mut *z });
        }
    }

    fn beta_grad(&mut self, s: &Spec, y: &[R], c: usize) {
        let vp = s.vp();
        let Backward { du, dbeta, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                if s.beta_channel {
                    for (d, (&du, &y)) in dbeta.iter_mut().zip(du.iter().zip(y)) {
                        *d = du * y;
                    }
                } else {
                    for t in 0..c {
                        dbeta[t] = dot(&du[t * vp..][..vp], &y[t * vp..][..vp]);
                    }
                }
            },
        );
    }
}
