//! Training: data and schedules (optimizer, checkpoints, event files and the loop follow beside them).

pub mod data;
pub mod error;
pub mod schedule;
pub mod tensorboard;

pub use error::{Error, ErrorKind, Result};
