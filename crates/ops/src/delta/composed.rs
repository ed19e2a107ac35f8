//! The family on the general path of `composed`: activations as operators of their own, heads repeated, everything in the
//! accumulator's dtype.

use flashlin_tensor::{Result, Var};

use super::args::{DeltaArgs, DeltaGate, EraseOrder, GateActivation};
use super::cpu::L2_EPS;
use crate::composed::{Composed, Erase, repeat_heads};
use crate::gate::{DecayGateArgs, decay_gate};
use crate::norm::l2_norm;
use crate::{PackedSeqs, RecurrentState, SeqOutput};

/// A checked call.
pub(super) fn run(a: &DeltaArgs<'_>, seqs: &PackedSeqs) -> Result<SeqOutput> {
    let dtype = a.v.dtype().accumulator();
    let (hv, dk) = (a.v.dim(2), a.q.dim(3));
    let keys = |x: &Var| {
        let x = x.to_dtype(dtype)?;
        repeat_heads(&if a.qk_l2norm { l2_norm(&x, L2_EPS)? } else { x }, hv)
    };
    let k = keys(a.k)?;
    let key = a.erase.map_or_else(|| Ok(k.clone()), keys)?;
    let composed = Composed {
        q: keys(a.q)?.affine(a.scale.unwrap_or((dk as f64).powf(-0.5)), 0.0)?,
        k,
        v: a.v.to_dtype(dtype)?,
        gate: gate(a)?,
        value_gate: None,
        bonus: None,
        erase: Some(Erase { key, before: a.erase_order == EraseOrder::BeforeDecay, beta: beta(a)? }),
        initial: a.initial_state.map(|h0| a.layout.turned_var(&h0.value)).transpose()?,
        seqs,
    };
    let (o, last) = composed.run()?;
    let last = a.output_final_state.then(|| a.layout.turned_var(&last)).transpose()?;
    let final_state = last.map(|value| RecurrentState { value, layout: a.layout });
    Ok(SeqOutput { o: o.to_dtype(a.v.dtype())?, final_state })
}

/// `[B, T, HV, 1 or V]`, through its activation.
pub(super) fn beta(a: &DeltaArgs<'_>) -> Result<Option<Var>> {
    let factor = if a.allow_neg_eigval { 2.0 } else { 1.0 };
    let Some(beta) = a.beta else { return Ok(None) };
    let beta = beta.to_dtype(a.v.dtype().accumulator())?;
    let beta = if a.beta_sigmoid { beta.sigmoid()? } else { beta };
    let beta = if factor == 1.0 { beta } else { beta.affine(factor, 0.0)? };
    match *beta.dims() {
        [b, t, hv] => beta.reshape(&[b, t, hv, 1]).map(Some),
        _ => Ok(Some(beta)),
    }
}

/// Log-decays `[B, T, HV, 1 or K]`, through their activation.
pub(super) fn gate(a: &DeltaArgs<'_>) -> Result<Option<Var>> {
    let (g, activation, per_channel) = match a.gate {
        DeltaGate::None => return Ok(None),
        DeltaGate::Scalar { g, activation } => (g, activation, false),
        DeltaGate::Channel { g, activation } => (g, activation, true),
    };
    let g = g.to_dtype(a.v.dtype().accumulator())?;
    let g = match activation {
        Some(GateActivation { formula, a_log, dt_bias }) => {
            decay_gate(DecayGateArgs { x: &g, per_channel, formula, a_log, dt_bias })?
        }
        None => g,
    };
    let dims: Vec<usize> = g.dims().iter().copied().chain((!per_channel).then_some(1)).collect();
    g.reshape(&dims).map(Some)
}
