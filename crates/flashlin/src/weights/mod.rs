//! Weights on disk: safetensors files, one or sharded with an index, read by memory map and written atomically.
//!
//! Policy: a file is checked whole before anything in it is used (sizes, offsets, duplicate keys, dtypes), in the manner of the
//! format's own rules and a little beyond, because a checkpoint is untrusted input: whatever is wrong is an error that names file
//! and key, never a panic and never an allocation that the file's own size does not justify. Loading into a model is strict: every
//! parameter comes from exactly one key and every key is used. Tensors are named as in Python, and what is saved here opens in
//! `transformers`.

mod header;
mod load;
mod map;
mod save;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

pub use header::shape_text;
pub use load::{LoadOptions, check_finite, load_into};
pub use map::WeightMap;
pub use save::{DEFAULT_SHARD_BYTES, save, write_file};

/// The weights of a checkpoint that is not sharded.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The file that names the shards of one that is.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
