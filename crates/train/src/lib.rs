//! Training: schedules (data, optimizer, checkpoints and the loop follow beside them).

pub mod error;
pub mod schedule;

pub use error::{Error, ErrorKind, Result};
