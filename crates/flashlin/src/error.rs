//! The crate's one error type.
//!
//! Policy: an error names the file, key or argument it is about and says what was expected; [`Error::kind`] decides exit codes
//! and HTTP status, so that callers never match on texts.

use std::path::{Path, PathBuf};

pub use flashlin_tensor::ErrorKind;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong with models, their files and generation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An array or an operator refused.
    #[error(transparent)]
    Tensor(#[from] flashlin_tensor::Error),
    /// The tokenizer refused.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
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
    /// A file that is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A key of a model's configuration that cannot be used.
    #[error("{}`{key}`: {problem}", file.as_ref().map(|f| format!("{}: ", f.display())).unwrap_or_default())]
    Config {
        /// The file it came from, if it came from one ([`Error::in_file`]).
        file: Option<PathBuf>,
        /// The key as written in `config.json`.
        key: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// Weights that do not fit the model.
    #[error("{}: the weights do not fit the model: {problem}", path.display())]
    Weights {
        /// The checkpoint folder or file.
        path: PathBuf,
        /// The keys (several, if several are wrong) and what was expected of them.
        problem: String,
    },
    /// An argument with a value that cannot be used.
    #[error("{argument}: {problem}")]
    Argument {
        /// The argument or option.
        argument: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// Sound, but not available.
    #[error("{what} is not supported; supported: {supported}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What is available.
        supported: String,
    },
    /// A model that could not be found or downloaded.
    #[error("{what}: {problem}")]
    Hub {
        /// The hub id or path as it was given.
        what: String,
        /// What was tried and what came back.
        problem: String,
        /// Whether the request was wrong or the network or hub failed.
        kind: ErrorKind,
    },
    /// A state that does not fit the model or the input.
    #[error("state: {problem}")]
    State {
        /// What is wrong and what was expected.
        problem: String,
    },
    /// Numbers that are not finite where they must be.
    #[error("{what} is not finite: {problem}")]
    NotFinite {
        /// What holds the number: a weight's key, "the logits of row 0".
        what: String,
        /// Where and what to do.
        problem: String,
    },
}

impl Error {
    /// Coarse class, for exit codes and HTTP status.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Tensor(e) => e.kind(),
            Error::Tokenizer(e) if e.is_usage() => ErrorKind::Usage,
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::Usage,
            Error::Config { file: None, .. } | Error::Argument { .. } | Error::State { .. } => {
                ErrorKind::Usage
            }
            Error::Unsupported { .. } => ErrorKind::Unsupported,
            Error::Hub { kind, .. } => *kind,
            _ => ErrorKind::Runtime,
        }
    }

    /// Makes a closure for `map_err` that adds path and action to an I/O error.
    pub fn io<'a>(path: &'a Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io { path: path.to_path_buf(), doing, source }
    }

    /// An error about a file's content.
    pub fn file(path: &Path, problem: impl Into<String>) -> Error {
        Error::File { path: path.to_path_buf(), problem: problem.into() }
    }

    /// A configuration error.
    pub fn config(key: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Config { file: None, key: key.into(), problem: problem.into() }
    }

    /// An error about an argument's value.
    pub fn argument(argument: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Argument { argument: argument.into(), problem: problem.into() }
    }

    /// An error for a combination that is not available.
    pub fn unsupported(what: impl Into<String>, supported: impl Into<String>) -> Error {
        Error::Unsupported { what: what.into(), supported: supported.into() }
    }

    /// An error about a state.
    pub fn state(problem: impl Into<String>) -> Error {
        Error::State { problem: problem.into() }
    }

    /// For closures that may only fail as tensors do: keeps a tensor error, wraps others by their message.
    pub(crate) fn into_tensor(self) -> flashlin_tensor::Error {
        match self {
            Error::Tensor(e) => e,
            other => flashlin_tensor::Error::invalid("layer", "input", other.to_string()),
        }
    }

    /// Adds the file that a configuration error came from; other errors stay as they are.
    pub fn in_file(self, path: &Path) -> Error {
        match self {
            Error::Config { file: None, key, problem } => {
                Error::Config { file: Some(path.to_path_buf()), key, problem }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_file_and_kinds_follow_the_cause() {
        let p = Path::new("/x/config.json");
        let e = Error::config("hidden_size", "is -1, expected a positive integer");
        assert_eq!(e.kind(), ErrorKind::Usage);
        let e = e.in_file(p);
        assert_eq!(e.to_string(), "/x/config.json: `hidden_size`: is -1, expected a positive integer");
        assert_eq!(e.kind(), ErrorKind::Runtime);
        let missing = Error::io(p, "reading")(std::io::ErrorKind::NotFound.into());
        assert_eq!(missing.kind(), ErrorKind::Usage);
        assert!(missing.to_string().starts_with("/x/config.json: reading failed"));
        let full = Error::io(p, "writing")(std::io::ErrorKind::StorageFull.into());
        assert_eq!(full.kind(), ErrorKind::Runtime);
        let inner = flashlin_tensor::Error::unsupported("conv", "device cuda:0", "cpu");
        assert_eq!(Error::from(inner).kind(), ErrorKind::Unsupported);
    }
}
