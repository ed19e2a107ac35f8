//! Activations.

pub mod act_bwd;
pub mod act_fwd;
pub mod glu_bwd;
pub mod glu_fwd;
pub mod swiglu;
pub mod swiglu_bwd;
