//! `cargo xtask gpu`: every kernel of a bundle against a float64 reference on the GPU at hand, then its time at the shapes of the benchmarks.
//!
//! Policy: a kernel is checked in the pipeline that it belongs to, once for each of its configurations, with the other stages as they ship; the error of a
//! configuration is the largest over all outputs and cases. Outputs and workspaces are poisoned with NaN before every case.

mod gpu;
mod host;
mod recurrence;
mod report;
mod step;

use std::path::PathBuf;

use anyhow::{Result, bail};
use flashlin_kernels::{Bundle, Kernel, Library, verify_kernel};

use gpu::Gpu;
use report::Report;

/// Arguments of `cargo xtask gpu`.
#[derive(clap::Args)]
pub struct Args {
    /// The bundle to check
    #[arg(long, default_value = "crates/kernels/bundle/sm_90.bundle")]
    bundle: PathBuf,
    /// Only kernels whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Do not check numbers
    #[arg(long)]
    no_check: bool,
    /// Time kernels and pipelines at the benchmarks' shapes
    #[arg(long)]
    time: bool,
    /// Append what was checked to this file, for `cargo xtask kernels --record`
    #[arg(long)]
    record: Option<PathBuf>,
}

/// A kernel's stage in a pipeline: which configurations stand there by default, and which one is under test.
pub struct Select<'a> {
    bundle: &'a Bundle,
    under_test: Vec<&'a Kernel>,
}

impl<'a> Select<'a> {
    /// Every stage as it ships.
    pub fn shipped(bundle: &'a Bundle) -> Select<'a> {
        Select { bundle, under_test: Vec::new() }
    }

    /// One configuration under test.
    pub fn test(bundle: &'a Bundle, kernel: &'a Kernel) -> Select<'a> {
        Select { bundle, under_test: vec![kernel] }
    }

    /// Puts a configuration in its stage.
    pub fn put(&mut self, kernel: &'a Kernel) {
        self.under_test.push(kernel);
    }

    /// The configuration for a stage.
    pub fn get(&self, kernel: &str, dtype: &str, generics: &[(&str, i64)]) -> Result<&'a Kernel> {
        let fits = |k: &&&Kernel| k.kernel == kernel && k.dtype == dtype && k.has(generics);
        match self.under_test.iter().rev().find(fits) {
            Some(k) => Ok(k),
            None => Ok(self.bundle.find(kernel, dtype, generics)?),
        }
    }
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    // Kernels are loaded from it until the process ends.
    let bundle: &'static Bundle = Box::leak(Box::new(Bundle::open(&args.bundle)?));
    let gpu = Gpu::open(bundle)?;
    let library = Library::new(flashlin_cuda::Gpu::open(0)?, bundle);
    println!("{}: {} kernels of {}", gpu.name(), bundle.kernels().len(), bundle.arch());
    let wanted =
        |k: &&'static Kernel| args.only.is_empty() || args.only.iter().any(|o| k.name.contains(o.as_str()));
    let kernels: Vec<&'static Kernel> = bundle.kernels().iter().filter(wanted).collect();
    let mut report = Report::new(gpu.name(), args.record.as_deref());
    if !args.no_check {
        for kernel in &kernels {
            let outcome = match kernel.family.as_str() {
                "decay" | "delta" => recurrence::check(&gpu, bundle, kernel),
                _ => single(&library, kernel),
            };
            report.checked(kernel, outcome)?;
            gpu.drain()?;
        }
    }
    if args.time {
        recurrence::time(&gpu, bundle, &kernels)?;
        step::time(&gpu, &kernels)?;
    }
    report.finish()
}

/// A kernel whose cases are single launches.
fn single(library: &Library, kernel: &'static Kernel) -> Result<report::Errors> {
    let verdict = verify_kernel(&library.load_unchecked(kernel)?, library.gpu())?;
    if !verdict.passed() {
        bail!("{}", verdict.failures.join("; "));
    }
    Ok(vec![(format!("{} cases", verdict.cases), verdict.error)])
}
