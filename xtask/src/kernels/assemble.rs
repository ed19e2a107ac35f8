//! One job: Rust source to Tile IR bytecode to cubin, and what the cubin's machine code says about itself.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use flashlin_kernels::Arch;
use sha2::{Digest, Sha256};

use super::jobs::Job;
use super::toolchain::Toolchain;

/// A compiled kernel.
pub struct Built {
    /// The ELF file.
    pub cubin: Vec<u8>,
    /// What its machine code holds.
    pub facts: Facts,
}

/// Counts from a cubin's machine code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Registers a thread.
    pub registers: u32,
    /// Static shared memory in bytes.
    pub shared: u32,
    /// LDL and STL: registers spilled to memory and read back.
    pub spills: u32,
    /// HGMMA: products of a warp group.
    pub wgmma: u32,
    /// WARPGROUP.ARRIVE: as many as `wgmma` where every product waits for the one before.
    pub arrivals: u32,
    /// Products by other tensor instructions (HMMA, tcgen05).
    pub mma: u32,
    /// UTMALDG.
    pub tma_loads: u32,
    /// UTMASTG.
    pub tma_stores: u32,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "registers {} shared {} spills {} wgmma {} ({} arrivals) mma {} tma {}+{}",
            self.registers,
            self.shared,
            self.spills,
            self.wgmma,
            self.arrivals,
            self.mma,
            self.tma_loads,
            self.tma_stores
        )
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

impl Toolchain {
    /// Compiles a job, or takes the cubin that the same bytecode gave before.
    pub fn build(&self, job: &Job, arch: Arch) -> Result<Built> {
        let work = tempfile::tempdir()?;
        let bytecode = work.path().join("in.bc");
        let front = Command::new(&self.frontend)
            .arg(&job.kernel)
            .arg(&bytecode)
            .arg(arch.name())
            .args([job.warps.to_string(), job.occupancy.to_string()])
            .args(&job.arguments)
            .env("CUDA_HOME", &self.cuda)
            .output()?;
        if !front.status.success() {
            bail!("front end: {}", String::from_utf8_lossy(&front.stderr));
        }
        let key = sha256(&std::fs::read(&bytecode)?);
        let store = self.home.join("cubins").join(arch.name());
        let kept = store.join(format!("{key}.cubin"));
        if !kept.exists() {
            self.assemble(work.path(), arch)?;
            std::fs::create_dir_all(&store)?;
            std::fs::copy(work.path().join("out.cubin"), &kept)?;
        }
        Ok(Built { facts: self.facts(&kept)?, cubin: std::fs::read(&kept)? })
    }

    /// Without address randomisation, environment and absolute paths: all three change what the assembler makes of one file.
    fn assemble(&self, work: &Path, arch: Arch) -> Result<()> {
        let run = Command::new("setarch")
            .args([std::env::consts::ARCH, "-R", "timeout", "300"])
            .arg(self.cuda.join("bin/tileiras"))
            .args(["--gpu-name", arch.name(), "-o", "out.cubin", "in.bc"])
            .current_dir(work)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .output()
            .context("setarch (util-linux) runs the assembler")?;
        if !run.status.success() {
            bail!("assembler: {}", String::from_utf8_lossy(&run.stderr));
        }
        Ok(())
    }

    fn facts(&self, cubin: &Path) -> Result<Facts> {
        let dump = |flag: &str| -> Result<String> {
            let run = Command::new(self.cuda.join("bin/cuobjdump")).arg(flag).arg(cubin).output()?;
            if !run.status.success() {
                bail!("cuobjdump: {}", String::from_utf8_lossy(&run.stderr));
            }
            Ok(String::from_utf8_lossy(&run.stdout).into_owned())
        };
        let usage = dump("-res-usage")?;
        let number = |key: &str| -> u32 {
            let rest = usage.split(key).nth(1).unwrap_or_default();
            rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
        };
        let code = dump("-sass")?;
        let count =
            |words: &[&str]| code.lines().filter(|l| words.iter().any(|w| l.contains(w))).count() as u32;
        Ok(Facts {
            registers: number("REG:"),
            shared: number("SHARED:"),
            spills: count(&["LDL", "STL"]),
            wgmma: count(&["HGMMA"]),
            arrivals: count(&["WARPGROUP.ARRIVE"]),
            mma: count(&[" HMMA", "UTCHMMA", "UTCQMMA", "UTCMMA"]),
            tma_loads: count(&["UTMALDG"]),
            tma_stores: count(&["UTMASTG"]),
        })
    }
}
