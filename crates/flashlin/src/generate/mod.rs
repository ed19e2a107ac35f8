//! Text from a model: prefill, decode, stop, stream.
//!
//! Policy: a batch is rows that know nothing of each other: prompts of different lengths are packed, never padded, each row has its
//! own random stream, and each ends for its own reason. What a run leaves behind is a [`Session`], a value: it forks, saves, loads
//! and continues as if it had never been interrupted. Output is streamed as complete characters, and never a part of a stop string.

mod config;
mod recorded;
mod run;
mod session;
mod state_file;
mod text;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::time::Duration;

use flashlin_ops::Mode;

pub use config::{DEFAULT_NEW_TOKENS, GenerationConfig};
pub use recorded::RecordedStep;
pub use run::{Generator, generate};
pub use session::Session;
pub use state_file::STATE_FILE_VERSION;
pub use text::RowText;

use crate::{Error, Result, sample::SamplingParams, tokenizer::Tokenizer};

/// How a run generates.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens that each row may add; 0 only consumes the prompts.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Tokens that end a row (they belong to its ids, not to its text).
    pub eos: Vec<u32>,
    /// Strings that end a row; they are cut from its text.
    pub stop: Vec<String>,
    /// Form of the recurrences in prefill.
    pub mode: Mode,
    /// Prompt tokens of all rows that one prefill pass takes: bounds the memory of long prompts, changes no result.
    pub prefill_tokens: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: DEFAULT_NEW_TOKENS,
            sampling: SamplingParams::default(),
            eos: Vec::new(),
            stop: Vec::new(),
            mode: Mode::Auto,
            prefill_tokens: 8192,
        }
    }
}

/// Why a row ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// It reached `max_new_tokens`.
    Length,
    /// It produced this end token.
    Eos(u32),
    /// Its text reached this stop string.
    Stop(String),
}

impl Finish {
    /// `length`, `eos` or `stop`.
    pub fn name(&self) -> &'static str {
        match self {
            Finish::Length => "length",
            Finish::Eos(_) => "eos",
            Finish::Stop(_) => "stop",
        }
    }
}

/// One new token of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The row.
    pub row: usize,
    /// The token; None where a row ended without one (`max_new_tokens` 0).
    pub id: Option<u32>,
    /// Text that is now certain: often a word, sometimes nothing, at the end of a row what was held back. Empty without a
    /// tokenizer.
    pub text: String,
    /// Set on a row's last event.
    pub finish: Option<Finish>,
}

/// What a row became.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Tokens before the run: the prompt, and earlier runs of the session.
    pub prompt_tokens: usize,
    /// The new tokens, an end token included.
    pub ids: Vec<u32>,
    /// Their text without end tokens and stop strings; empty without a tokenizer.
    pub text: String,
    /// Why it ended; None if the run was abandoned before.
    pub finish: Option<Finish>,
}

/// What a run took. Time spent outside the generator (printing) is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Prompt tokens consumed, all rows together.
    pub prefill_tokens: usize,
    /// Time to consume them, until the first logits.
    pub prefill: Duration,
    /// New tokens, all rows together.
    pub new_tokens: usize,
    /// Time for choosing tokens and computing the logits after the first.
    pub decode: Duration,
}

/// Ids of a prompt. An empty one starts from the BOS token (the tokenizer's, else `config`'s).
///
/// # Errors
/// An empty prompt where there is no BOS token; a text that the tokenizer refuses.
pub fn encode_prompt(tokenizer: &Tokenizer, text: &str, config: &GenerationConfig) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(text, true)?;
    if !ids.is_empty() {
        return Ok(ids);
    }
    match tokenizer.bos().or(config.bos) {
        Some(bos) => Ok(vec![bos]),
        None => Err(Error::argument(
            "prompt",
            "is empty, and neither tokenizer nor config names a BOS token to start from",
        )),
    }
}
