//! Attention maps, for looking at: one row of probabilities a query, from the log-sum-exps of the forward pass.

use flashlin_tensor::{Result, Tensor, cpu::vectorized};
use rayon::prelude::*;

use super::{Inputs, decay_sums, low, plan::Plan};
use crate::{
    rows::Rows,
    simd::{Real, dot},
};

/// `[B, HQ, Tq, Tk]`
pub(super) fn maps<R: Real>(plan: &Plan, inputs: &Inputs, lse: &[R]) -> Result<Tensor> {
    let (b, tq, tk) = (inputs.q.dim(0), inputs.q.dim(1), inputs.k.dim(1));
    let mut out = Tensor::zeros(&[b, plan.q_heads, tq, tk], R::DTYPE, &inputs.q.device())?;
    if tq == 0 || tk == 0 {
        return Ok(out);
    }
    let sums = decay_sums(plan, inputs)?;
    let (q, k) = (Rows::new(&inputs.q)?, Rows::new(&inputs.k)?);
    // Sequence and index within it of every query token.
    let mut owner = vec![(0, 0); plan.q_rows];
    for (n, s) in plan.spans.iter().enumerate() {
        (0..s.queries).for_each(|i| owner[s.q0 + i] = (n, i));
    }
    let scale = R::from_f64(plan.scale);
    out.as_mut_slice::<R>()?.par_chunks_mut(tk).enumerate().for_each(|(row, out)| {
        let (batch, head, t) = (row / (plan.q_heads * tq), row / tq % plan.q_heads, row % tq);
        let token = batch * tq + t;
        let (n, i) = owner[token];
        let s = &plan.spans[n];
        let total = lse[head * plan.q_rows + token];
        if total == low() {
            return;
        }
        let (mut qb, mut kb) = (vec![R::ZERO; plan.k_dim], vec![R::ZERO; plan.k_dim]);
        let q = q.row(token * plan.q_heads + head, &mut qb);
        vectorized(
            #[inline(always)]
            || {
                for j in plan.visible(s, i, i + 1) {
                    let key = k.row((s.k0 + j) * plan.heads + head / plan.group(), &mut kb);
                    let mut score = dot(q, key) * scale;
                    if let (Some(c), Some(p)) = (&sums, s.place(i)) {
                        let c = &c[head * plan.key_rows + s.k0..];
                        score += R::from_f64(c[p] - c[j]);
                    }
                    out[s.k0 % tk + j] = (score - total).exp();
                }
            },
        );
    });
    Ok(out)
}
