//! The short causal depthwise convolution.
//!
//! All kernels but the step read a table `chunks` i32 `[count, 4]`: a sequence's first token in the packed array, its length, the chunk's
//! first token within it, and the sequence's number. A state `[N, D, W]` holds the last W inputs of a sequence, newest last.

pub mod conv_dstate;
pub mod conv_dw;
pub mod conv_dx;
pub mod conv_dz;
pub mod conv_fwd;
pub mod conv_rows_bwd;
pub mod conv_rows_fwd;
pub mod conv_state;
pub mod conv_step;
