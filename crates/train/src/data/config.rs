//! What to read and how to make batches of it: the `[data]` part of a run's configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How a source's files are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// Plain UTF-8 text (`.txt`, `.text`, `.md`).
    Text,
    /// One JSON object a line (`.jsonl`, `.ndjson`); the text is in one field.
    Jsonl,
    /// Parquet (`.parquet`); the text is in one top-level string column.
    Parquet,
}

impl Format {
    /// The format that a file name's extension stands for.
    pub fn of_extension(extension: &str) -> Option<Format> {
        match extension.to_ascii_lowercase().as_str() {
            "txt" | "text" | "md" => Some(Format::Text),
            "jsonl" | "ndjson" => Some(Format::Jsonl),
            "parquet" => Some(Format::Parquet),
            _ => None,
        }
    }
}

/// What is one document in a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TextUnit {
    /// The whole file. It is read in pieces, so it may be larger than memory.
    #[default]
    File,
    /// Each line.
    Line,
    /// Each run of lines without an empty line in it.
    Paragraph,
}

/// A set of files of one format, and its weight in the mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Files and folders (searched recursively, in the order of their names).
    pub paths: Vec<PathBuf>,
    /// Format of the files; unset: by their extension.
    #[serde(default)]
    pub format: Option<Format>,
    /// Text files: what is one document.
    #[serde(default)]
    pub unit: TextUnit,
    /// Field (jsonl) or column (parquet) that holds the text; unset: `text`, else `content`.
    #[serde(default)]
    pub field: Option<String>,
    /// Share of the mixture's tokens, relative to the other sources' weights; above 0.
    #[serde(default = "one")]
    pub weight: f64,
    /// The part of every file to read, as shares of its length: `[0.0, 0.9]` is the first nine tenths. Cuts fall on line starts
    /// (text, jsonl) or rows (parquet), so that neighbouring ranges never share a byte.
    #[serde(default = "whole")]
    pub range: [f64; 2],
}

fn one() -> f64 {
    1.0
}

fn whole() -> [f64; 2] {
    [0.0, 1.0]
}

impl SourceConfig {
    /// A source of `paths` with all defaults.
    pub fn new<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> SourceConfig {
        SourceConfig {
            paths: paths.into_iter().map(Into::into).collect(),
            format: None,
            unit: TextUnit::default(),
            field: None,
            weight: one(),
            range: whole(),
        }
    }

    /// Splits by position: the last `held_out` (a share in [0, 1]) of the range, and what comes before it, as (rest, held out).
    pub fn split(&self, held_out: f64) -> (SourceConfig, SourceConfig) {
        let [a, b] = self.range;
        let cut = b - (b - a) * held_out;
        (SourceConfig { range: [a, cut], ..self.clone() }, SourceConfig { range: [cut, b], ..self.clone() })
    }

    /// Checks the values; `key` is how the user writes this source. Errors are [`Error::Config`].
    pub fn validate(&self, key: &str) -> Result<()> {
        if self.paths.is_empty() {
            return Err(Error::config(format!("{key}.paths"), "expected at least one file or folder"));
        }
        if !(self.weight.is_finite() && self.weight > 0.0) {
            return Err(Error::config(
                format!("{key}.weight"),
                format!("{} is not a number above 0", self.weight),
            ));
        }
        let [a, b] = self.range;
        if !(0.0 <= a && a < b && b <= 1.0) {
            let problem = format!("[{a}, {b}] is not a range inside [0, 1]");
            return Err(Error::config(format!("{key}.range"), problem));
        }
        if self.unit != TextUnit::File && self.format.is_some_and(|f| f != Format::Text) {
            return Err(Error::config(format!("{key}.unit"), "only text files have a unit"));
        }
        if self.field.is_some() && self.format == Some(Format::Text) {
            return Err(Error::config(format!("{key}.field"), "text files have no fields"));
        }
        Ok(())
    }
}

