//! Linear-attention language models.

mod error;
pub mod files;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, ErrorKind, Result};
