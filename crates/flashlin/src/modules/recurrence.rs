//! The recurrent state on its way through a mixer: taken from the context before the operator, put back after.

use flashlin_ops::{RecurrentState, SeqOutput, StateLayout};
use flashlin_tensor::{DType, Var};

use super::Stream;
use crate::{
    Error, Result,
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

/// One call of a recurrence within a layer.
pub(crate) struct Run {
    pub initial: Option<RecurrentState>,
    pub layout: StateLayout,
}

impl Run {
    /// Takes the state to continue from.
    pub fn begin(ctx: &mut LayerCtx<'_>) -> Result<Self> {
        let initial = ctx.state.as_deref_mut().map(|s| s.recurrent(NAME)).transpose()?;
        Ok(Run { initial, layout: LAYOUT })
    }

    /// Puts the final state back and returns the outputs `[B, T, H, V]`.
    pub fn end(&self, ctx: &mut LayerCtx<'_>, out: SeqOutput) -> Result<Var> {
        if let Some(state) = ctx.state.as_deref_mut() {
            let last = out.final_state.ok_or_else(|| Error::state("the operator returned no final state"))?;
            state.set(NAME, last.value)?;
        }
        Ok(out.o)
    }
}

/// Fills the fields that the arguments of all recurrences share.
macro_rules! run_fields {
    ($args:ident, $run:ident, $ctx:ident) => {
        $args.initial_state = $run.initial.as_ref();
        $args.output_final_state = $ctx.state.is_some();
        $args.layout = $run.layout;
        $args.seqs = $ctx.seqs;
        $args.mode = $ctx.mode;
    };
}
pub(crate) use run_fields;
