//! `flashlin devices`: what this machine computes with.

use clap::Args;
use flashlin_cuda::{BlasInfo, Gpu, Properties, selftest};
use flashlin_kernels::{Arch, embedded, embedded_for};
use serde::Serialize;

use super::parse_gpu;
use crate::{
    args::Context,
    failure::NotPassed,
    table::{Table, bytes},
};

/// Show the processor, the GPUs, the compiled kernels and the libraries that are found
#[derive(Debug, Args)]
pub struct Devices {
    /// Check memory, streams, launches, graphs and dense products of a GPU, and time them
    #[arg(long)]
    selftest: bool,
    /// The GPU to check
    #[arg(long, default_value = "cuda:0", requires = "selftest")]
    device: String,
    /// Make the GPU fault and see how that is reported: `--selftest` runs this in a process of its own
    #[arg(long, hide = true, conflicts_with = "selftest")]
    fault: Option<String>,
}

/// What is there, or why it is not.
#[derive(Serialize)]
#[serde(untagged)]
enum Found<T> {
    There(T),
    Missing { error: String },
}

impl<T, E: ToString> From<Result<T, E>> for Found<T> {
    fn from(result: Result<T, E>) -> Found<T> {
        match result {
            Ok(value) => Found::There(value),
            Err(e) => Found::Missing { error: e.to_string() },
        }
    }
}

impl<T> Found<T> {
    fn text(&self, of: impl FnOnce(&T) -> String) -> String {
        match self {
            Found::There(value) => of(value),
            Found::Missing { error } => error.clone(),
        }
    }
}

/// Everything, for `--json`.
#[derive(Serialize)]
struct Report {
    cpu: Cpu,
    /// The CUDA version that the driver supports.
    driver: Found<String>,
    gpus: Vec<GpuRow>,
    bundles: Vec<BundleRow>,
    cublaslt: Found<BlasInfo>,
}

#[derive(Serialize)]
struct Cpu {
    architecture: &'static str,
    threads: usize,
    features: Vec<&'static str>,
}

#[derive(Serialize)]
struct GpuRow {
    device: String,
    #[serde(flatten)]
    properties: Properties,
    /// The architecture whose kernels it runs.
    kernels: Found<String>,
}

#[derive(Serialize)]
struct BundleRow {
    arch: &'static str,
    /// `None` where this binary holds none.
    kernels: Option<usize>,
    /// How many of them a GPU has confirmed.
    checked: usize,
    bytes: usize,
    /// GPUs that confirmed them.
    by: Vec<String>,
    error: Option<String>,
}

impl Devices {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        if let Some(device) = &self.fault {
            let gpu = parse_gpu("--fault", device)?;
            return ctx.out.line(selftest::fault(gpu)?);
        }
        if self.selftest {
            return selftests(ctx, &self.device);
        }
        let report = Report {
            cpu: Cpu { architecture: std::env::consts::ARCH, threads: ctx.threads, features: cpu_features() },
            driver: flashlin_cuda::driver()
                .map(|d| format!("{}.{}", d.version / 1000, d.version % 1000 / 10))
                .into(),
            // Without a driver there are none, and `driver` says why.
            gpus: flashlin_cuda::devices().unwrap_or_default().into_iter().map(GpuRow::of).collect(),
            bundles: Arch::ALL.into_iter().map(BundleRow::of).collect(),
            cublaslt: flashlin_cuda::blas_library().into(),
        };
        if ctx.out.json { ctx.out.value(&report) } else { ctx.out.text(report.text()) }
    }
}

impl GpuRow {
    fn of(properties: Properties) -> GpuRow {
        let (major, minor) = properties.capability;
        let kernels = embedded_for(major, minor).map(|b| b.arch().to_string()).into();
        GpuRow { device: format!("cuda:{}", properties.ordinal), properties, kernels }
    }
}

