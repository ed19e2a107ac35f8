//! Every key of `run.toml`: what it is called, what it does, what it is when it is not set.

use std::path::PathBuf;

use flashlin_tensor::Device;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::keys::section;
use crate::{
    Error, Result,
    data::{DataConfig, Packing, SourceConfig},
    schedule::{DecayType, Schedule},
};

/// What a segment of a long sequence learns from the segments before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Carry {
    /// The gradient flows back through the state: the same result as one pass over the whole sequence.
    #[default]
    Exact,
    /// The state is carried, its gradient is not: each segment learns from its own tokens.
    Truncated,
}

section! {
    /// `[model]`: what is trained.
    ModelConfig in "model" {
        /// Model family by its Hugging Face `model_type`, e.g. `gated_deltanet`, with that family's default configuration.
        family: Option<String> = None,
        /// Named preset of the family: a complete configuration.
        preset: Option<String> = None,
        /// A `config.json`, or a checkpoint folder whose `config.json` is used; its weights are not.
        path: Option<PathBuf> = None,
        /// Checkpoint folder or hub id whose configuration and weights training begins with.
        init: Option<String> = None,
        /// Keys of `config.json` that are set over all of the above, e.g. `config.hidden_size = 256`.
        config: Table = Table::new(),
        /// Type of the parameters: `f32`, or `bf16` / `f16` with f32 master weights in the optimizer.
        dtype: String = "f32".to_string(),
    }
}

section! {
    /// `[data]`: what is read and how it becomes batches.
    DataSection in "data" {
        /// Tokenizer: `bytes` (one token a byte), `bpe` (trained on the training part, `vocab_size` tokens), or a `tokenizer.json` or
        /// folder that holds one. A resumed run uses the tokenizer in the checkpoint.
        tokenizer: String = "bytes".to_string(),
        /// Size of the vocabulary that `tokenizer = "bpe"` is trained to.
        vocab_size: Option<usize> = None,
        /// Sources of text, mixed by weight: an array of tables with `paths`, `format`, `unit`, `field`, `weight` and `range`.
        sources: Vec<SourceConfig> = Vec::new(),
        /// Sources of held-out text for validation, written like `sources`.
        validation: Vec<SourceConfig> = Vec::new(),
        /// Share of every source that is held out for validation, taken from its end; only without `validation`.
        held_out: f64 = 0.0,
        /// Tokens of one row; a batch holds `seq_len * batch_size`.
        seq_len: usize = blank().seq_len,
        /// Rows of one (micro-)batch.
        batch_size: usize = blank().batch_size,
        /// Longest stretch of one document without a boundary (packing `documents` only); unset: `seq_len`.
        context_len: Option<usize> = blank().context_len,
        /// `documents`: var-len rows with boundaries between documents. `contiguous`: blocks of `seq_len` tokens without boundaries.
        packing: Packing = blank().packing,
        /// Segments that are shuffled together; 0 or 1 keeps the order of the files.
        shuffle: usize = blank().shuffle,
        /// Seed of the shuffling; unset: `train.seed`.
        seed: Option<u64> = None,
        /// Begin again when a source is used up; without it training ends early with the data.
        repeat: bool = blank().repeat,
        /// Batches that a thread of its own makes ahead of their use; 0 makes each when it is needed. Changes no result.
        prefetch: usize = 4,
        /// Put the tokenizer's BOS before each document; unset: if `tokenizer.json` asks for it.
        bos: Option<bool> = blank().bos,
        /// Put the tokenizer's EOS after each document; unset: if the tokenizer has one.
        eos: Option<bool> = blank().eos,
    }
}

section! {
    /// `[train]`: the loop.
    LoopConfig in "train" {
        /// Optimizer steps of the whole run.
        steps: u64 = 1000,
        /// Micro-batches whose gradients make one step, weighted by their numbers of labels.
        accumulate: usize = 1,
        /// Where the model is trained: `cpu` or `cuda:N`.
        device: String = "cpu".to_string(),
        /// Seed of the initial weights (and of shuffling, unless `data.seed` is set).
        seed: u64 = 42,
        /// Recompute each layer's activations in the backward pass instead of keeping them.
        checkpoint_layers: bool = false,
        /// Split sequences longer than this into segments with carried state, so that memory does not grow with their length;
        /// unset: no splitting.
        segment_len: Option<usize> = None,
        /// What flows from segment to segment: `exact` (state and its gradient) or `truncated` (state alone).
        carry: Carry = Carry::Exact,
    }
}

section! {
    /// `[optim]`: AdamW.
    OptimConfig in "optim" {
        /// Decay rates of the running means of gradients and of squared gradients.
        betas: [f64; 2] = [0.9, 0.95],
        /// Added to the root of the squared mean.
        eps: f64 = 1e-15,
        /// Decoupled weight decay; norms, biases and gates do not decay.
        weight_decay: f64 = 0.1,
        /// Gradients are scaled down to this global norm; 0 switches clipping off.
        max_norm: f64 = 1.0,
        /// Skip (and count) a step whose loss or gradient norm is not finite.
        skip_non_finite: bool = true,
        /// Give up after this many skipped steps in a row (seen when logging); 0 never does.
        max_skipped: u64 = 100,
    }
}

