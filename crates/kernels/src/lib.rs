//! What a GPU launch needs, apart from pointers: the compiled kernels, and which of them a shape calls for.
//!
//! Policy: this crate knows no tensor, and everything in it but a launch works without a GPU. Kernels are compiled ahead of time and embedded,
//! one [`Bundle`] an architecture; a bundle is data, so whatever is wrong with one is an error that says so, never a panic.

mod arch;
mod bundle;
pub mod check;
mod embedded;
mod error;
mod index;
mod load;
pub mod plan;
mod record;
mod tuning;
mod verify;
mod writer;

pub use arch::Arch;
pub use bundle::{Bundle, FORMAT};
pub use embedded::{embedded, embedded_for, embedded_names};
pub use error::{Error, Result};
pub use index::{Arg, ArgKind, Checked, Index, Kernel, Place, kernel_name};
pub use load::{Library, Loaded};
pub use tuning::{Line, Tuning};
pub use verify::{Verdict, today, verify_kernel};
pub use writer::BundleWriter;
