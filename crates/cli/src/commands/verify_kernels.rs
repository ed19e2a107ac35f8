//! `flashlin verify-kernels`: the compiled kernels against their f64 references on the GPU at hand.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use clap::Args;
use flashlin_kernels::{Bundle, Kernel, Library, Verdict, today, verify_kernel};
use serde::{Deserialize, Serialize};

use super::parse_gpu;
use crate::{
    args::Context,
    failure::{Failure, NotPassed},
    table::Table,
};

/// Check every compiled kernel against its f64 reference on this machine's GPU
#[derive(Debug, Args)]
pub struct VerifyKernels {
    /// Kernels to check, by a part of their names [default: all]
    kernels: Vec<String>,
    /// The GPU to check on
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Kernels from a file instead of those inside this program
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Append what passed to this file, for `cargo xtask kernels --record`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Only kernels that come after this one by name: how a run goes on after a kernel that cost it the device
    #[arg(long, hide = true, value_name = "NAME")]
    after: Option<String>,
}

/// Result for one kernel.
#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(flatten)]
    verdict: Verdict,
    passed: bool,
    gpu: String,
    date: String,
}

impl VerifyKernels {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let gpu = parse_gpu("--device", &self.device)?;
        let opened;
        let library = match &self.bundle {
            None => Library::of(gpu)?,
            Some(path) => {
                opened = Library::new(gpu, Box::leak(Box::new(Bundle::open(path)?)));
                &opened
            }
        };
        let chosen: Vec<&'static Kernel> =
            library.bundle().kernels().iter().filter(|k| self.wants(k)).collect();
        if chosen.is_empty() && self.after.is_none() {
            let message = format!(
                "no kernel of {} has {} in its name",
                library.bundle().arch(),
                self.kernels.join(" or ")
            );
            return Err(Failure::usage(message).into());
        }
        let (name, date) = (gpu.properties().name.clone(), today());
        let row = |verdict: Verdict| Row {
            passed: verdict.passed(),
            verdict,
            gpu: name.clone(),
            date: date.clone(),
        };
        let mut rows = Vec::new();
        for kernel in chosen {
            tracing::info!("{}", kernel.name);
            let result = library.load_unchecked(kernel).and_then(|loaded| verify_kernel(&loaded, gpu));
            let lost = matches!(
                result,
                Err(flashlin_kernels::Error::Cuda(flashlin_cuda::Error::Asynchronous { .. }))
            );
            rows.push(row(result.unwrap_or_else(|e| failed(kernel, e.to_string()))));
            if lost {
                rows.extend(self.go_on_after(&kernel.name)?);
                break;
            }
        }
        if let Some(path) = &self.record {
            record(path, &rows).with_context(|| path.display().to_string())?;
        }
        show(ctx, &rows)?;
        let pass = rows.iter().all(|r| r.passed);
        // The process that went on after a fault reports by its rows.
        if pass || self.after.is_some() { Ok(()) } else { Err(NotPassed.into()) }
    }

    fn wants(&self, kernel: &Kernel) -> bool {
        let named = self.kernels.is_empty() || self.kernels.iter().any(|part| kernel.name.contains(part));
        named && self.after.as_ref().is_none_or(|after| kernel.name > *after)
    }

    /// The rest in a new process: this one has lost the device.
    fn go_on_after(&self, name: &str) -> anyhow::Result<Vec<Row>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["verify-kernels", "--json", "--device", &self.device, "--after", name]);
        if let Some(path) = &self.bundle {
            command.arg("--bundle").arg(path);
        }
        let child = command.arg("--").args(&self.kernels).output()?;
        if !child.status.success() {
            let text = String::from_utf8_lossy(&child.stderr).trim().to_string();
            return Err(Failure::runtime(format!("after the fault of {name}: {text}")).into());
        }
        Ok(serde_json::from_slice(&child.stdout)?)
    }
}

/// A kernel that could not be judged.
fn failed(kernel: &Kernel, why: String) -> Verdict {
    Verdict {
        name: kernel.name.clone(),
        sha256: kernel.cubin.sha256.clone(),
        cases: 0,
        error: 0.0,
        failures: vec![why],
    }
}

/// A line for each kernel that passed: hash, GPU, error and date, separated by tabs.
fn record(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    for row in rows.iter().filter(|r| r.passed) {
        writeln!(file, "{}\t{}\t{:.2e}\t{}", row.verdict.sha256, row.gpu, row.verdict.error, row.date)?;
    }
    Ok(())
}

fn show(ctx: &Context, rows: &[Row]) -> anyhow::Result<()> {
    ctx.out.rows(rows, |rows| {
        let mut table = Table::new(&["kernel", "cases", "error", "result"]);
        for Row { verdict: v, passed, .. } in rows {
            let result = if *passed { "ok".into() } else { v.failures.join("; ") };
            table.row([v.name.clone(), v.cases.to_string(), format!("{:.2e}", v.error), result]);
        }
        table
    })?;
    if ctx.out.json {
        return Ok(());
    }
    let passed = rows.iter().filter(|r| r.passed).count();
    ctx.out.line(format!("{passed} of {} passed", rows.len()))
}
