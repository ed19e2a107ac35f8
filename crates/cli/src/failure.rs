//! What an error looks like and which exit code it has.

use std::{fmt, process::ExitCode};

/// A failure that the command line itself found.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    /// A wrong request: exit code 2.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: None, code: 2 }
    }

    /// Something that went wrong while running: exit code 1.
    pub fn runtime(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: None, code: 1 }
    }

    /// The same with advice.
    pub fn hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A check that did not pass; what failed has been printed as the result. Exit code 1 without a further message.
#[derive(Debug)]
pub struct NotPassed;

impl fmt::Display for NotPassed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a check did not pass")
    }
}

impl std::error::Error for NotPassed {}

/// Prints the error, if there is one, and gives its exit code.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if is_closed_pipe(&error) {
        // `flashlin ops | head -1`: the reader has what it wanted.
        return ExitCode::SUCCESS;
    }
    if !error.is::<NotPassed>() {
        let mut text = format!("error: {}\n", message(&error));
        if let Some(hint) = hint(&error) {
            text.push_str(&format!("hint: {hint}\n"));
        }
        // stderr may be closed too, and then there is nobody left to tell.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }
    ExitCode::from(code(&error))
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| {
        e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// The chain of causes as one text; a cause that its parent quotes already is not repeated.
fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        if text.is_empty() {
            text = part;
        } else if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
    }
    text
}

fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.hint.clone();
    }
    None
}

/// 2 where the request was wrong, else 1.
fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.code;
        }
        if let Some(e) = cause.downcast_ref::<flashlin::Error>() {
            return of_kind(e.kind());
        }
        if let Some(e) = cause.downcast_ref::<flashlin_tensor::Error>() {
            return of_kind(e.kind());
        }
        if let Some(e) = cause.downcast_ref::<flashlin_cuda::Error>() {
            return of_cuda(e.kind());
        }
        if let Some(e) = cause.downcast_ref::<flashlin_kernels::Error>() {
            return of_cuda(e.kind());
        }
        if let Some(e) = cause.downcast_ref::<flashlin::tokenizer::TokenizerError>() {
            return if e.is_usage() { 2 } else { 1 };
        }
        if let Some(e) = cause.downcast_ref::<flashlin_eval::Error>() {
            return if e.is_usage() { 2 } else { 1 };
        }
        if let Some(e) = cause.downcast_ref::<flashlin_train::Error>() {
            return if e.kind() == flashlin_train::ErrorKind::Usage { 2 } else { 1 };
        }
    }
    1
}

fn of_cuda(kind: flashlin_cuda::ErrorKind) -> u8 {
    match kind {
        flashlin_cuda::ErrorKind::Usage | flashlin_cuda::ErrorKind::Unsupported => 2,
        _ => 1,
    }
}

fn of_kind(kind: flashlin::ErrorKind) -> u8 {
    match kind {
        flashlin::ErrorKind::Usage | flashlin::ErrorKind::Unsupported => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_decide_codes() {
        assert_eq!(code(&Failure::usage("x").into()), 2);
        assert_eq!(code(&Failure::runtime("x").into()), 1);
        assert_eq!(code(&anyhow::anyhow!("x")), 1);
        assert_eq!(
            code(&anyhow::Error::from(flashlin_train::Error::config("a.b", "is wrong")).context("more")),
            2
        );
    }

    #[test]
    fn quoted_causes_are_not_repeated() {
        let io = std::io::Error::from(std::io::ErrorKind::NotFound);
        let text = io.to_string();
        let e = anyhow::Error::from(io).context(format!("x.json: {text}")).context("loading");
        assert_eq!(message(&e), format!("loading: x.json: {text}"));
    }
}
