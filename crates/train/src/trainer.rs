//! One training run in memory: model, data, optimizer and where they are. [`crate::run`] drives it; so can a program of one's own.

use std::time::Instant;

use flashlin::tokenizer::Tokenizer;
use flashlin_tensor::Tensor;

use crate::{
    Result, TrainConfig,
    checkpoint::{
        CONFIG_FILE, Checkpoint, RunFolder, TRAINING_DIR, TrainerState, load_optimizer, save_optimizer,
    },
    config::Carry,
    data::{Batch, Loader, Prefetch},
    files_of_text,
    gradient::{losses, step_gradient},
    observer::{Stats, Validation},
    optim::{AdamW, StepStatus},
    schedule::Schedule,
    stats::weight_stats,
    trainable::Trainable,
};

/// What one step leaves to be read later.
#[derive(Debug)]
pub struct StepRecord {
    /// Mean loss over the step's targets, an f32 scalar on the model's device.
    pub loss: Tensor,
    /// What the optimizer decided.
    pub status: StepStatus,
    /// Learning rate.
    pub lr: f64,
    /// Statistics, when they were due.
    pub stats: Option<Stats>,
}

/// Model, optimizer and data at some step.
pub struct Trainer<M> {
    model: M,
    tokenizer: Tokenizer,
    config: TrainConfig,
    schedule: Schedule,
    optimizer: AdamW,
    data: Prefetch,
    step: u64,
    tokens: u64,
    /// Seconds of earlier parts of the run.
    seconds_before: f64,
    began: Instant,
}

impl<M: Trainable> Trainer<M> {
    /// A run at step 0.
    ///
    /// # Errors
    /// A configuration that cannot be used, data that cannot be opened, memory.
    pub fn new(model: M, tokenizer: Tokenizer, config: &TrainConfig) -> Result<Trainer<M>> {
        config.validate()?;
        if config.train.segment_len.is_some() && config.train.carry == Carry::Exact {
            model.check_exact_carry()?;
        }
        let optimizer = AdamW::new(&config.optim, model.params(), |name| model.wants_weight_decay(name))?;
        let loader = Loader::new(&config.data_config(), &tokenizer)?;
        let data = Prefetch::new(loader, config.data.prefetch);
        Ok(Trainer {
            model,
            tokenizer,
            schedule: config.schedule(),
            config: config.clone(),
            optimizer,
            data,
            step: 0,
            tokens: 0,
            seconds_before: 0.0,
            began: Instant::now(),
        })
    }

    /// Goes to where a checkpoint was saved: what follows is bit for bit what would have followed there.
    ///
    /// # Errors
    /// Files that are damaged or do not fit model, data or configuration.
    pub fn resume(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let state = TrainerState::load(&checkpoint.training())?;
        self.model.load(&checkpoint.dir)?;
        self.optimizer.load_state(load_optimizer(&checkpoint.training())?)?;
        let loader = Loader::resume(&self.config.data_config(), &self.tokenizer, &state.data)?;
        self.data = Prefetch::new(loader, self.config.data.prefetch);
        (self.step, self.tokens, self.seconds_before) = (state.step, state.tokens, state.seconds);
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Steps taken, skipped ones included.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Tokens trained on.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Seconds spent, over all parts of the run.
    pub fn seconds(&self) -> f64 {
        self.seconds_before + self.began.elapsed().as_secs_f64()
    }

    /// One optimizer step over `train.accumulate` micro-batches; None when the data has ended. Reads no device value unless
    /// statistics are due.
    ///
    /// # Errors
    /// Those of data and model.
    pub fn train_step(&mut self) -> Result<Option<StepRecord>> {
        let mut batches: Vec<Batch> = Vec::with_capacity(self.config.train.accumulate);
        while batches.len() < self.config.train.accumulate {
            let Some(batch) = self.data.next_batch()? else { break };
            batches.push(batch);
        }
        if batches.is_empty() {
            return Ok(None);
        }
        let log = &self.config.log;
        let due = (self.step + 1).is_multiple_of(log.stats_interval);
        let (weights, activations) = (due && log.weight_stats, due && log.activation_stats);
        let gradient = step_gradient(&self.model, &batches, &self.config.train, activations)?;
        let lr = self.schedule.lr(self.step);
        let stats = match weights || activations {
            false => None,
            true => Some(Stats {
                step: self.step + 1,
                weights: if weights { weight_stats(&self.model, &gradient.grads)? } else { Vec::new() },
                activations: gradient.activations,
            }),
        };
        let status = self.optimizer.step(&gradient.grads, lr, &gradient.loss)?;
        self.step += 1;
        self.tokens += batches.iter().map(|b| b.tokens.len() as u64).sum::<u64>();
        Ok(Some(StepRecord { loss: gradient.loss, status, lr, stats }))
    }

    /// The loss on held-out text (at most `eval.tokens` of it); None when no text is held out, or
    /// too little to predict a token of it.
    ///
    /// # Errors
    /// Those of data and model.
    pub fn validate(&self) -> Result<Option<Validation>> {
        let Some(config) = self.config.validation_config() else { return Ok(None) };
        let began = Instant::now();
        let mut loader = Loader::new(&config, &self.tokenizer)?;
        let (mut parts, mut bytes, mut seen) = (Vec::new(), 0, 0);
        while seen < self.config.eval.tokens.unwrap_or(u64::MAX) {
            let Some(batch) = loader.next_batch()? else { break };
            seen += batch.tokens.len() as u64;
            bytes += batch.target_bytes;
            parts.extend(losses(&self.model, &batch, self.config.train.segment_len)?);
        }
        let tokens: u64 = parts.iter().map(|(_, n)| n).sum();
        if tokens == 0 || bytes == 0 {
            tracing::warn!("the held-out text is too short: it has nothing to predict");
            return Ok(None);
        }
        let mut nats = 0.0;
        for (loss, n) in &parts {
            nats += loss.to_scalar()? * *n as f64;
        }
        Ok(Some(Validation {
            step: self.step,
            loss: nats / tokens as f64,
            bits_per_byte: nats / std::f64::consts::LN_2 / bytes as f64,
            tokens,
            bytes,
            seconds: began.elapsed().as_secs_f64(),
        }))
    }

    /// Writes a checkpoint of the current step into the run's folder and prunes older ones.
    ///
    /// # Errors
    /// Those of the file system; earlier checkpoints are intact then.
    pub fn save(&self, folder: &RunFolder) -> Result<Checkpoint> {
        folder.save(self.step, self.config.checkpoint.keep_latest, |dir| {
            self.model.save(dir)?;
            self.tokenizer.save(dir)?;
            let training = dir.join(TRAINING_DIR);
            save_optimizer(&training, &self.optimizer.state())?;
            let seed = self.config.train.seed;
            let state = TrainerState::new(self.step, self.tokens, self.seconds(), seed, self.data.state());
            state.save(&training)?;
            files_of_text(&training.join(CONFIG_FILE), &self.config.to_toml()?)
        })
    }
}