impl BundleRow {
    fn of(arch: Arch) -> BundleRow {
        let none =
            BundleRow { arch: arch.name(), kernels: None, checked: 0, bytes: 0, by: Vec::new(), error: None };
        match embedded(arch) {
            Ok(bundle) => {
                let all = bundle.kernels();
                let mut by: Vec<String> =
                    all.iter().filter_map(|k| k.checked.as_ref()).map(|c| c.gpu.clone()).collect();
                by.sort();
                by.dedup();
                let checked = all.iter().filter(|k| k.checked.is_some()).count();
                BundleRow { kernels: Some(all.len()), checked, bytes: bundle.file_bytes(), by, ..none }
            }
            Err(flashlin_kernels::Error::NoBundle { .. }) => none,
            Err(e) => BundleRow { error: Some(e.to_string()), ..none },
        }
    }

    /// What its cells say.
    fn cells(&self) -> [String; 4] {
        let state = match (self.kernels, &self.error) {
            (_, Some(error)) => error.clone(),
            (None, _) => "not in this build".into(),
            (Some(all), _) if self.checked == all => format!("checked on {}", self.by.join(", ")),
            (Some(all), _) => {
                format!(
                    "{} of {all} not checked on hardware: their first use checks them",
                    all - self.checked
                )
            }
        };
        let count = self.kernels.map_or(String::new(), |n| n.to_string());
        let size = if self.bytes == 0 { String::new() } else { bytes(self.bytes as u64) };
        [self.arch.into(), count, size, state]
    }
}

impl Report {
    fn text(&self) -> String {
        let cpu = &self.cpu;
        let mut text =
            format!("cpu     {}, {} threads, {}\n", cpu.architecture, cpu.threads, cpu.features.join(" "));
        text.push_str(&format!("driver  {}\n", self.driver.text(|v| format!("CUDA {v}"))));
        for g in &self.gpus {
            let (p, (major, minor)) = (&g.properties, g.properties.capability);
            let memory = bytes(p.memory_bytes as u64);
            text.push_str(&format!(
                "{}  {}, compute capability {major}.{minor}, {} SMs, {memory}; kernels: {}\n",
                g.device,
                p.name,
                p.sm_count,
                g.kernels.text(Clone::clone)
            ));
        }
        let library = |b: &BlasInfo| format!("{} (version {})", b.path, b.version);
        text.push_str(&format!("cublasLt  {}\n", self.cublaslt.text(library)));
        let mut table = Table::new(&["kernels", "count", "size", "state"]);
        for b in &self.bundles {
            table.row(b.cells());
        }
        text.push_str(&format!("\n{table}"));
        text
    }
}

/// The selftest, and the fault in a process of its own, since it costs the context.
fn selftests(ctx: &Context, device: &str) -> anyhow::Result<()> {
    let gpu: Gpu = parse_gpu("--device", device)?;
    let print = |o: &selftest::Outcome| {
        let mark = if o.passed { "ok  " } else { "FAIL" };
        // What cannot be printed now fails again below, where it is returned.
        let _ = ctx.out.line(format!("{mark}  {}  [{:.0} ms]  {}", o.name, o.ms, o.detail));
    };
    let mut all = selftest::run(gpu, |o| {
        if !ctx.out.json {
            print(o);
        }
    });
    let begin = std::time::Instant::now();
    let child =
        std::process::Command::new(std::env::current_exe()?).args(["devices", "--fault", device]).output()?;
    let text = if child.status.success() { &child.stdout } else { &child.stderr };
    let fault = selftest::Outcome {
        name: "an access beyond a guarded page is an asynchronous error",
        passed: child.status.success(),
        detail: String::from_utf8_lossy(text).trim().into(),
        ms: begin.elapsed().as_secs_f64() * 1e3,
    };
    if ctx.out.json {
        all.push(fault);
        ctx.out.value(&all)?;
    } else {
        print(&fault);
        ctx.out.text("")?;
        all.push(fault);
    }
    if all.iter().all(|o| o.passed) { Ok(()) } else { Err(NotPassed.into()) }
}

/// Features of the processor that decide which code runs on it.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("f16c", std::arch::is_x86_feature_detected!("f16c")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
            ("avx512vl", std::arch::is_x86_feature_detected!("avx512vl")),
            ("avx512dq", std::arch::is_x86_feature_detected!("avx512dq")),
            ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ];
        all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}