section! {
    /// `[schedule]`: the learning rate.
    ScheduleConfig in "schedule" {
        /// Peak learning rate.
        lr: f64 = Schedule::default().lr,
        /// Steps of linear warm-up.
        warmup_steps: u64 = Schedule::default().warmup_steps,
        /// Shape of the decay: `constant`, `linear`, `cosine`, `sqrt` or `wsd` (stable, then square root).
        decay_type: DecayType = Schedule::default().decay_type,
        /// The last step's rate as a share of `lr`.
        lr_min: f64 = Schedule::default().lr_min,
        /// Share of all steps that decay; unset: all after warm-up (for `wsd`: 0.2).
        decay_ratio: Option<f64> = Schedule::default().decay_ratio,
    }
}

section! {
    /// `[checkpoint]`: what is kept.
    CheckpointConfig in "checkpoint" {
        /// Output folder of the run: checkpoints, metrics, the resolved configuration.
        dir: PathBuf = PathBuf::from("run"),
        /// Save every so many steps; 0 saves at the end (and when interrupted) only.
        interval: u64 = 500,
        /// Keep this many newest checkpoints; 0 keeps all.
        keep_latest: usize = 2,
        /// Continue from the newest complete checkpoint in `dir`; begins anew where there is none.
        resume: bool = false,
    }
}

section! {
    /// `[log]`: what is written while training.
    LogConfig in "log" {
        /// Log every so many steps.
        interval: u64 = 10,
        /// Write `metrics.jsonl` in the output folder.
        jsonl: bool = true,
        /// Write TensorBoard event files in `tensorboard` in the output folder.
        tensorboard: bool = false,
        /// Write rms, maximum and gradient rms of every parameter, each `stats_interval` steps. From a GPU the values come to the
        /// host for it.
        weight_stats: bool = false,
        /// Write rms and maximum of every layer's output, each `stats_interval` steps. From a GPU the values come to the host for it.
        activation_stats: bool = false,
        /// Steps between statistics.
        stats_interval: u64 = 100,
    }
}

section! {
    /// `[eval]`: validation on held-out text, when there is some.
    EvalConfig in "eval" {
        /// Validate every so many steps; 0 validates at the end only.
        interval: u64 = 500,
        /// Tokens of one validation at most; unset: all held-out text.
        tokens: Option<u64> = None,
    }
}

/// Where the data crate's defaults come from.
fn blank() -> DataConfig {
    DataConfig::new(Vec::new())
}

fn positive(key: &str, value: u64) -> Result<()> {
    if value == 0 {
        return Err(Error::config(key, "must be at least 1"));
    }
    Ok(())
}

impl OptimConfig {
    /// Checks the values. Errors are [`Error::Config`] and name the key.
    pub fn validate(&self) -> Result<()> {
        if self.betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            return Err(Error::config("optim.betas", format!("{:?} are not both in [0, 1)", self.betas)));
        }
        let checks = [("eps", self.eps), ("weight_decay", self.weight_decay), ("max_norm", self.max_norm)];
        for (name, value) in checks {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::config(
                    format!("optim.{name}"),
                    format!("{value} is not a finite number >= 0"),
                ));
            }
        }
        Ok(())
    }
}

impl LoopConfig {
    /// The device that `train.device` names.
    ///
    /// # Errors
    /// [`Error::Config`] for text that names none.
    pub fn device(&self) -> Result<Device> {
        self.device.parse().map_err(|_| {
            Error::config("train.device", format!("is `{}`, expected cpu or cuda:N", self.device))
        })
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.device()?;
        positive("train.steps", self.steps)?;
        positive("train.accumulate", self.accumulate as u64)?;
        positive("train.segment_len", self.segment_len.map_or(1, |n| n as u64))
    }
}

impl LogConfig {
    pub(super) fn validate(&self) -> Result<()> {
        positive("log.interval", self.interval)?;
        positive("log.stats_interval", self.stats_interval)
    }
}

impl EvalConfig {
    pub(super) fn validate(&self) -> Result<()> {
        positive("eval.tokens", self.tokens.unwrap_or(1))
    }
}

impl DataSection {
    pub(super) fn validate(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.held_out) {
            return Err(Error::config("data.held_out", format!("{} is not in [0, 1)", self.held_out)));
        }
        if self.held_out > 0.0 && !self.validation.is_empty() {
            let problem = "cannot be set together with data.validation: held-out text comes from one of them";
            return Err(Error::config("data.held_out", problem));
        }
        match (self.tokenizer.as_str(), self.vocab_size) {
            ("bpe", None) => Err(Error::config("data.vocab_size", "is needed for data.tokenizer = \"bpe\"")),
            ("bpe", _) | (_, None) => Ok(()),
            (_, Some(_)) => {
                Err(Error::config("data.vocab_size", "is only used with data.tokenizer = \"bpe\""))
            }
        }
    }

    /// Sources for training and for validation.
    pub fn split(&self) -> (Vec<SourceConfig>, Vec<SourceConfig>) {
        if self.held_out > 0.0 {
            return self.sources.iter().map(|s| s.split(self.held_out)).unzip();
        }
        (self.sources.clone(), self.validation.clone())
    }
}
