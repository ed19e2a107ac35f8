//! The recurrent state on its way through a mixer: taken out of the context before the operator, put back after.

use flashlin_ops::{Recurrence, StateLayout, decay::DecayArgs};
use flashlin_tensor::{DType, Tensor, Var};

use super::Stream;
use crate::{
    Result,
    layer::LayerCtx,
    state::{StateKind, StateSpec},
};

const NAME: &str = "recurrent";
const LAYOUT: StateLayout = StateLayout::KV;

/// Declares the matrix state of `heads` heads of `[k, v]`.
pub(crate) fn recurrent_spec(heads: usize, dims: [usize; 2], dtype: DType) -> StateSpec {
    matrix_spec(NAME, heads, dims, dtype)
}

/// As [`recurrent_spec`], for one of several matrix states.
pub(crate) fn matrix_spec(name: &'static str, heads: usize, [k, v]: [usize; 2], dtype: DType) -> StateSpec {
    StateSpec {
        name,
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

/// Declares a state of one number a channel.
pub(crate) fn vector_spec(name: &'static str, dims: Vec<usize>, dtype: DType) -> StateSpec {
    StateSpec { name, kind: StateKind::Recurrent, layout: None, dims, dtype: dtype.accumulator() }
}

/// The linear attention of q and k over v, divided by the sum of its weights plus `eps`. The state has the keys' sum as its last column.
pub(crate) fn recur_normalized(
    [q, k, v]: [&Var; 3],
    scale: Option<f64>,
    eps: f64,
    ctx: &mut LayerCtx<'_>,
) -> Result<Var> {
    let mut dims = v.dims().to_vec();
    let width = std::mem::replace(&mut dims[3], 1);
    let ones = Var::constant(Tensor::ones(&dims, v.dtype(), &v.device())?);
    let v = Var::cat(&[v, &ones], 3)?;
    let mut args = DecayArgs::new(q, k, &v);
    args.scale = scale;
    let sums = recur(args, ctx)?.to_dtype(v.dtype().accumulator())?.split(3, &[width, 1])?;
    Ok(sums[0].div(&sums[1].affine(1.0, eps)?)?.to_dtype(v.dtype())?)
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
