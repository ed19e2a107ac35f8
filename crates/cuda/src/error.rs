//! The one error type of this crate, and how a driver's answer becomes one.
//!
//! Policy: a failure of something launched earlier is reported by whichever call comes next; such an error says so
//! ([`Error::Asynchronous`]) and names what was launched last, instead of blaming the call that met it.

use std::panic::Location;

use cudarc::driver::{result::DriverError, sys::CUresult};

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Coarse class of an error, for exit codes and HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something wrong: fix the call.
    Usage,
    /// The request is sound but this machine cannot serve it.
    Unsupported,
    /// Memory ran out; a smaller request may pass.
    OutOfMemory,
    /// The driver or the device failed.
    Runtime,
}

/// What can go wrong at the door.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no driver.
    #[error("no NVIDIA driver: libcuda could not be opened; install the driver, or use --device cpu")]
    NoDriver,
    /// The driver is there but refuses to start.
    #[error("the NVIDIA driver does not start: {0}")]
    DriverInit(String),
    /// The driver is older than what the kernels need.
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, flashlin needs {}.{} or newer: update the driver",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    DriverTooOld {
        /// What the driver supports, as 1000 x major + 10 x minor.
        found: i32,
        /// The oldest that serves, likewise.
        needed: i32,
    },
    /// There is no such device.
    #[error("there is no device cuda:{asked}; {}", available(*count))]
    NoDevice {
        /// Its ordinal.
        asked: usize,
        /// How many there are.
        count: usize,
    },
    /// The device's memory does not suffice. The device stays usable.
    #[error("{0}")]
    OutOfMemory(Box<OutOfMemory>),
    /// A driver call failed.
    #[error("{call} failed: {text}")]
    Driver {
        /// The call.
        call: &'static str,
        /// Name and description from the driver.
        text: String,
    },
    /// Something launched earlier failed. The device is lost to this process.
    #[error(
        "asynchronous CUDA error, found by {found_by}: {text}. It was caused by work launched earlier (last launches, newest first: {recent}); this process can no longer use the device. FLASHLIN_CUDA_SYNC=1 waits after each launch and names the culprit"
    )]
    Asynchronous {
        /// The call that met it.
        found_by: String,
        /// Name and description from the driver.
        text: String,
        /// What was launched last.
        recent: String,
    },
    /// Something that a graph cannot hold was done while one was being captured.
    #[error("{what} inside a graph capture, at {place}: {why}")]
    Capture {
        /// What was done.
        what: String,
        /// Where, as file:line.
        place: String,
        /// Why that cannot be.
        why: &'static str,
    },
    /// A library could not be opened.
    #[error(
        "{library} was not found; tried: {tried}. Set FLASHLIN_CUDA_LIBS to the folder that holds it (`pip install nvidia-cublas` brings one)"
    )]
    NoLibrary {
        /// Which library.
        library: &'static str,
        /// Where it was looked for, and what was wrong there.
        tried: String,
    },
    /// A library call failed.
    #[error("{call} failed with status {status}{context}")]
    Library {
        /// The call.
        call: &'static str,
        /// The library's status.
        status: String,
        /// For what, where known.
        context: String,
    },
    /// An argument is wrong.
    #[error("{what}: {why}")]
    Invalid {
        /// The operation.
        what: &'static str,
        /// What came and what was expected.
        why: String,
    },
    /// The combination is not available.
    #[error("{what} does not support {asked}; supported: {supported}")]
    Unsupported {
        /// The operation.
        what: &'static str,
        /// What was asked for.
        asked: String,
        /// What is available.
        supported: String,
    },
}

/// The facts of a failed allocation, all in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Ordinal of the device.
    pub device: usize,
    /// What was asked for.
    pub asked: usize,
    /// What live buffers of this process hold.
    pub in_use: usize,
    /// What the pool keeps for reuse after it gave back all it could.
    pub cached: usize,
    /// What the driver says is free.
    pub free: usize,
    /// What the device has.
    pub total: usize,
    /// A limit set on the pool, where there is one.
    pub limit: Option<usize>,
    /// True inside a graph capture, where nothing can be given back.
    pub capturing: bool,
}

