//! The CPU paths of the decay family on slices: chunked and recurrent, forward and backward.
//!
//! One task is one (sequence, value head); tasks run on rayon and write disjoint rows, so results do not depend on
//! the number of threads. Everything computes in `R` (f32 for f32, bf16 and f16 inputs, f64 for f64).

mod args;
mod chunk;
mod recurrent;
mod step;
mod tasks;
mod work;

pub use args::{Args, Elements, GradsMut, Seq, Source};
pub use step::{Step, step};
pub use tasks::{Path, backward, forward, saved_len};
