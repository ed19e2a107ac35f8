//! Linear-attention language models.

pub mod tokenizer;
