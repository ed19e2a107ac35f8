//! A whole run: from configuration to checkpoints, metrics and a report.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use flashlin::tokenizer::Tokenizer;
use serde::Serialize;

use crate::{
    Error, Result, TrainConfig,
    checkpoint::{CONFIG_FILE, Checkpoint, RunFolder},
    data::train_tokenizer,
    files_of_text,
    metrics::Sink,
    model::build_model,
    observer::{Observer, Start, StepMetrics, Validation},
    trainable::Trainable,
    trainer::{StepRecord, Trainer},
};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// All steps were taken.
    Finished,
    /// The data ended first (`data.repeat = false`).
    DataEnded,
    /// It was asked to stop; its checkpoint continues with `checkpoint.resume`.
    Stopped,
}

/// What a run leaves.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Steps taken, skipped ones and those before a resume included.
    pub steps: u64,
    /// Steps skipped because something was not finite.
    pub skipped_steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds spent, over all parts of the run.
    pub seconds: f64,
    /// The last metrics that were logged.
    pub last: Option<StepMetrics>,
    /// The last validation.
    pub validation: Option<Validation>,
    /// The checkpoint of the last step.
    pub checkpoint: PathBuf,
}

/// Trains a flashlin model as the configuration says. `stop` is looked at after each step: once it is true, the run saves a checkpoint
/// and returns.
///
/// # Errors
/// As [`run_with`], and those of [`build_model`].
pub fn run(config: &TrainConfig, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Report> {
    run_with(config, observer, stop, |tokenizer, checkpoint| build_model(config, tokenizer, checkpoint))
}

/// Trains whatever network `build` makes. It is given the tokenizer, and the checkpoint's folder when the run continues one (its
/// weights are loaded afterwards). `stop` is looked at after each step: once it is true, the run saves a checkpoint and returns.
///
/// # Errors
/// Configuration and data that cannot be used ([`crate::ErrorKind::Usage`]); anything that goes wrong while running. Checkpoints
/// saved before stay intact.
pub fn run_with<M: Trainable>(
    config: &TrainConfig,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
    build: impl FnOnce(&Tokenizer, Option<&Path>) -> Result<M>,
) -> Result<Report> {
    config.validate()?;
    // Before data is read and a folder is made for a run that cannot begin.
    config.train.device()?.open()?;
    let folder = RunFolder::open(&config.checkpoint.dir)?;
    let newest = folder.newest()?;
    if let Some(found) = newest.as_ref().filter(|_| !config.checkpoint.resume) {
        let problem = format!(
            "{} holds a run's checkpoints already (up to step {}); resume it, or choose another folder",
            config.checkpoint.dir.display(),
            found.step
        );
        return Err(Error::config("checkpoint.dir", problem));
    }
    let tokenizer = match &newest {
        Some(checkpoint) => Tokenizer::from_dir(&checkpoint.dir)?,
        None => make_tokenizer(config)?,
    };
    let model = build(&tokenizer, newest.as_ref().map(|c| &*c.dir))?;
    let mut trainer = Trainer::new(model, tokenizer, config)?;
    if let Some(checkpoint) = &newest {
        trainer.resume(checkpoint)?;
    }
    files_of_text(&folder.dir().join(CONFIG_FILE), &config.to_toml()?)?;
    let sink = Sink::open(folder.dir(), &config.log, trainer.step())?;
    Run { config, folder, observer, sink, pending: Vec::new(), last: None, validation: None, skipped: 0 }
        .drive(&mut trainer, stop)
}

/// The tokenizer that `data.tokenizer` asks for; BPE is trained on the training part only.
///
/// # Errors
/// Files that cannot be read; a vocabulary that cannot be trained.
pub fn make_tokenizer(config: &TrainConfig) -> Result<Tokenizer> {
    match (config.data.tokenizer.as_str(), config.data.vocab_size) {
        ("bytes", _) => Ok(Tokenizer::bytes()?),
        ("bpe", size) => train_tokenizer(&config.data.split().0, size.unwrap_or_default(), None),
        (path, _) => Ok(Tokenizer::from_file(Path::new(path))?),
    }
}

struct Run<'a> {
    config: &'a TrainConfig,
    folder: RunFolder,
    observer: &'a mut dyn Observer,
    sink: Sink,
    /// Steps whose values nobody has read yet.
    pending: Vec<StepRecord>,
    last: Option<StepMetrics>,
    validation: Option<Validation>,
    skipped: u64,
}

/// Where speed is measured from.
struct Mark {
    step: u64,
    tokens: u64,
    seconds: f64,
}

impl Mark {
    fn of<M: Trainable>(trainer: &Trainer<M>) -> Mark {
        Mark { step: trainer.step(), tokens: trainer.tokens(), seconds: trainer.seconds() }
    }
}

