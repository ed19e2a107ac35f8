//! What a bundle says about each of its kernels.
//!
//! Policy: whatever a launch, a plan, a lint or a report needs to know about a kernel stands here and nowhere else. Fields may be added (readers ignore what they
//! do not know); a change of meaning raises [`crate::FORMAT`].

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The index of one bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// Compilation target, e.g. `sm_90`.
    pub arch: String,
    /// Host processor whose code the cubins carry, as in [`std::env::consts::ARCH`].
    pub host: String,
    /// Hash of the toolchain (assembler, front end, their options) that made the cubins.
    pub toolchain: String,
    /// The kernels, sorted by name.
    pub kernels: Vec<Kernel>,
}

/// One compiled kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Unique in its bundle: [`kernel_name`] of the fields below.
    pub name: String,
    /// Symbol in the cubin.
    pub entry: String,
    /// Folder of the source under `tiles/src`, e.g. `decay`.
    pub family: String,
    /// The source's entry function without its configuration, e.g. `gla_fused`.
    pub kernel: String,
    /// Dtype of the main inputs and outputs (`bf16`, `f16`, `f32`, ...).
    pub dtype: String,
    /// Const generics in the source's order.
    pub generics: Vec<(String, i64)>,
    /// Compute warps of a block; 0 where the assembler chose.
    pub warps: u32,
    /// Occupancy hint in blocks an SM; 0 where none was given.
    pub occupancy: u32,
    /// Arguments in order.
    pub abi: Vec<Arg>,
    /// Name of the rule by which a launch's grid follows from the shape (documented at the kernel's plan).
    pub grid: String,
    /// Registers a thread.
    pub registers: u32,
    /// Static shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Instructions that spill registers to memory.
    pub spills: u32,
    /// Where the cubin lies, and its hash.
    pub cubin: Place,
    /// Hash of the sources that this kernel was compiled from.
    pub source: String,
    /// Hash of the toolchain that compiled it.
    pub toolchain: String,
    /// Which GPU confirmed the numbers of exactly this cubin; `None` where no GPU has.
    pub checked: Option<Checked>,
}

/// One argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arg {
    /// Name in the source.
    pub name: String,
    /// What is passed.
    pub kind: ArgKind,
}

/// What an argument is. Pointers and `i64` take 8 bytes, the others 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArgKind {
    /// A device address.
    Ptr,
    /// A 32-bit integer.
    I32,
    /// A 64-bit integer.
    I64,
    /// A 32-bit float.
    F32,
}

/// Where a cubin lies inside a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Number of its block.
    pub block: usize,
    /// Offset in the decompressed block, in bytes.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
    /// SHA-256 of the cubin in lower-case hexadecimal.
    pub sha256: String,
}

/// The record of a check on hardware.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// Name of the GPU as its driver gives it.
    pub gpu: String,
    /// The largest relative L2 error over all outputs and cases against the f64 reference.
    pub error: f64,
    /// Day of the check, `YYYY-MM-DD`.
    pub date: String,
}

impl Kernel {
    /// Value of a const generic.
    pub fn generic(&self, name: &str) -> Option<i64> {
        self.generics.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    /// Value of a const generic that this kernel must have.
    ///
    /// # Errors
    /// [`Error::Entry`] that names the ones it has.
    pub fn need_generic(&self, name: &str) -> Result<i64> {
        self.generic(name).ok_or_else(|| Error::Entry {
            name: self.name.clone(),
            why: format!("has no generic {name}; it has {}", generics_text(&self.generics)),
        })
    }

    /// True where it has all these values among its generics.
    pub fn has(&self, wanted: &[(&str, i64)]) -> bool {
        wanted.iter().all(|(name, value)| self.generic(name) == Some(*value))
    }
}

/// The name of a configuration: `gla_fused@bf16_C64_K128_w4_o2`.
pub fn kernel_name(
    kernel: &str,
    dtype: &str,
    generics: &[(String, i64)],
    warps: u32,
    occupancy: u32,
) -> String {
    let mut name = format!("{kernel}@{dtype}");
    for (generic, value) in generics {
        name.push_str(&format!("_{generic}{value}"));
    }
    name.push_str(&format!("_w{warps}_o{occupancy}"));
    name
}

/// `C=64, K=128`, for messages.
pub(crate) fn generics_text<N: AsRef<str>>(generics: &[(N, i64)]) -> String {
    generics.iter().map(|(n, v)| format!("{}={v}", n.as_ref())).collect::<Vec<_>>().join(", ")
}
