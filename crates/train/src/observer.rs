//! What a run tells while it goes: a program implements [`Observer`] to draw progress.

use std::path::PathBuf;

use serde::Serialize;

use crate::{checkpoint::Checkpoint, stats::Stat};

/// What a run begins with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Start {
    /// Steps already taken (0 unless resumed).
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Trainable values of the model.
    pub parameters: u64,
    /// Size of the tokenizer.
    pub vocab_size: usize,
    /// Tokens of one step at most.
    pub tokens_per_step: u64,
    /// Output folder.
    pub dir: PathBuf,
}

/// How training goes, over the steps since the last of these.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Steps taken.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Mean loss of the steps that were applied, in nats a token; NaN (null in JSON) if none was.
    pub loss: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Gradient norm of the last step, before clipping.
    pub grad_norm: f64,
    /// What the last step's gradients were multiplied by.
    pub clip: f64,
    /// Steps skipped since the beginning of the run.
    pub skipped_steps: u64,
    /// Tokens trained on since the beginning of the run.
    pub tokens: u64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Seconds spent training, validation and saving included.
    pub seconds: f64,
    /// Seconds to the end at this speed.
    pub eta: f64,
}

/// The loss on held-out text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Validation {
    /// Steps taken.
    pub step: u64,
    /// Mean loss in nats a token.
    pub loss: f64,
    /// Loss in bits a byte of text, whatever the tokenizer.
    pub bits_per_byte: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Bytes of text that those tokens stand for.
    pub bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Statistics of one step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Steps taken.
    pub step: u64,
    /// Parameters (log.weight_stats).
    pub weights: Vec<Stat>,
    /// Layer outputs (log.activation_stats).
    pub activations: Vec<Stat>,
}

/// Is told what happens; every method may be left out.
pub trait Observer {
    /// The model is built, training begins.
    fn started(&mut self, _start: &Start) {}
    /// A step was issued. Called after every step and cheap: no value of it is known yet.
    fn stepped(&mut self, _step: u64, _steps: u64) {}
    /// Metrics were read, every `log.interval` steps.
    fn logged(&mut self, _metrics: &StepMetrics) {}
    /// Statistics were computed.
    fn stats(&mut self, _stats: &Stats) {}
    /// Validation was done.
    fn validated(&mut self, _validation: &Validation) {}
    /// A checkpoint is on the disk.
    fn saved(&mut self, _checkpoint: &Checkpoint) {}
}

/// Watches nothing.
impl Observer for () {}
