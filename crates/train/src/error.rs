//! The crate's one error type.
//!
//! Policy: an error names the file (or the configuration key) it is about and says what was expected; [`Error::kind`] decides the
//! exit code, so that callers never match on texts.

use std::path::{Path, PathBuf};

pub use flashlin::ErrorKind;

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in training and its data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation of the file system failed.
    #[error("{}: {doing} failed: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a noun: "reading", "creating the folder".
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A configuration value that cannot be used.
    #[error("{key}: {problem}")]
    Config {
        /// The key as the user writes it, e.g. `data.seq_len`.
        key: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A file that is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// Bytes that are not UTF-8 in a text source.
    #[error("{}: byte {offset} begins an invalid UTF-8 sequence (the file must be UTF-8 text)", path.display())]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first wrong byte from the start of the file.
        offset: u64,
    },
    /// A record of a line-based file that cannot be used.
    #[error("{}:{line}: {problem}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A saved position that does not fit the data or the configuration any more.
    #[error("cannot continue from the saved data position: {0}")]
    State(String),
    /// Another run holds the output folder.
    #[error("{}: another run is using this output folder ({holder}); give each run a folder of its own", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// What the other run wrote about itself.
        holder: String,
    },
    /// Too many steps in a row had a loss or gradient norm that was not finite.
    #[error(
        "step {step}: the loss or gradient norm was not finite in {skipped} steps in a row; lower schedule.lr or look at the data"
    )]
    Diverged {
        /// The step that was reached.
        step: u64,
        /// Steps skipped one after the other.
        skipped: u64,
    },
    /// An array operation refused.
    #[error(transparent)]
    Tensor(#[from] flashlin_tensor::Error),
    /// The model, its files or its configuration refused.
    #[error(transparent)]
    Model(#[from] flashlin::Error),
    /// The tokenizer refused.
    #[error(transparent)]
    Tokenizer(#[from] flashlin::tokenizer::TokenizerError),
}

impl Error {
    /// Whether the user's request or its execution was at fault.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Config { .. } => ErrorKind::Usage,
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::Usage,
            Error::Tokenizer(e) if e.is_usage() => ErrorKind::Usage,
            Error::Locked { .. } => ErrorKind::Usage,
            Error::Model(e) if e.kind() != flashlin::ErrorKind::Runtime => ErrorKind::Usage,
            Error::Tensor(e) if e.kind() != flashlin::ErrorKind::Runtime => ErrorKind::Usage,
            _ => ErrorKind::Runtime,
        }
    }

    /// Makes a closure for `map_err` that adds path and action to an I/O error.
    pub fn io<'a>(path: &'a Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io { path: path.to_path_buf(), doing, source }
    }

    /// A configuration error.
    pub fn config(key: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Config { key: key.into(), problem: problem.into() }
    }

    /// An error about a file's content.
    pub fn file(path: &Path, problem: impl Into<String>) -> Error {
        Error::File { path: path.to_path_buf(), problem: problem.into() }
    }
}
