//! Gates: how logits become log-decays and write strengths. The formulas live once, in [`formulas`]; kernels that
//! apply a gate on the way in call them too.

pub mod formulas;

pub use formulas::DecayGate;
