//! The recurrent state on its way through a mixer: taken out of the context before the operator, put back after.

use flashlin_ops::{Recurrence, StateLayout};
use flashlin_tensor::{DType, Var};

use super::Stream;
use crate::{
    Result,
    layer::LayerCtx,
    state::{StateKind, StateSpec},
};

const NAME: &str = "recurrent";
const LAYOUT: StateLayout = StateLayout::KV;

/// Declares the matrix state of `heads` heads of `[k, v]`.
pub(crate) fn recurrent_spec(heads: usize, [k, v]: [usize; 2], dtype: DType) -> StateSpec {
    StateSpec {
        name: NAME,
        kind: StateKind::Recurrent,
        layout: Some(LAYOUT),
        dims: vec![heads, k, v],
        dtype: dtype.accumulator(),
    }
}

/// The state of a mixer that reads q, k and v from streams: the matrix state, then the convolutions'.
pub(crate) fn mixer_state(
    heads: usize,
    dims: [usize; 2],
    dtype: DType,
    streams: [&Stream; 3],
) -> Vec<StateSpec> {
    let convs = streams.into_iter().filter_map(Stream::state_spec);
    std::iter::once(recurrent_spec(heads, dims, dtype)).chain(convs).collect()
}

/// Runs a recurrence within a layer: from the context's state, which it leaves advanced. Returns `[B, T, H, V]`.
pub(crate) fn recur<'a>(mut args: impl Recurrence<'a>, ctx: &'a mut LayerCtx<'_>) -> Result<Var> {
    let LayerCtx { seqs, mode, state, .. } = ctx;
    args.within(*seqs, *mode, LAYOUT);
    let Some(slot) = state.as_deref_mut() else { return Ok(args.run(None)?) };
    // Taken out, so that nobody else holds the values and a step can update them where they lie.
    let mut state = slot.take_recurrent(NAME)?;
    let o = args.run(Some(&mut state))?;
    slot.set(NAME, state.value)?;
    Ok(o)
}