impl Run<'_> {
    fn drive<M: Trainable>(mut self, trainer: &mut Trainer<M>, stop: &AtomicBool) -> Result<Report> {
        let start = self.start(trainer);
        self.sink.start(&start)?;
        self.observer.started(&start);
        let (first, mut mark) = (Mark::of(trainer), Mark::of(trainer));
        let outcome = loop {
            if stop.load(Ordering::Relaxed) {
                break Outcome::Stopped;
            }
            if trainer.step() >= self.config.train.steps {
                break Outcome::Finished;
            }
            let Some(mut record) = trainer.train_step()? else { break Outcome::DataEnded };
            if let Some(stats) = record.stats.take() {
                self.sink.stats(&stats)?;
                self.observer.stats(&stats);
            }
            self.pending.push(record);
            self.observer.stepped(trainer.step(), self.config.train.steps);
            self.at_intervals(trainer, &first, &mut mark)?;
        };
        if !self.pending.is_empty() {
            self.log(trainer, &first, &mut mark)?;
        }
        // The weights are safe before anything else is done with them.
        let checkpoint = self.save(trainer)?;
        if outcome != Outcome::Stopped {
            self.validate(trainer)?;
        }
        Ok(Report {
            outcome,
            steps: trainer.step(),
            skipped_steps: self.skipped,
            tokens: trainer.tokens(),
            seconds: trainer.seconds(),
            last: self.last,
            validation: self.validation,
            checkpoint: checkpoint.dir,
        })
    }

    fn start<M: Trainable>(&self, trainer: &Trainer<M>) -> Start {
        let c = self.config;
        Start {
            step: trainer.step(),
            steps: c.train.steps,
            parameters: trainer
                .model()
                .params()
                .iter()
                .map(|p| p.dims().iter().product::<usize>() as u64)
                .sum(),
            vocab_size: trainer.tokenizer().vocab_size(),
            tokens_per_step: (c.data.seq_len * c.data.batch_size * c.train.accumulate) as u64,
            dir: c.checkpoint.dir.clone(),
        }
    }

    /// What is due after a step. The last step's validation and checkpoint come with the end of the run.
    fn at_intervals<M: Trainable>(
        &mut self,
        trainer: &Trainer<M>,
        first: &Mark,
        mark: &mut Mark,
    ) -> Result<()> {
        let (step, c) = (trainer.step(), self.config);
        let due = |interval: u64| interval > 0 && step.is_multiple_of(interval);
        if due(c.log.interval) {
            self.log(trainer, first, mark)?;
        }
        if step == c.train.steps {
            return Ok(());
        }
        if due(c.checkpoint.interval) {
            self.save(trainer)?;
        }
        if due(c.eval.interval) {
            self.validate(trainer)?;
        }
        Ok(())
    }

    /// Reads the pending steps and tells.
    fn log<M: Trainable>(&mut self, trainer: &Trainer<M>, first: &Mark, mark: &mut Mark) -> Result<()> {
        let (mut sum, mut applied, mut in_a_row) = (0.0, 0, 0);
        let mut last = None;
        for record in self.pending.drain(..) {
            let values = record.status.read()?;
            if values.applied {
                sum += record.loss.to_scalar()?;
                applied += 1;
            }
            in_a_row = values.skipped_in_a_row.max(in_a_row);
            last = Some((values, record.lr));
        }
        let Some((values, lr)) = last else { return Ok(()) };
        let now = Mark::of(trainer);
        let done = (now.step - first.step).max(1) as f64;
        let metrics = StepMetrics {
            step: now.step,
            steps: self.config.train.steps,
            loss: sum / f64::from(applied),
            lr,
            grad_norm: values.grad_norm,
            clip: values.clip,
            skipped_steps: values.skipped_steps,
            tokens: now.tokens,
            tokens_per_second: (now.tokens - mark.tokens) as f64 / (now.seconds - mark.seconds),
            seconds: now.seconds,
            eta: (now.seconds - first.seconds) / done * (self.config.train.steps - now.step) as f64,
        };
        *mark = now;
        self.skipped = values.skipped_steps;
        self.sink.train(&metrics)?;
        self.observer.logged(&metrics);
        self.last = Some(metrics);
        let limit = self.config.optim.max_skipped;
        if limit > 0 && in_a_row >= limit {
            return Err(Error::Diverged { step: trainer.step(), skipped: in_a_row });
        }
        Ok(())
    }

    fn save<M: Trainable>(&mut self, trainer: &Trainer<M>) -> Result<Checkpoint> {
        let saved = trainer.save(&self.folder)?;
        self.observer.saved(&saved);
        Ok(saved)
    }

    fn validate<M: Trainable>(&mut self, trainer: &Trainer<M>) -> Result<()> {
        if let Some(validation) = trainer.validate()? {
            self.sink.validation(&validation)?;
            self.observer.validated(&validation);
            self.validation = Some(validation);
        }
        Ok(())
    }
}
