//! Evaluation: perplexity of a model, and the n-gram baseline that its bits per byte are compared with.

pub mod ngram;
pub mod ppl;
