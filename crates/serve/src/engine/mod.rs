//! One thread owns the model: it admits requests, reads their prompts piece by piece, and steps all of them together.
//!
//! Policy: everything that a request can use up is bounded when it is accepted: a slot for each continuation, a ticket of the queue, tokens of the
//! context. Requests join and leave between steps. Each round reads at most one chunk of prompts (of the waiting ones in turn, so that a long prompt
//! does not hold up short ones), then makes one call of the model for all slots. Nothing a request gets depends on its neighbours.

mod batch;
mod job;
mod prefix;
mod round;
mod row;
mod scores;

use std::{
    sync::{Arc, atomic::AtomicUsize, mpsc},
    thread::JoinHandle,
};

use flashlin::{Error, Model, Result, tokenizer::Tokenizer};
pub use job::{Adjust, Event, Failure, Finish, Job, Score, Ticket};

use crate::metrics::Metrics;

/// What the engine may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences that are generated at the same time; each has a state slot.
    pub slots: usize,
    /// Sequences that may wait beyond these.
    pub queue: usize,
    /// Tokens of a prompt that one call reads.
    pub chunk: usize,
    /// Bytes of stored states of prompts' beginnings; 0 stores none.
    pub prefix_bytes: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { slots: 16, queue: 256, chunk: 128, prefix_bytes: 256 << 20 }
    }
}

/// A handle on the engine's thread.
#[derive(Clone, Debug)]
pub struct Engine {
    jobs: mpsc::Sender<Job>,
    used: Arc<AtomicUsize>,
    options: EngineOptions,
    /// Bytes of the slots' states when nothing was read.
    pub state_bytes: usize,
}

/// Ends when the last [`Engine`] is gone and its work is done.
pub type EngineThread = JoinHandle<()>;

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// Options that cannot be used, a tokenizer with more ids than the model, memory.
    pub fn start(
        model: Model,
        tokenizer: Tokenizer,
        options: EngineOptions,
        metrics: Arc<Metrics>,
    ) -> Result<(Engine, EngineThread)> {
        tokenizer.check_vocab(model.config().base().vocab_size)?;
        if options.slots == 0 || options.chunk == 0 {
            return Err(Error::argument("slots", "and chunk must be at least 1"));
        }
        let batch = batch::Batch::new(model, options.slots)?;
        let state_bytes = batch.bytes();
        let (jobs, inbox) = mpsc::channel();
        let rounds = round::Rounds::new(batch, tokenizer, options.clone(), metrics, inbox);
        let thread = std::thread::Builder::new().name("engine".into());
        let thread = thread
            .spawn(move || rounds.run())
            .map_err(|e| Error::state(format!("cannot start the engine's thread: {e}")))?;
        Ok((Engine { jobs, used: Arc::new(AtomicUsize::new(0)), options, state_bytes }, thread))
    }

    /// Room for `count` sequences; None where the queue is full.
    pub fn ticket(&self, count: usize) -> Option<Ticket> {
        Ticket::take(&self.used, count, self.most())
    }

    /// Sequences that fit at all, working and waiting.
    pub fn most(&self) -> usize {
        self.options.slots + self.options.queue
    }

    /// What it was started with.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Hands a job over; false when the engine has stopped.
    pub fn submit(&self, job: Job) -> bool {
        self.jobs.send(job).is_ok()
    }
}
