//! Linear-attention language models.

mod error;
pub mod files;
pub mod tokenizer;

pub use error::{Error, ErrorKind, Result};
