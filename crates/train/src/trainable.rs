//! What the loop needs of a network: parameters, a loss, a state that can be carried. [`flashlin::Model`] has it; a network of one's
//! own can have it too.

use std::{path::Path, sync::Arc};

use flashlin_ops::PackedSeqs;
use flashlin_tensor::{Parameter, Tensor, Var};

use crate::Result;

/// What one forward pass reads.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Token ids, i64 [B, T].
    pub ids: Tensor,
    /// For each token the id that follows it, -100 where none counts, i64 [B, T]: aligned with `ids`, not shifted. None when only
    /// the state is wanted.
    pub targets: Option<Tensor>,
    /// Boundaries of packed sequences (B is 1 then).
    pub seqs: Option<PackedSeqs>,
    /// Targets that count.
    pub counted: u64,
}

impl Piece {
    /// Number of sequences: rows of a state.
    pub fn rows(&self) -> usize {
        self.seqs.as_ref().map_or(self.ids.dim(0), PackedSeqs::len)
    }

    /// The same tokens without a loss.
    pub fn without_targets(&self) -> Piece {
        Piece { targets: None, counted: 0, ..self.clone() }
    }
}

/// How a pass runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassOptions {
    /// Recompute each layer in the backward pass instead of keeping its activations.
    pub recompute: bool,
    /// Return the layers' outputs, for statistics.
    pub hidden_states: bool,
}

/// What a pass returns.
#[derive(Debug)]
pub struct Pass {
    /// Mean cross entropy over the counted targets in nats, an f32 scalar; None without targets.
    pub loss: Option<Var>,
    /// Outputs of the layers, where asked for.
    pub hidden_states: Vec<Var>,
}

/// A state that goes from one segment of a sequence to the next.
pub trait CarriedState: Sized {
    /// The same values as fresh leaves, so that their gradients can be had.
    ///
    /// # Errors
    /// Memory.
    fn as_leaves(&self) -> Result<Self>;
    /// The same values without history.
    ///
    /// # Errors
    /// Memory.
    fn detach(&self) -> Result<Self>;
    /// The tensors, always in the same order.
    fn vars(&self) -> Vec<Var>;
}

/// A network that can be trained.
pub trait Trainable: Send + Sync {
    /// What it carries along a sequence.
    type State: CarriedState;

    /// All parameters in a fixed order.
    fn params(&self) -> &[Arc<Parameter>];

    /// Whether weight decay applies to a parameter.
    fn wants_weight_decay(&self, name: &str) -> bool;

    /// A state for `rows` sequences that have seen nothing.
    ///
    /// # Errors
    /// Memory.
    fn new_state(&self, rows: usize) -> Result<Self::State>;

    /// Whether gradients flow through everything in the state, as `train.carry = "exact"` needs.
    ///
    /// # Errors
    /// [`crate::Error::Config`] that says what can be done where they do not.
    fn check_exact_carry(&self) -> Result<()> {
        Ok(())
    }

    /// Runs forward; with a state, continues from it and updates it.
    ///
    /// # Errors
    /// Shapes that do not fit; memory.
    fn pass(&self, piece: &Piece, state: Option<&mut Self::State>, options: PassOptions) -> Result<Pass>;

    /// Writes configuration and weights into a folder, in Hugging Face layout.
    ///
    /// # Errors
    /// Those of the file system.
    fn save(&self, dir: &Path) -> Result<()>;

    /// Takes the weights from such a folder; strict.
    ///
    /// # Errors
    /// Files that are missing, damaged or do not fit.
    fn load(&self, dir: &Path) -> Result<()>;
}
