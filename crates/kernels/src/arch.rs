//! GPU architectures that kernels are compiled for, and which GPU runs which.

use std::{fmt, str::FromStr};

use crate::Error;

/// A compilation target. A cubin runs on GPUs of its own major compute capability, from its minor one up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Arch {
    /// Ampere and Ada (compute capability 8.x).
    Sm80,
    /// Hopper (9.x).
    Sm90,
    /// Blackwell in data centres (10.x).
    Sm100,
    /// Blackwell in workstations (12.x).
    Sm120,
}

impl Arch {
    /// Every target, oldest first.
    pub const ALL: [Arch; 4] = [Arch::Sm80, Arch::Sm90, Arch::Sm100, Arch::Sm120];

    /// The target that a GPU of this compute capability runs.
    ///
    /// # Errors
    /// [`Error::NoArch`] for generations that nothing is compiled for.
    pub fn of_capability(major: u32, minor: u32) -> Result<Arch, Error> {
        match major {
            8 => Ok(Arch::Sm80),
            9 => Ok(Arch::Sm90),
            10 => Ok(Arch::Sm100),
            12 => Ok(Arch::Sm120),
            _ => Err(Error::NoArch { major, minor }),
        }
    }

    /// `sm_90` and so on: the name in file names and in the assembler.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm90 => "sm_90",
            Arch::Sm100 => "sm_100",
            Arch::Sm120 => "sm_120",
        }
    }

    /// Shared memory that one block may use, in bytes, on the smallest GPU that runs this target (8.6 and 8.9 have less than 8.0).
    pub fn shared_bytes(self) -> u32 {
        match self {
            Arch::Sm80 | Arch::Sm120 => 99 << 10,
            Arch::Sm90 | Arch::Sm100 => 227 << 10,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        Arch::ALL.into_iter().find(|a| a.name() == s).ok_or_else(|| Error::ArchName(s.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_runs_its_own_target() {
        assert_eq!(Arch::of_capability(8, 9).unwrap(), Arch::Sm80);
        assert_eq!(Arch::of_capability(9, 0).unwrap(), Arch::Sm90);
        assert_eq!(Arch::of_capability(10, 3).unwrap(), Arch::Sm100);
        assert_eq!(Arch::of_capability(12, 1).unwrap(), Arch::Sm120);
        for (major, minor) in [(7, 5), (11, 0), (13, 0)] {
            let text = Arch::of_capability(major, minor).unwrap_err().to_string();
            assert!(text.contains(&format!("{major}.{minor}")) && text.contains("sm_90"), "{text}");
        }
        for arch in Arch::ALL {
            assert_eq!(arch.name().parse::<Arch>().unwrap(), arch);
        }
        assert!("sm_70".parse::<Arch>().is_err());
    }
}
