//! Checkpoints: folders in Hugging Face layout that another program can load, with a `training` folder inside that holds what a
//! resumed run needs beside the weights.
//!
//! Policy: a checkpoint is complete or not there. It is written into a temporary folder, synced and renamed; older ones are pruned
//! only when the new one is durable. A run that is killed at any point, or finds the disk full, leaves every earlier checkpoint
//! intact. One run at a time may use an output folder; the lock ends with the process, however it ends.

mod folder;
mod lock;
mod state;
#[cfg(test)]
mod tests;

pub use folder::{Checkpoint, LATEST, RunFolder};
pub use state::{TrainerState, load_optimizer, save_optimizer};

/// The folder inside a checkpoint that only training reads.
pub const TRAINING_DIR: &str = "training";
/// The resolved configuration, beside every checkpoint and in the output folder.
pub const CONFIG_FILE: &str = "run.toml";