/// The driver itself keeps less than this share of a device for a process (its context, code, library workspaces).
const SHARE_OF_DRIVER: usize = 16;

impl std::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let others = self.total.saturating_sub(self.free + self.in_use + self.cached);
        write!(
            f,
            "out of memory on cuda:{}: {} were asked for; of {} this process holds {} in use and {} cached, others and the driver hold {}, {} are free",
            self.device,
            size(self.asked),
            size(self.total),
            size(self.in_use),
            size(self.cached),
            size(others),
            size(self.free)
        )?;
        if let Some(limit) = self.limit {
            write!(f, " (limit of this process: {})", size(limit))?;
        }
        let help = if self.capturing {
            "run the step once before the capture, so that its memory is there"
        } else if self.asked > self.total {
            "no setting of this device can hold that: a smaller batch or a shorter sequence"
        } else if others > self.asked.max(self.total / SHARE_OF_DRIVER) {
            "another process holds enough: end it; or a smaller batch"
        } else {
            "a smaller batch with gradient accumulation, activation checkpointing, or a shorter sequence"
        };
        write!(f, ". What would help: {help}")
    }
}

impl Error {
    /// Coarse class, for exit codes and HTTP status.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NoDriver
            | Error::DriverTooOld { .. }
            | Error::NoLibrary { .. }
            | Error::Unsupported { .. } => ErrorKind::Unsupported,
            Error::NoDevice { .. } | Error::Invalid { .. } | Error::Capture { .. } => ErrorKind::Usage,
            Error::OutOfMemory(_) => ErrorKind::OutOfMemory,
            _ => ErrorKind::Runtime,
        }
    }

    pub(crate) fn invalid(what: &'static str, why: impl Into<String>) -> Error {
        Error::Invalid { what, why: why.into() }
    }

    pub(crate) fn capture(what: impl Into<String>, at: &Location<'_>, why: &'static str) -> Error {
        Error::Capture { what: what.into(), place: format!("{}:{}", at.file(), at.line()), why }
    }
}

/// Name and description of a driver error, for messages.
pub(crate) fn describe(error: DriverError) -> String {
    let name = error.error_name().map(|s| s.to_string_lossy().into_owned());
    let text = error.error_string().map(|s| s.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{name} ({text})"),
        _ => format!("{:?}", error.0),
    }
}

/// True for codes that a running kernel or copy causes and a later, innocent call reports.
pub(crate) fn is_asynchronous(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_ECC_UNCORRECTABLE
    )
}

fn available(count: usize) -> String {
    match count {
        0 => "the driver sees none".into(),
        1 => "there is cuda:0".into(),
        n => format!("there are cuda:0 to cuda:{}", n - 1),
    }
}

/// A number of bytes in the unit that suits it.
pub(crate) fn size(bytes: usize) -> String {
    let units = [("GiB", 1usize << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.2} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_says_what_is_held_and_what_helps() {
        let gib = 1 << 30;
        let mut oom = OutOfMemory {
            device: 0,
            asked: 20 * gib,
            in_use: 100 * gib,
            cached: 0,
            free: 10 * gib,
            total: 140 * gib,
            limit: None,
            capturing: false,
        };
        let text = oom.to_string();
        for part in [
            "20.00 GiB were asked",
            "100.00 GiB in use",
            "others and the driver hold 30.00 GiB",
            "another process",
        ] {
            assert!(text.contains(part), "{text}");
        }
        oom.in_use = 125 * gib;
        assert!(oom.to_string().contains("gradient accumulation"));
        oom.asked = 1 << 50;
        assert!(oom.to_string().contains("no setting"));
        assert_eq!(Error::OutOfMemory(Box::new(oom)).kind(), ErrorKind::OutOfMemory);
    }

    #[test]
    fn versions_and_ordinals_read_well() {
        let text = Error::DriverTooOld { found: 11040, needed: 12080 }.to_string();
        assert!(text.contains("CUDA 11.4") && text.contains("12.8"), "{text}");
        let text = Error::NoDevice { asked: 3, count: 2 }.to_string();
        assert!(text.contains("cuda:3") && text.contains("cuda:0 to cuda:1"), "{text}");
    }
}
