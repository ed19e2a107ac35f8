//! Training: data, configuration, optimizer and schedules (checkpoints and the loop follow beside them).

pub mod config;
pub mod data;
pub mod error;
pub mod optim;
pub mod schedule;
pub mod tensorboard;

pub use config::TrainConfig;
pub use error::{Error, ErrorKind, Result};
