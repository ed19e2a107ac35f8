//! The update itself: one pass over weights, moments and gradients, because it is bound by memory, not arithmetic.

use flashlin_tensor::{
    Element,
    cpu::{BLOCK, vectorized},
};
use rayon::prelude::*;

/// Factors of one update, the same for every element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coefficients {
    pub beta1: f32,
    pub beta2: f32,
    pub one_minus_beta1: f32,
    pub one_minus_beta2: f32,
    /// lr / (1 - beta1^t)
    pub step: f32,
    /// 1 / sqrt(1 - beta2^t)
    pub square_scale: f32,
    pub eps: f32,
    /// 1 - lr * weight_decay, or 1
    pub keep: f32,
    pub clip: f32,
}

impl Coefficients {
    /// The new weight; moments are updated in place.
    #[inline(always)]
    fn apply(&self, w: f32, m: &mut f32, v: &mut f32, g: f32) -> f32 {
        let g = g * self.clip;
        *m = self.beta1 * *m + self.one_minus_beta1 * g;
        *v = self.beta2 * *v + self.one_minus_beta2 * (g * g);
        w * self.keep - self.step * (*m / (v.sqrt() * self.square_scale + self.eps))
    }
}

/// f32 weights.
pub(super) fn step_f32(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], by: &Coefficients) {
    let moments = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
    w.par_chunks_mut(BLOCK).zip(moments).zip(g.par_chunks(BLOCK)).for_each(|((w, (m, v)), g)| {
        vectorized(
            #[inline(always)]
            || {
                for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
                    *w = by.apply(*w, m, v, *g);
                }
            },
        );
    });
}

/// Half-precision weights `p` that are roundings of the f32 weights `w`.
pub(super) fn step_half<T: Element>(
    p: &mut [T],
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    g: &[f32],
    by: &Coefficients,
) {
    let moments = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
    let weights = p.par_chunks_mut(BLOCK).zip(w.par_chunks_mut(BLOCK));
    weights.zip(moments).zip(g.par_chunks(BLOCK)).for_each(|(((p, w), (m, v)), g)| {
        vectorized(
            #[inline(always)]
            || {
                for ((((p, w), m), v), g) in p.iter_mut().zip(w).zip(m).zip(v).zip(g) {
                    *w = by.apply(*w, m, v, *g);
                    *p = T::from_f32(*w);
                }
            },
        );
    });
}
