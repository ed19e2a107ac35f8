//! Evaluation: perplexity, multiple choice, long-context tasks and synthetic recall of a model, and the n-gram baseline that its
//! bits per byte are compared with.
//!
//! Policy: an evaluation is a function of model, data and options: no number depends on the batch, on who computed which item, or on
//! how often the run was killed ([`store`]). Where lm-evaluation-harness measures the same thing, the numbers are its numbers
//! ([`text`], [`ppl::Cut::Rolling`], [`choice`], [`ruler`]).

pub mod choice;
mod error;
pub mod fingerprint;
pub mod items;
pub mod ngram;
pub mod ppl;
pub mod recall;
pub mod ruler;
pub mod score;
pub mod store;
#[cfg(test)]
mod testing;
pub mod text;

pub use error::{Error, Result};
