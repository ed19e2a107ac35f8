//! Data: text, jsonl and parquet files to batches of token ids, streamed, mixed, shuffled, packed, and resumable at any batch.
//!
//! The way of a token: files ([`SourceConfig`]) are read in pieces (a document, or part of a very long one), pieces are tokenised
//! as they come, tokens are cut into segments, segments are shuffled in windows, sources are mixed by weight, and segments fill
//! batches of `seq_len * batch_size` tokens ([`Loader`], [`Batch`]), ahead of their use ([`Prefetch`]).
//!
//! Policy: memory does not depend on the size of the files. Every step is a function of the configuration and a position that is a
//! few numbers, so [`DataState`] is small and a resumed run gets exactly the batches it would have got. Nothing is skipped
//! silently except empty documents; wrong bytes and malformed records are errors that name the file and the place.
//!
//! Mixing is exact and not random: the next segment comes from the source that is furthest behind its share of the tokens.

mod config;
mod files;
mod jsonl;
mod lines;
mod loader;
mod parquet;
mod prefetch;
mod segments;
mod shards;
mod shuffle;
#[cfg(test)]
mod tests;
mod text;
mod texts;

pub use config::{DataConfig, Format, Packing, SourceConfig, TextUnit};
pub use files::FileStamp;
pub use loader::{Batch, DataState, IGNORE, Loader};
pub use prefetch::Prefetch;
pub use texts::{read_text, texts, train_tokenizer};
