//! The family on the general path of `composed`: gates added up, heads repeated, everything in the accumulator's dtype.

use flashlin_tensor::{Result, Var};

use super::api::DecayArgs;
use crate::composed::{Composed, repeat_heads};
use crate::kernels::Sizes;
use crate::{PackedSeqs, RecurrentState, SeqOutput};

/// A checked call.
pub(super) fn run(a: &DecayArgs<'_>, s: Sizes, seqs: &PackedSeqs) -> Result<SeqOutput> {
    let dtype = a.q.dtype().accumulator();
    let keys = |x: &Var| repeat_heads(&x.to_dtype(dtype)?, s.hv);
    let composed = Composed {
        q: keys(a.q)?.affine(a.scale.unwrap_or((s.k as f64).powf(-0.5)), 0.0)?,
        k: keys(a.k)?,
        v: a.v.to_dtype(dtype)?,
        gate: gate(a, s)?,
        value_gate: a.gv.map(|g| g.to_dtype(dtype)).transpose()?,
        bonus: a.bonus.map(|u| keys(&u.reshape(&[1, 1, s.h, s.k])?)?.reshape(&[s.hv, s.k])).transpose()?,
        erase: None,
        initial: a.initial_state.map(|h0| a.layout.turned_var(&h0.value)).transpose()?,
        seqs,
    };
    let (o, last) = composed.run()?;
    let last = a.output_final_state.then(|| a.layout.turned_var(&last)).transpose()?;
    let final_state = last.map(|value| RecurrentState { value, layout: a.layout });
    Ok(SeqOutput { o: o.to_dtype(a.v.dtype())?, final_state })
}

/// All decays of the state's rows in one, `[B, T, HV, 1]` or `[B, T, HV, K]`.
fn gate(a: &DecayArgs<'_>, s: Sizes) -> Result<Option<Var>> {
    let dtype = a.q.dtype().accumulator();
    let token = a.g.map(|g| g.to_dtype(dtype)?.reshape(&[s.b, s.t, s.hv, 1])).transpose()?;
    let head = a.g_gamma.map(|g| g.to_dtype(dtype)?.reshape(&[1, 1, s.hv, 1])?.expand(&[s.b, s.t, s.hv, 1]));
    let channel = a.gk.map(|g| repeat_heads(&g.to_dtype(dtype)?, s.hv)).transpose()?;
    let all = [channel, token, head.transpose()?].into_iter().flatten().map(Ok);
    all.reduce(|a: Result<Var>, b| a?.add(&b?)).transpose()
}
