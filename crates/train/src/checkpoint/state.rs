//! What a resumed run needs beside the weights: where it was, and the optimizer's tensors.

use std::{collections::BTreeMap, path::Path};

use flashlin::{files, weights};
use flashlin_tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, data::DataState};

const STATE_FILE: &str = "trainer.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Version of the meaning of what is saved here.
const VERSION: u32 = 1;

/// Where a run is. Random numbers are counter-based, so seeds and step are all of their state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Version of this format.
    pub version: u32,
    /// Program that wrote it.
    pub flashlin_version: String,
    /// Optimizer steps taken, skipped ones included; also the next step's place in the schedule.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds spent training, over all parts of the run.
    pub seconds: f64,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Position in the data.
    pub data: DataState,
}

impl TrainerState {
    /// A state of this version.
    pub fn new(step: u64, tokens: u64, seconds: f64, seed: u64, data: DataState) -> TrainerState {
        let flashlin_version = env!("CARGO_PKG_VERSION").to_string();
        TrainerState { version: VERSION, flashlin_version, step, tokens, seconds, seed, data }
    }

    /// Writes it into a checkpoint's training folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, training: &Path) -> Result<()> {
        Ok(files::write_json(&training.join(STATE_FILE), self)?)
    }

    /// Reads it from a checkpoint's training folder.
    ///
    /// # Errors
    /// [`Error::Model`] for a file that is not readable, [`Error::File`] for another version.
    pub fn load(training: &Path) -> Result<TrainerState> {
        let path = training.join(STATE_FILE);
        let state: TrainerState = files::read_json(&path, "trainer state")?;
        if state.version != VERSION {
            let problem = format!("is of version {}; this program reads version {VERSION}", state.version);
            return Err(Error::file(&path, problem));
        }
        Ok(state)
    }
}

/// Writes the optimizer's tensors ([`crate::optim::AdamW::state`]) into a checkpoint's training folder.
///
/// # Errors
/// Those of the file system.
pub fn save_optimizer(training: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let path = training.join(OPTIMIZER_FILE);
    Ok(weights::write_file(&path, tensors, None, &BTreeMap::new())?)
}

/// Reads what [`save_optimizer`] wrote.
///
/// # Errors
/// When the file is missing or damaged.
pub fn load_optimizer(training: &Path) -> Result<Vec<(String, Tensor)>> {
    let map = weights::WeightMap::open_file(&training.join(OPTIMIZER_FILE))?;
    map.keys().map(|key| Ok((key.to_string(), map.get(key)?))).collect()
}
