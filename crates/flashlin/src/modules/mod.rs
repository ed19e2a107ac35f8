//! Parts that several models share; each exists once.

mod activation;
mod attention;
mod cached;
mod conv;
mod feature_map;
mod heads;
mod linear;
mod lower_bound;
mod mlp;
mod norm;
mod polynomial;
mod recurrence;
mod rotary;
mod rwkv;
mod selective;
mod slots;

pub(crate) use activation::{activation, gate_activation};
pub use attention::{Attention, AttentionOptions};
pub use cached::{Cache, Keys};
pub use conv::{Conv1d, Stream};
pub use feature_map::FeatureMap;
pub use flashlin_ops::activation::{Activation, activate};
pub use heads::Heads;
pub use linear::{Linear, LowRank, linears};
pub(crate) use lower_bound::LowerBound;
pub use mlp::GatedMlp;
pub(crate) use norm::Gate;
pub use norm::{GroupRmsNorm, MambaNorm, Norm, OutputNorm};
pub use polynomial::{BasedAttention, PolynomialOptions, RebasedAttention};
pub(crate) use recurrence::{matrix_spec, mixer_state, recur, recur_normalized, recurrent_spec, vector_spec};
pub use rotary::Rotary;
pub use rwkv::{Lora, Middle, TokenShift};
pub(crate) use rwkv::{ffn_width, rwkv_block};
pub use selective::{MambaMixer, MambaOptions};
pub(crate) use slots::{running, running_spec, slot_specs, slots};

use crate::init::Dist;

/// How `dt_bias` starts: the inverse softplus of a step drawn log-uniformly from [0.001, 0.1).
pub(crate) const STEP_INIT: Dist = Dist::InverseSoftplusStep { min: 1e-3, max: 0.1, floor: 1e-4 };
