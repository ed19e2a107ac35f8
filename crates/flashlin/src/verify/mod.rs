//! Checks a golden directory: a checkpoint with what a reference computed from it (`golden.safetensors`,
//! `golden.json`). One line a key: error, tolerance, pass or fail.
//!
//! Policy: a directory passes only when every key was read and every key passes. A key that is absent without being
//! listed in `peer_cannot`, an unknown tag, or a file that cannot be read is a failure, never a skip.

mod compute;
mod golden;
#[cfg(test)]
mod tests;
mod tolerance;

use std::path::Path;

use flashlin_ops::Mode;
use flashlin_tensor::Device;
use serde::Serialize;

pub use golden::Golden;
pub use tolerance::{Measure, Tag, tolerance};

use crate::{Model, Result};

/// Result of one key in one mode.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Key (`logits`, `loss`, `grad_norm.model.norm.weight`, ...).
    pub key: String,
    /// Form the recurrences ran in.
    pub mode: String,
    /// Precision tag of the golden value.
    pub tag: String,
    /// Measured error; None where it could not be measured.
    pub error: Option<f64>,
    /// Allowed error.
    pub tolerance: Option<f64>,
    /// Whether it passes.
    pub pass: bool,
    /// Why not, or what was left out and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Result of one directory.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The directory.
    pub dir: String,
    /// `model_type`, where the config could be read.
    pub model_type: Option<String>,
    /// One entry a key and mode.
    pub lines: Vec<Line>,
    /// Whether everything was read and passes.
    pub pass: bool,
}

impl Report {
    fn failed(dir: &Path, model_type: Option<String>, error: &crate::Error) -> Report {
        let line = Line {
            key: "load".into(),
            mode: "-".into(),
            tag: "-".into(),
            error: None,
            tolerance: None,
            pass: false,
            note: Some(error.to_string()),
        };
        Report { dir: dir.display().to_string(), model_type, lines: vec![line], pass: false }
    }
}

/// Checks one directory in the given modes.
pub fn verify_dir(dir: &Path, modes: &[Mode], device: &Device) -> Report {
    let loaded = Model::load(dir, Some(flashlin_tensor::DType::F32), device);
    let model = match loaded {
        Ok(m) => m,
        Err(e) => return Report::failed(dir, None, &e),
    };
    let model_type = Some(model.config().model_type().to_string());
    match Golden::load(dir).and_then(|golden| verify_model(&model, &golden, modes)) {
        Ok(lines) => {
            let pass = !lines.is_empty() && lines.iter().all(|l| l.pass);
            Report { dir: dir.display().to_string(), model_type, lines, pass }
        }
        Err(e) => Report::failed(dir, model_type, &e),
    }
}

/// Checks a loaded model against golden values.
///
/// # Errors
/// When the model cannot run on the golden inputs at all.
pub fn verify_model(model: &Model, golden: &Golden, modes: &[Mode]) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for &mode in modes {
        compute::forward_keys(model, golden, mode, &mut lines)?;
        compute::greedy(model, golden, mode, &mut lines)?;
        compute::loss_and_gradients(model, golden, mode, &mut lines)?;
    }
    Ok(lines)
}
