//! Which form of a recurrence runs; the one place that decides when the caller does not.

use std::{fmt, str::FromStr};

use flashlin_tensor::{Error, Result};

/// Form in which a recurrence is evaluated. The results agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// [`Mode::Recurrent`] up to [`Mode::RECURRENT_UP_TO`] tokens, else [`Mode::Chunk`].
    #[default]
    Auto,
    /// Blocks of tokens as matrix products: training and prefill.
    Chunk,
    /// Token by token: decoding and short inputs.
    Recurrent,
}

impl Mode {
    /// Longest input for which [`Mode::Auto`] goes token by token.
    pub const RECURRENT_UP_TO: usize = 64;

    /// The form for sequences of at most `longest` tokens: never `Auto`.
    pub fn resolve(self, longest: usize) -> Mode {
        match self {
            Mode::Auto if longest <= Self::RECURRENT_UP_TO => Mode::Recurrent,
            Mode::Auto => Mode::Chunk,
            chosen => chosen,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Auto => "auto",
            Mode::Chunk => "chunk",
            Mode::Recurrent => "recurrent",
        })
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Mode::Auto),
            "chunk" => Ok(Mode::Chunk),
            "recurrent" => Ok(Mode::Recurrent),
            _ => Err(Error::invalid("mode", "mode", format!("is `{s}`, expected auto, chunk or recurrent"))),
        }
    }
}
