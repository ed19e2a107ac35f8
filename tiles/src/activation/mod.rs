//! Activations.

pub mod swiglu;
pub mod swiglu_bwd;