/// How documents become rows of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Packing {
    /// Var-len: documents lie one after the other with boundaries between them, cut every `context_len` tokens; no label crosses a
    /// boundary.
    #[default]
    Documents,
    /// Blocks of `seq_len` tokens cut from the endless stream of all documents, without boundaries.
    Contiguous,
}

/// Everything that decides the batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What is read, mixed by weight.
    pub sources: Vec<SourceConfig>,
    /// Tokens of one row; a batch holds `seq_len * batch_size`.
    #[serde(default = "default_seq_len")]
    pub seq_len: usize,
    /// Rows of one batch.
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    /// Longest stretch of one document without a boundary (packing `documents` only); unset: `seq_len`.
    #[serde(default)]
    pub context_len: Option<usize>,
    /// How documents become rows.
    #[serde(default)]
    pub packing: Packing,
    /// Segments (of `context_len` tokens at most, or blocks of `seq_len`) that are shuffled together, and whether files are read in
    /// a random order: 0 or 1 keeps the order of the files.
    #[serde(default = "default_shuffle")]
    pub shuffle: usize,
    /// Seed of the shuffling.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Begin again when a source is used up. Without it the loader ends when all sources are (the last batch may be smaller).
    #[serde(default = "yes")]
    pub repeat: bool,
    /// Put the tokenizer's BOS before each document; unset: if `tokenizer.json` asks for it.
    #[serde(default)]
    pub bos: Option<bool>,
    /// Put the tokenizer's EOS after each document; unset: if the tokenizer has one.
    #[serde(default)]
    pub eos: Option<bool>,
}

fn default_seq_len() -> usize {
    2048
}

fn default_batch_size() -> usize {
    8
}

fn default_shuffle() -> usize {
    1024
}

fn default_seed() -> u64 {
    42
}

fn yes() -> bool {
    true
}

impl DataConfig {
    /// A configuration of `sources` with all defaults.
    pub fn new(sources: Vec<SourceConfig>) -> DataConfig {
        DataConfig {
            sources,
            seq_len: default_seq_len(),
            batch_size: default_batch_size(),
            context_len: None,
            packing: Packing::default(),
            shuffle: default_shuffle(),
            seed: default_seed(),
            repeat: yes(),
            bos: None,
            eos: None,
        }
    }

    /// The same batches' shape over other sources, read once and in order: for validation.
    pub fn for_validation(&self, sources: Vec<SourceConfig>) -> DataConfig {
        DataConfig { sources, shuffle: 0, repeat: false, ..self.clone() }
    }

    /// Tokens of the longest segment.
    pub fn segment_len(&self) -> usize {
        match self.packing {
            Packing::Documents => self.context_len.unwrap_or(self.seq_len),
            Packing::Contiguous => self.seq_len,
        }
    }

    /// Checks the values. Errors are [`Error::Config`] and name the key.
    pub fn validate(&self) -> Result<()> {
        if self.sources.is_empty() {
            return Err(Error::config("data.sources", "expected at least one source"));
        }
        for (i, source) in self.sources.iter().enumerate() {
            source.validate(&format!("data.sources[{i}]"))?;
        }
        for (key, value) in [
            ("data.seq_len", Some(self.seq_len)),
            ("data.batch_size", Some(self.batch_size)),
            ("data.context_len", self.context_len),
        ] {
            if value == Some(0) {
                return Err(Error::config(key, "must be at least 1"));
            }
        }
        if self.packing == Packing::Contiguous && self.context_len.is_some_and(|c| c != self.seq_len) {
            let why = "contiguous packing has no boundaries: leave it unset, or use packing = \"documents\"";
            return Err(Error::config("data.context_len", why));
        }
        if self.seq_len.checked_mul(self.batch_size).is_none_or(|n| n > i32::MAX as usize) {
            let why = format!("{} x {} tokens in a batch are too many", self.seq_len, self.batch_size);
            return Err(Error::config("data.batch_size", why));
        }
        Ok(())
    }
}
