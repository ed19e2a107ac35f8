//! Gates: logits to log-decays.

pub mod decay_gate_bwd;
pub mod decay_gate_fwd;
