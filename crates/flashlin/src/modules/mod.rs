//! Parts that several models share; each exists once.

mod activation;
mod attention;
mod conv;
mod heads;
mod linear;
mod mlp;
mod norm;
mod recurrence;
mod rotary;

pub(crate) use activation::{activation, gate_activation};
pub use attention::{Attention, AttentionOptions};
pub use conv::{Conv1d, Stream};
pub use flashlin_ops::activation::{Activation, activate};
pub use heads::Heads;
pub use linear::{Linear, LowRank, linears};
pub use mlp::GatedMlp;
pub use norm::{MambaNorm, OutputNorm, RmsNorm};
pub(crate) use recurrence::{mixer_state, recur, recurrent_spec};
pub use rotary::Rotary;

use crate::init::Dist;

/// How `dt_bias` starts: the inverse softplus of a step drawn log-uniformly from [0.001, 0.1).
pub(crate) const STEP_INIT: Dist = Dist::InverseSoftplusStep { min: 1e-3, max: 0.1, floor: 1e-4 };
