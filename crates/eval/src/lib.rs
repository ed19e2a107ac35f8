//! Evaluation: the n-gram baseline that a model's bits per byte are compared with.

pub mod ngram;
