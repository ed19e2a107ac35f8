//! Scores of a 16 x 16 diagonal block with a gate for each channel: keys decay along from token to token, one register
//! of them (16 keys) a channel. Written with explicit vectors, like every loop whose sums must stay in registers.

use pulp::{Simd, WithSimd};

use super::panels::{Panels, Spec};
use crate::simd::{PAD, Real};

/// The block at token `i`. Columns `i..i + 16` of `kt` end as the block's keys decayed to its end; rows of `a` get the
/// scores (strictly lower for erase keys), with zeros above.
pub(super) struct Diagonal<'a, R> {
    pub s: &'a Spec,
    pub p: &'a Panels<R>,
    pub i: usize,
    /// Transposed keys `[Kp, c]`.
    pub kt: &'a mut [R],
    /// `Aq` over `Ap`, `[2c, c]`.
    pub a: &'a mut [R],
}

impl<R: Real> WithSimd for Diagonal<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match PAD / R::lanes::<S>() {
            1 => self.block::<S, 1>(simd),
            2 => self.block::<S, 2>(simd),
            4 => self.block::<S, 4>(simd),
            8 => self.block::<S, 8>(simd),
            _ => self.block::<S, 16>(simd),
        }
    }
}

impl<R: Real> Diagonal<'_, R> {
    /// NV registers hold the block's 16 keys.
    #[inline(always)]
    fn block<S: Simd, const NV: usize>(self, simd: S) {
        let Diagonal { s, p, i, kt, a } = self;
        let (c, kp) = (p.c, s.kp());
        let scale = R::from_f64(s.scale);
        for row in kt.chunks_exact_mut(c).take(kp) {
            row[i..i + PAD].fill(R::ZERO);
        }
        for l in 0..PAD {
            let t = i + l;
            let (q, k) = (&p.x[t * kp..][..kp], &p.k[t * kp..][..kp]);
            let (e, erase) = (&p.decay[t * kp..][..kp], &p.x[(c + t) * kp..][..kp]);
            // Two sums each, so that consecutive channels do not wait for each other.
            let mut sq = [[R::splat(simd, R::ZERO); NV]; 2];
            let mut sp = sq;
            let mut own = R::ZERO;
            for (pair, rows) in kt.chunks_exact_mut(2 * c).take(kp / 2).enumerate() {
                for half in 0..2 {
                    let ch = 2 * pair + half;
                    let lane = &mut rows[half * c + i..][..PAD];
                    let (vq, ve) = (R::splat(simd, q[ch]), R::splat(simd, e[ch]));
                    let vp = R::splat(simd, erase[ch]);
                    let keys = R::vecs_mut::<S>(lane);
                    for v in 0..NV {
                        let (old, new) = (keys[v], R::vmul(simd, keys[v], ve));
                        let read = if s.erase_before_decay { old } else { new };
                        sp[half][v] = R::vfma(simd, vp, read, sp[half][v]);
                        sq[half][v] = R::vfma(simd, vq, new, sq[half][v]);
                        keys[v] = new;
                    }
                    lane[l] = k[ch];
                    own = q[ch].mul_add(k[ch], own);
                }
            }
            let (rq, rp) = (t * c + i, (c + t) * c + i);
            let vscale = R::splat(simd, scale);
            let out = R::vecs_mut::<S>(&mut a[rq..rq + PAD]);
            for v in 0..NV {
                out[v] = R::vmul(simd, R::vadd(simd, sq[0][v], sq[1][v]), vscale);
            }
            a[rq + l] = scale * own;
            let out = R::vecs_mut::<S>(&mut a[rp..rp + PAD]);
            for v in 0..NV {
                out[v] = R::vadd(simd, sp[0][v], sp[1][v]);
            }
        }
    }
}
