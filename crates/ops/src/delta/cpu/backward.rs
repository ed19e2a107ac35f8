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
use crate::linalg::{Into, LANES, Mat, Product, dot, transpose};

/// Working memory of the backward pass and the gradients of the chunk at hand.
pub(crate) struct Backward<R> {
    /// Output gradients over minus the gradients of `Y`, `[2c, Vp]`.
    pub z: Vec<R>,
    /// Gradients of `U`, `[c, Vp]`.
    pub du: Vec<R>,
    /// `U`, `S`, `dS'` transposed.
    ut: Vec<R>,
    st: Vec<R>,
    dst: Vec<R>,
    /// Gradients of queries over erase keys `[2c, Kp]`, and of keys `[c, Kp]`.
    pub dx: Vec<R>,
    pub dk: Vec<R>,
    /// Gradient of beta `[c]` or `[c, Vp]`.
    pub dbeta: Vec<R>,
    /// Scores' part: `dA`, and the gradient of the log-decay.
    pub scores: ScoreGrads<R>,
}

impl<R: Product> Backward<R> {
    pub fn new(s: &Spec) -> Self {
        let (c, kp, vp) = (s.chunk, s.kp(), s.vp());
        let zeros = |n: usize| vec![R::ZERO; n];
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

        transpose(c, vp, u, vp, &mut self.ut, c);
        transpose(kp, vp, state, vp, &mut self.st, kp);
        transpose(kp, vp, ds, vp, &mut self.dst, kp);
        R::product([2 * c, kp, vp], Mat::new(&self.z, vp), &self.st, kp, &mut self.dx, kp, Into::Set);
        R::product([c, kp, vp], Mat::new(u, vp), &self.dst, kp, &mut self.dk, kp, Into::Set);
        let da = &mut self.scores.da;
        for at in (0..2 * c).step_by(LANES) {
            let rows = Mat::new(&self.z[at * vp..], vp);
            R::product([LANES, at % c + LANES, vp], rows, &self.ut, c, &mut da[at * c..], c, Into::Set);
        }
        if s.gate != GateKind::None {
            self.scores.state_decay(s, &scores.total, state, ds);
        }
        decay_state(&scores.total, vp, ds);
        R::product([kp, vp, 2 * c], Mat::transposed(&scores.x, kp), &self.z, vp, ds, vp, Into::Add);
        self.scores.run(s, panels, scores, &mut self.dx, &mut self.dk);
    }

    /// `dU = Aq^T dO + K^ dS'`
    fn writes_grad(&mut self, s: &Spec, aq: &[R], kt: &[R], c: usize, ds: &[R]) {
        let (kp, vp) = (s.kp(), s.vp());
        R::product([c, vp, kp], Mat::transposed(kt, c), ds, vp, &mut self.du, vp, Into::Set);
        for i in (0..c).step_by(LANES) {
            let cols = Mat::transposed(&aq[i * c + i..], c);
            let (z, du) = (&self.z[i * vp..], &mut self.du[i * vp..]);
            R::product([LANES, vp, c - i], cols, z, vp, du, vp, Into::Add);
        }
    }

    /// Back substitution: `du` becomes the gradient of `U` with all its uses, `z`'s second half `-beta du`.
    fn solve_transposed(&mut self, s: &Spec, ap: &[R], beta: &[R], c: usize) {
        let vp = s.vp();
        let z = &mut self.z[c * vp..2 * c * vp];
        for i in (0..c).step_by(LANES).rev() {
            let next = i + LANES;
            if next < c {
                let cols = Mat::transposed(&ap[next * c + i..], c);
                let du = &mut self.du[i * vp..];
                R::product([LANES, vp, c - next], cols, &z[next * vp..], vp, du, vp, Into::Add);
            }
            vectorized(
                #[inline(always)]
                || {
                    for t in (i..next).rev() {
                        let (head, done) = z.split_at_mut((t + 1) * vp);
                        let row = &mut self.du[t * vp..][..vp];
                        for col in (0..vp).step_by(LANES) {
                            let row: &mut [R; LANES] =
                                (&mut row[col..][..LANES]).try_into().expect("panels are padded to LANES");
                            let mut sum = *row;
                            for p in t + 1..next {
                                let (a, later) = (ap[p * c + t], &done[(p - t - 1) * vp + col..][..LANES]);
                                for j in 0..LANES {
                                    sum[j] = a.mul_add(later[j], sum[j]);
                                }
                            }
                            *row = sum;
                        }
                        let out = &mut head[t * vp..];
                        beta_row(s, beta, t, row, out);
                        out.iter_mut().for_each(|x| *x = -*x);
                    }
                },
            );
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
