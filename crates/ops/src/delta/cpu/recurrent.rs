//! The token loop: decode and short sequences. The state stays where it is (in a padded panel or in the caller's
//! pool), each token reads it once for the erase key and the query together and updates it in one sweep.

use flashlin_tensor::cpu::vectorized;

use super::panels::{GateKind, Panels, Spec};
use crate::simd::{Buf, Extent, Mat, Real, Store, dot, mm_nn, padded};

/// Scratch of one token.
pub(crate) struct Token<R> {
    /// Query and erase key with their decays, `[2, Kp]`.
    x: Buf<R>,
    /// What they read from the state, `[2, Vp]`.
    read: Buf<R>,
    u: Buf<R>,
}

impl<R: Real> Token<R> {
    pub fn new(s: &Spec) -> Self {
        Token { x: Buf::zeros(2 * s.kp()), read: Buf::zeros(2 * s.vp()), u: Buf::zeros(s.vp()) }
    }

    /// Token `t` of the loaded panels on `state` (`K` rows, `ld` apart, `ld` a multiple of 16): writes `y = v - S^T p`
    /// and the output `o` (each `ld` wide).
    pub fn step(
        &mut self,
        s: &Spec,
        p: &Panels<R>,
        t: usize,
        state: &mut [R],
        ld: usize,
        y: &mut [R],
        o: &mut [R],
    ) {
        let (c, kp) = (p.c, s.kp());
        let scale = R::from_f64(s.scale);
        let (q, erase) = (&p.x[t * kp..][..kp], &p.x[(c + t) * kp..][..kp]);
        let key = &p.k[t * kp..][..kp];
        let Token { x, read, u } = self;
        let decay = |ch: usize| match s.gate {
            GateKind::None => R::ONE,
            GateKind::Scalar => p.decay[t],
            GateKind::Channel => p.decay[t * kp + ch],
        };
        for ch in 0..s.k {
            let e = decay(ch);
            x[ch] = q[ch] * e * scale;
            x[kp + ch] = if s.erase_before_decay { erase[ch] } else { erase[ch] * e };
        }
        let ldr = padded(s.v);
        let (x, before) = (Mat::new(x, kp), Mat::new(state, ld));
        mm_nn(s.arch, (2, ldr, s.k), x, before, (read, ldr), Store::Set, Extent::Full);
        vectorized(
            #[inline(always)]
            || {
                let own = dot(q, key) * scale;
                let (ro, rp) = read.split_at(ldr);
                for j in 0..s.v {
                    y[j] = p.v[t * ldr + j] - rp[j];
                    u[j] = y[j] * if s.beta_channel { p.beta[t * ldr + j] } else { p.beta[t] };
                    o[j] = own.mul_add(u[j], ro[j]);
                }
                for (ch, row) in state.chunks_mut(ld).take(s.k).enumerate() {
                    let (e, k) = (decay(ch), key[ch]);
                    for (x, &u) in row[..s.v].iter_mut().zip(&u[..s.v]) {
                        *x = k.mul_add(u, *x * e);
                    }
                }
            },
        );
    }
}
