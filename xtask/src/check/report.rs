//! What checks found: printed, and appended to the record that goes into the bundle.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use flashlin_kernels::Kernel;

/// Largest relative L2 error by dtype: what rounding to the dtype explains, with room for the worst gradient.
fn limit(dtype: &str) -> f64 {
    match dtype {
        "f32" => 2e-3,
        "f16" => 4e-3,
        _ => 1.2e-2,
    }
}

/// Errors of one configuration: (case and output, relative L2).
pub type Errors = Vec<(String, f64)>;

/// Collects outcomes.
pub struct Report {
    gpu: String,
    record: Option<PathBuf>,
    failed: Vec<String>,
}

impl Report {
    /// For this GPU; `record` is the file to append to.
    pub fn new(gpu: &str, record: Option<&Path>) -> Report {
        Report { gpu: gpu.into(), record: record.map(Path::to_path_buf), failed: Vec::new() }
    }

    /// Notes one configuration's outcome.
    pub fn checked(&mut self, kernel: &Kernel, outcome: Result<Errors>) -> Result<()> {
        let errors = match outcome {
            Ok(errors) if !errors.is_empty() => errors,
            Ok(_) => {
                println!("SKIP {} (no case)", kernel.name);
                return Ok(());
            }
            Err(e) => {
                println!("FAIL {}: {e:#}", kernel.name);
                self.failed.push(kernel.name.clone());
                return Ok(());
            }
        };
        let mut worst = errors[0].clone();
        for e in &errors {
            // Not a number is the worst of all.
            if e.1.is_nan() || e.1 > worst.1 {
                worst = e.clone();
            }
        }
        // Kernels without arrays of the inputs' type are checked in bf16 pipelines.
        let dtype = if matches!(kernel.kernel.as_str(), "decay_cumsum" | "delta_gates") {
            "bf16"
        } else {
            &kernel.dtype
        };
        let good = worst.1 < limit(dtype);
        println!("{} {} {:.1e} ({})", if good { "ok  " } else { "FAIL" }, kernel.name, worst.1, worst.0);
        if !good {
            for e in &errors {
                println!("       {} {:.2e}", e.0, e.1);
            }
            self.failed.push(kernel.name.clone());
        } else if let Some(path) = &self.record {
            let date =
                String::from_utf8_lossy(&Command::new("date").arg("+%F").output()?.stdout).trim().to_string();
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            writeln!(file, "{}\t{}\t{:.2e}\t{}", kernel.cubin.sha256, self.gpu, worst.1, date)?;
        }
        Ok(())
    }

    /// An error where a configuration failed.
    pub fn finish(self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!("{} kernels failed: {}", self.failed.len(), self.failed.join(", "));
        }
        Ok(())
    }
}
