//! The algorithms of linear-attention models: one module a math family, each with a token-by-token reference, a
//! fast CPU path, gradients, and an entry in the registry [`OPS`].
//!
//! Every operator takes [`Var`](flashlin_tensor::Var)s of shape `[B, T, H, D]` (or `[1, T, H, D]` with
//! [`PackedSeqs`] of N sequences), computes with f32 accumulation (f64 for f64 inputs), and is an error, never a
//! fallback, on a combination it does not serve. Gates are natural-log decays, `<= 0`.

pub mod activation;
mod composed;
pub mod conformance;
pub mod conv;
pub mod decay;
pub mod delta;
pub mod gate;
mod kernels;
pub mod levels;
pub mod loss;
pub mod maps;
mod mode;
pub mod norm;
mod pairs;
pub mod path;
mod recurrence;
mod registry;
pub mod rope;
mod rows;
pub mod rwkv;
pub mod scan;
mod seqs;
pub mod simd;
pub mod slots;
pub mod softmax;
pub mod solver;
pub mod sparse;
mod state;
#[cfg(test)]
mod testing;

pub use flashlin_tensor::{Error, ErrorKind, Result};
pub use mode::Mode;
pub use recurrence::Recurrence;
pub use registry::{OPS, OpInfo, find_op};
pub use seqs::PackedSeqs;
pub use state::{RecurrentState, SeqOutput, StateLayout};
