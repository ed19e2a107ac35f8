//! Training: data, configuration, optimizer, schedules, checkpoints, metrics and the loop.
//!
//! [`run`] trains a flashlin model as a [`TrainConfig`] says; [`run_with`] trains any [`Trainable`] network; a [`Trainer`] is one
//! run without the loop around it. Policy: a run is a function of its configuration and seeds, bit for bit, however often it is
//! interrupted and with however many threads it runs.

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod error;
pub mod fit;
mod gradient;
mod metrics;
mod model;
pub mod observer;
pub mod optim;
mod pieces;
mod run;
pub mod schedule;
mod stats;
pub mod tensorboard;
pub mod trainable;
mod trainer;

#[cfg(test)]
mod toy;

pub use config::TrainConfig;
pub use error::{Error, ErrorKind, Result};
pub use model::{build_model, model_config};
pub use observer::Observer;
pub use run::{Outcome, Report, make_tokenizer, run, run_with};
pub use stats::Stat;
pub use trainable::Trainable;
pub use trainer::{StepRecord, Trainer};

/// Writes a text file atomically.
fn files_of_text(path: &std::path::Path, text: &str) -> Result<()> {
    Ok(flashlin::files::write_bytes(path, text.as_bytes())?)
}
