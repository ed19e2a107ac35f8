//! What the models share whose softmax runs over time or over slots (ABC, GSA, LightNet): running logarithms of sums, and the slots' two states,
//! between the context and the operators.

use flashlin_ops::slots::{self, Running, SlotArgs, SlotState};
use flashlin_tensor::{DType, Var};

use super::{matrix_spec, recurrence::vector_spec};
use crate::{Result, layer::LayerCtx, state::StateSpec};

/// Names of the two states of slots.
const SLOT_STATES: [&str; 2] = ["slot_keys", "slot_values"];

const RUNNING: &str = "log_sum";

/// The states of `heads` heads of `slots` slots.
pub(crate) fn slot_specs(heads: usize, [k, v]: [usize; 2], slots: usize, dtype: DType) -> [StateSpec; 2] {
    let [keys, values] = SLOT_STATES;
    [matrix_spec(keys, heads, [k, slots], dtype), matrix_spec(values, heads, [slots, v], dtype)]
}

/// The state of [`running`] over `channels` channels.
pub(crate) fn running_spec(channels: usize, dtype: DType) -> StateSpec {
    vector_spec(RUNNING, vec![channels], dtype)
}

/// Runs slot attention from the context's states, which it leaves advanced.
pub(crate) fn slots(args: SlotArgs<'_>, ctx: &mut LayerCtx<'_>) -> Result<Var> {
    let LayerCtx { seqs, mode, state, .. } = ctx;
    let args = SlotArgs { seqs: *seqs, mode: *mode, ..args };
    let Some(slot) = state.as_deref_mut() else { return Ok(slots::slot_attention(&args, None)?) };
    let [keys, values] = SLOT_STATES;
    let mut state = SlotState { keys: slot.take_recurrent(keys)?, values: slot.take_recurrent(values)? };
    let o = slots::slot_attention(&args, Some(&mut state))?;
    slot.set(keys, state.keys.value)?;
    slot.set(values, state.values.value)?;
    Ok(o)
}

/// [`slots::running_softmax`] of `x` from the context's state, which it leaves advanced: shares and log decays.
pub(crate) fn running(x: &Var, ctx: &mut LayerCtx<'_>) -> Result<(Var, Var)> {
    let Some(slot) = ctx.state.as_deref_mut() else {
        let Running { share, log_decay, .. } = slots::running_softmax(x, None, ctx.seqs)?;
        return Ok((share, log_decay));
    };
    let seen: Vec<bool> = ctx.seen.iter().map(|&n| n > 0).collect();
    let z = slot.take(RUNNING)?;
    let Running { share, log_decay, state } = slots::running_softmax(x, Some((&z, &seen)), ctx.seqs)?;
    // A row that has seen nothing has no logarithm; states are saved, so they stay finite.
    slot.set(RUNNING, state.clamp(-1e30, f64::MAX)?)?;
    Ok((share, log_decay))
}
