//! What every sub-layer of a block is: `[B, T, D]` in and out, with a context that carries boundaries, mode and
//! state. A mixer is also a public layer by itself.

use std::collections::BTreeMap;

use flashlin_ops::{Mode, PackedSeqs};
use flashlin_tensor::Var;

use crate::{
    Result,
    padding::Padding,
    state::{LayerState, StateSpec},
};

/// What surrounds a layer's call.
pub struct LayerCtx<'a> {
    /// Boundaries of packed sequences (then B is 1); None for B dense rows.
    pub seqs: Option<&'a PackedSeqs>,
    /// Form in which recurrences run.
    pub mode: Mode,
    /// Tokens that each sequence consumed before this call (zeros without a state).
    pub seen: &'a [usize],
    /// State to continue from and to update.
    pub state: Option<&'a mut LayerState>,
    /// What earlier layers of this pass left for later ones.
    pub carried: Carried,
}

/// Values that a layer leaves for later layers of the same pass, by name: for the tokens of the pass, `[B, T, ..]`.
pub type Carried = BTreeMap<&'static str, Var>;

impl LayerCtx<'_> {
    /// A call on whole sequences, without state.
    pub fn stateless() -> Self {
        LayerCtx { seqs: None, mode: Mode::Auto, seen: &[], state: None, carried: Carried::new() }
    }

    /// Boundaries for an input `[B, T, ..]`.
    ///
    /// # Errors
    /// When packed boundaries do not fit the input.
    pub fn resolve_seqs(&self, op: &'static str, x: &Var) -> Result<PackedSeqs> {
        Ok(PackedSeqs::resolve(op, self.seqs, x.dim(0), x.dim(1))?)
    }
}

/// A sub-layer: a token mixer or an MLP.
pub trait Layer: Send + Sync {
    /// `x` `[B, T, D]` to `[B, T, D]`.
    ///
    /// # Errors
    /// Wrong shapes, or a state that does not fit.
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var>;

    /// The tensors of its state; none for layers that only look at one token.
    fn state_spec(&self) -> Vec<StateSpec> {
        Vec::new()
    }

    /// True where a one-token step from a state launches the same work whatever came before (no positions, no growing cache), so that a GPU can
    /// record it once and replay it.
    fn steps_alike(&self) -> bool {
        false
    }

    /// One line for listings (sizes that the parameter shapes do not show).
    fn describe(&self) -> String;
}

/// Runs a layer on a padded batch: `x` `[B, T, D]` with a mask `[B, T]` (u8, 1 for tokens); zero at padding.
///
/// # Errors
/// Those of the layer, and a mask that does not fit.
pub fn forward_masked(layer: &dyn Layer, x: &Var, mask: &flashlin_tensor::Tensor, mode: Mode) -> Result<Var> {
    let padding = Padding::from_mask(mask)?;
    let mut ctx = LayerCtx { seqs: Some(padding.seqs()), mode, ..LayerCtx::stateless() };
    let y = layer.forward(&padding.pack(x)?, &mut ctx)?;
    padding.unpack(&y)
}
