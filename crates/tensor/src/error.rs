//! The one error type of this crate (and of the operators built on it): every variant says what came and what
//! was expected.

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Coarse class of an error, for exit codes and HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something wrong (shape, dtype, option): fix the call.
    Usage,
    /// The request is sound but not available on this device or build.
    Unsupported,
    /// The environment failed (memory, files).
    Runtime,
}

/// What can go wrong with arrays and operators.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has the wrong shape.
    #[error("{op}: argument `{arg}` has shape {got:?}, expected {expected}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// Name of the argument.
        arg: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// What would have been accepted.
        expected: String,
    },
    /// An argument has the wrong element type.
    #[error("{op}: argument `{arg}` has dtype {got}, expected {expected}")]
    DType {
        /// The operation that refused.
        op: &'static str,
        /// Name of the argument.
        arg: &'static str,
        /// Its dtype.
        got: crate::DType,
        /// What would have been accepted.
        expected: String,
    },
    /// An argument has a wrong value.
    #[error("{op}: argument `{arg}` {why}")]
    Invalid {
        /// The operation that refused.
        op: &'static str,
        /// Name of the argument.
        arg: &'static str,
        /// What is wrong, and what is expected.
        why: String,
    },
    /// The combination is not available.
    #[error("{op} does not support {what}; supported: {supported}")]
    Unsupported {
        /// The operation that refused.
        op: &'static str,
        /// What was asked for.
        what: String,
        /// What is available.
        supported: String,
    },
    /// An operation without a backward met an input that wants a gradient.
    #[error("{op} has no backward, but input {input} is tracked; detach it or run under no_grad")]
    NoBackward {
        /// The operation.
        op: &'static str,
        /// Index of the tracked input.
        input: usize,
    },
    /// The graph was already used by a backward pass, which frees it.
    #[error("backward ran twice through `{op}`: the first pass freed what it had saved; run forward again")]
    GraphFreed {
        /// The operation met twice.
        op: &'static str,
    },
    /// Memory could not be allocated.
    #[error("out of memory on {device}: {bytes} bytes were asked for")]
    OutOfMemory {
        /// Where.
        device: crate::Device,
        /// How much.
        bytes: usize,
    },
    /// Tensors live on different devices.
    #[error("{op}: tensors on {a} and {b} were mixed; move one of them first")]
    DeviceMismatch {
        /// The operation that refused.
        op: &'static str,
        /// One device.
        a: crate::Device,
        /// The other.
        b: crate::Device,
    },
    /// The GPU, its driver or its libraries refused.
    #[error(transparent)]
    Cuda(flashlin_cuda::Error),
    /// A compiled kernel is missing, corrupt or failed its check.
    #[error(transparent)]
    Kernel(flashlin_kernels::Error),
    /// Storage is shared, so it cannot be written in place.
    #[error("{op}: the tensor's storage is shared; writing in place needs a sole owner (copy it first)")]
    Shared {
        /// The operation that refused.
        op: &'static str,
    },
}

fn cuda_kind(e: &flashlin_cuda::Error) -> ErrorKind {
    match e.kind() {
        flashlin_cuda::ErrorKind::Usage => ErrorKind::Usage,
        flashlin_cuda::ErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Runtime,
    }
}

impl Error {
    /// Coarse class, for exit codes and HTTP status.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Unsupported { .. } | Error::NoBackward { .. } => ErrorKind::Unsupported,
            Error::OutOfMemory { .. } => ErrorKind::Runtime,
            Error::Cuda(e) => cuda_kind(e),
            Error::Kernel(flashlin_kernels::Error::Cuda(e)) => cuda_kind(e),
            Error::Kernel(_) => ErrorKind::Unsupported,
            _ => ErrorKind::Usage,
        }
    }

    /// A shape error.
    pub fn shape(op: &'static str, arg: &'static str, got: &[usize], expected: impl Into<String>) -> Self {
        Error::Shape { op, arg, got: got.to_vec(), expected: expected.into() }
    }

    /// A value error.
    pub fn invalid(op: &'static str, arg: &'static str, why: impl Into<String>) -> Self {
        Error::Invalid { op, arg, why: why.into() }
    }

    /// A dtype error.
    pub fn dtype(
        op: &'static str,
        arg: &'static str,
        got: crate::DType,
        expected: impl Into<String>,
    ) -> Self {
        Error::DType { op, arg, got, expected: expected.into() }
    }

    /// An error for a combination that is not available.
    pub fn unsupported(op: &'static str, what: impl Into<String>, supported: impl Into<String>) -> Self {
        Error::Unsupported { op, what: what.into(), supported: supported.into() }
    }
}
