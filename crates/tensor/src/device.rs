//! Where a tensor lives.

use std::{fmt, str::FromStr};

use crate::{Error, Result};

/// A place where tensors live and kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The host processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its ordinal.
    Cuda(usize),
}

impl Device {
    /// Opens the device, so that what is missing shows before work is put into it.
    ///
    /// # Errors
    /// No driver, too old a driver, no such device.
    pub fn open(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(ordinal) => crate::cuda::gpu(*ordinal).map(drop),
        }
    }

    /// Errors unless `op` can run here. The CPU serves everything; other devices are refused by name.
    pub fn require_cpu(&self, op: &'static str) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            other => Err(Error::unsupported(op, format!("device {other}"), "cpu")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(i) => write!(f, "cuda:{i}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = || Error::invalid("device", "device", format!("is `{s}`, expected cpu or cuda:N"));
        match s.split_once(':') {
            None if s == "cpu" => Ok(Device::Cpu),
            None if s == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", n)) => n.parse().map(Device::Cuda).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for (s, d) in [("cpu", Device::Cpu), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(s.parse::<Device>().unwrap(), d);
            assert_eq!(d.to_string(), s);
        }
        assert!("gpu".parse::<Device>().is_err());
        assert!("cuda:x".parse::<Device>().is_err());
    }
}
