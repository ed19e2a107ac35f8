//! The crate's one error type.
//!
//! Policy: an error names the file and line, the option or the item it is about, and says what was expected. [`Error::is_usage`]
//! decides exit codes.

use std::path::{Path, PathBuf};

use flashlin::{ErrorKind, tokenizer::TokenizerError};

use crate::ngram::NgramError;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong with an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model refused.
    #[error(transparent)]
    Model(#[from] flashlin::Error),
    /// An array operation refused.
    #[error(transparent)]
    Tensor(#[from] flashlin_tensor::Error),
    /// The tokenizer refused, or does not fit the model.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The n-gram baseline refused.
    #[error(transparent)]
    Ngram(#[from] NgramError),
    /// An operation of the file system failed.
    #[error("{}: {doing} failed: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a noun.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A line of a data file that cannot be used.
    #[error("{}: line {line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A file or folder that is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// An option with a value that cannot be used.
    #[error("{option}: {problem}")]
    Option {
        /// The option as the command line writes it, without dashes.
        option: &'static str,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A BOS was asked for that the tokenizer lacks.
    #[error("the tokenizer has no token that begins a text")]
    NoBos,
    /// Nothing can stand before the first token.
    #[error(
        "the tokenizer has no token that begins or ends a text (BOS, EOS), and one is needed where nothing stands before a text"
    )]
    NoPrefix,
    /// Nothing was predicted.
    #[error(
        "the text has no token to predict: expected a document of at least two tokens (or of one behind a BOS)"
    )]
    Empty,
    /// The model computed NaN or infinity.
    #[error("the loss is not finite in {what}: the weights may be damaged")]
    NotFinite {
        /// Where.
        what: String,
    },
}

impl Error {
    /// True when the request was wrong, false when carrying it out failed.
    pub fn is_usage(&self) -> bool {
        let kind = match self {
            Error::Model(e) => e.kind(),
            Error::Tensor(e) => e.kind(),
            Error::Tokenizer(e) => return e.is_usage(),
            Error::Io { source, .. } => return source.kind() == std::io::ErrorKind::NotFound,
            Error::NotFinite { .. } => return false,
            _ => return true,
        };
        matches!(kind, ErrorKind::Usage | ErrorKind::Unsupported)
    }

    pub(crate) fn io<'a>(path: &'a Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io { path: path.to_path_buf(), doing, source }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Error {
        Error::File { path: path.to_path_buf(), problem: problem.into() }
    }

    /// An option that cannot be used.
    pub fn option(option: &'static str, problem: impl Into<String>) -> Error {
        Error::Option { option, problem: problem.into() }
    }
}
