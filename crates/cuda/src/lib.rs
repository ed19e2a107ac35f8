//! The door to NVIDIA GPUs: devices, memory, streams, launches, graphs, dense products.
//!
//! Policy: always compiled in, and nothing of CUDA is needed to build. Every library is looked for before its first call, so a machine without
//! a driver gets an [`Error`], never a panic. Nothing synchronises unless it reads a result. This crate knows no tensor and no kernel: it deals in
//! addresses and bytes, and whoever hands it an address vouches for it.

mod blas;
mod driver;
mod error;
mod event;
mod gpu;
mod graph;
mod guard;
mod launch;
mod memory;
mod pool;
mod profile;
mod properties;
mod scalar;
mod staging;
mod stream;

pub mod selftest;

pub use blas::{BlasInfo, Epilogue, MatmulArgs, MatmulSpec, Operand, Search, blas_library, find_blas};
pub use driver::{DriverInfo, MIN_DRIVER, count, devices, driver};
pub use error::{Error, ErrorKind, OutOfMemory, Result};
pub use event::Event;
pub use gpu::Gpu;
pub use graph::{Capture, Graph};
pub use guard::GuardBuffer;
pub use launch::{Arg, Function, Module};
pub use memory::{Buffer, Plain, bytes_of, bytes_of_mut};
pub use pool::PoolStats;
pub use profile::{Span, profiled};
pub use properties::Properties;
pub use scalar::Scalar;
pub use staging::Pinned;
pub use stream::Stream;
