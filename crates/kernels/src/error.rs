//! The one error type of this crate.

use flashlin_cuda::ErrorKind;

use crate::Arch;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with bundles, look-ups, plans and launches.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The GPU's generation is not compiled for.
    #[error(
        "no kernels are compiled for compute capability {major}.{minor}; compiled for: {}",
        names(&Arch::ALL)
    )]
    NoArch {
        /// Major compute capability.
        major: u32,
        /// Minor compute capability.
        minor: u32,
    },
    /// An architecture's name is unknown.
    #[error("`{0}` is no architecture; there are: {names}", names = names(&Arch::ALL))]
    ArchName(String),
    /// This build holds no bundle for the architecture.
    #[error("this build holds no kernels for {arch}; it holds: {there}")]
    NoBundle {
        /// The architecture asked for.
        arch: Arch,
        /// The bundles that are there.
        there: String,
    },
    /// A bundle's bytes are not what its format says.
    #[error("the kernel bundle {bundle} is corrupt: {why}")]
    Corrupt {
        /// Which bundle.
        bundle: String,
        /// What is wrong.
        why: String,
    },
    /// A bundle was written in another version of the format.
    #[error(
        "the kernel bundle {bundle} has format {found}, this build reads {expected}; build it again with `cargo xtask kernels`"
    )]
    Format {
        /// Which bundle.
        bundle: String,
        /// Its format.
        found: u32,
        /// The one this build reads.
        expected: u32,
    },
    /// The bundle carries host code of another processor.
    #[error("the kernel bundle {bundle} was made for {found} hosts, this program runs on {here}")]
    Host {
        /// Which bundle.
        bundle: String,
        /// Its host architecture.
        found: String,
        /// This program's.
        here: &'static str,
    },
    /// No kernel of the bundle fits.
    #[error("{arch} has no kernel {wanted}; there are: {there}")]
    NoKernel {
        /// The bundle.
        arch: String,
        /// What was asked for.
        wanted: String,
        /// Its nearest relatives.
        there: String,
    },
    /// A bundle is being written with contents that contradict each other.
    #[error("kernel {name}: {why}")]
    Entry {
        /// Which kernel.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A kernel that no hardware has confirmed failed its check here, or has none.
    #[error("kernel {kernel} is not trusted: {why}")]
    Unverified {
        /// Which kernel.
        kernel: String,
        /// What is wrong.
        why: String,
    },
    /// A tuning table cannot be read.
    #[error("tuning table: {0}")]
    Tuning(String),
    /// A plan's arrays do not fit into the device's memory.
    #[error(
        "{what} needs {needed} bytes besides its operands, {free} are free: a smaller batch or a shorter sequence"
    )]
    Workspace {
        /// The operation.
        what: &'static str,
        /// Bytes needed.
        needed: usize,
        /// Bytes free.
        free: usize,
    },
    /// The device or the driver failed.
    #[error(transparent)]
    Cuda(#[from] flashlin_cuda::Error),
    /// A file could not be read.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl Error {
    /// Coarse class, for exit codes and HTTP status.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NoArch { .. } | Error::NoBundle { .. } | Error::NoKernel { .. } | Error::Host { .. } => {
                ErrorKind::Unsupported
            }
            Error::ArchName(_) | Error::Entry { .. } => ErrorKind::Usage,
            Error::Workspace { .. } => ErrorKind::OutOfMemory,
            Error::Cuda(e) => e.kind(),
            _ => ErrorKind::Runtime,
        }
    }
}

/// Names in a row, for messages.
pub(crate) fn names(items: &[impl ToString]) -> String {
    if items.is_empty() {
        return "none".into();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
