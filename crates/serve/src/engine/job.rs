//! What the engine is asked to do, and what it tells back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use flashlin::sample::SamplingParams;
use tokio::sync::mpsc::UnboundedSender;

/// One prompt with one or several continuations.
#[derive(Debug)]
pub struct Job {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Continuations, each in a slot of its own: choices `first..first + n` of the request.
    pub n: usize,
    /// Number of the first choice; it is also its random stream.
    pub first: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Changes of the logits before that.
    pub adjust: Adjust,
    /// Tokens that each continuation may have; 0 only reads the prompt.
    pub max_tokens: usize,
    /// Strings that end a continuation.
    pub stop: Vec<String>,
    /// Tokens that end one.
    pub eos: Vec<u32>,
    /// Report log-probabilities of chosen tokens, and of this many of the likeliest.
    pub logprobs: Option<usize>,
    /// Report those of the prompt too.
    pub prompt_logprobs: bool,
    /// When to give up.
    pub deadline: Instant,
    /// When it was submitted.
    pub since: Instant,
    /// Where events go. Unbounded, so that a slow reader stops nobody: what it can hold is bounded by `max_tokens`.
    pub events: UnboundedSender<Event>,
    /// Room in the queue, given back when the job ends.
    pub ticket: Ticket,
}

/// OpenAI's changes of logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adjust {
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
    /// Subtracted for each time that a token was generated.
    pub frequency: f64,
    /// Subtracted once from tokens that were generated.
    pub presence: f64,
}

impl Adjust {
    /// True where logits stay as they are.
    pub fn is_nothing(&self) -> bool {
        self.bias.is_empty() && self.frequency == 0.0 && self.presence == 0.0
    }

    /// True where it matters which tokens were generated.
    pub fn counts(&self) -> bool {
        self.frequency != 0.0 || self.presence != 0.0
    }
}

/// What happened to a choice.
#[derive(Debug)]
pub enum Event {
    /// The scores of a prompt's tokens, the first of which has none; for all choices of the job that begins at `first`.
    Prompt {
        /// Number of the job's first choice.
        first: usize,
        /// One entry a token.
        scores: Vec<Option<Score>>,
    },
    /// A new token.
    Token {
        /// Number of the choice.
        choice: usize,
        /// The token.
        id: u32,
        /// Text that is now certain; may be empty.
        text: String,
        /// Its log-probability, where asked for.
        score: Option<Score>,
    },
    /// The choice has ended.
    Done {
        /// Number of the choice.
        choice: usize,
        /// Why.
        finish: Finish,
    },
    /// The request failed; nothing follows.
    Failed(Failure),
}

/// Log-probabilities at one place, by the model's own logits (before temperature and filters).
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The token that stands there.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f64,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f64)>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
}

impl Finish {
    /// As OpenAI names it.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It took longer than it may.
    Timeout,
    /// The model or the machine failed.
    Internal(String),
}

/// Room for some sequences, in work and waiting together.
#[derive(Debug)]
pub struct Ticket {
    count: usize,
    used: Arc<AtomicUsize>,
}

impl Ticket {
    /// Takes room for `count` sequences of at most `limit`; None where there is not that much.
    pub fn take(used: &Arc<AtomicUsize>, count: usize, limit: usize) -> Option<Ticket> {
        let room = |n: usize| n.checked_add(count).filter(|n| *n <= limit);
        used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, room).ok()?;
        Some(Ticket { count, used: used.clone() })
    }

    /// Splits off room for `count`.
    pub fn split(&mut self, count: usize) -> Ticket {
        let count = count.min(self.count);
        self.count -= count;
        Ticket { count, used: self.used.clone() }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.used.fetch_sub(self.count, Ordering::SeqCst);
    }
}
