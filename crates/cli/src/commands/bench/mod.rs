//! `flashlin bench`: how fast this machine runs what flashlin computes.
//!
//! Policy: a benchmark first checks that what it times is right, then prints its numbers beside a ceiling measured in the same run
//! with the same threads (a large dense product, the arithmetic peak, the read bandwidth), so that they mean something on any
//! machine. A time is the best of a few runs.

mod decode;
mod gpu;
mod model;
mod ops;
mod serve;
mod train;

use std::{path::PathBuf, time::Instant};

use clap::{Args, Subcommand};
use flashlin::{Config, DType, Device, Input, Model};
use flashlin_tensor::{Philox, cpu::ceiling};
use serde::Serialize;

use crate::{args::Context, failure::Failure, table::Table};

/// Measure speed: first check, then time; every number beside a ceiling of this machine
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Ops(ops::OpsBench),
    Decode(decode::DecodeBench),
    Train(train::TrainBench),
    Generate(decode::GenerateBench),
    Model(model::ModelBench),
    Gpu(gpu::GpuBench),
    Serve(serve::ServeBench),
}

impl Bench {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let rows = match self.what {
            What::Ops(b) => b.run(ctx)?,
            What::Decode(b) => b.run(ctx)?,
            What::Train(b) => b.run(ctx)?,
            What::Generate(b) => b.run(ctx)?,
            What::Model(b) => b.run(ctx)?,
            What::Gpu(b) => b.run(ctx)?,
            What::Serve(b) => return b.run(ctx),
        };
        ctx.out.rows(&rows, |rows| {
            let mut table = Table::new(&["what", "ms", "rate", "unit", "of", "share"]);
            for r in rows {
                let ms = r.ms.map_or(String::new(), |ms| format!("{ms:.2}"));
                let share = r.share.map_or(String::new(), |s| format!("{:.0}%", 100.0 * s));
                let rate = if r.rate >= 100.0 { format!("{:.0}", r.rate) } else { format!("{:.2}", r.rate) };
                table.row([r.what.clone(), ms, rate, r.unit.into(), r.of.clone(), share]);
            }
            table
        })
    }
}

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was timed.
    what: String,
    /// Best time of one run; none for ceilings.
    ms: Option<f64>,
    /// Work a second, in `unit`.
    rate: f64,
    unit: &'static str,
    /// The ceiling it is compared with.
    of: String,
    /// Rate over ceiling.
    share: Option<f64>,
}

impl Row {
    fn new(what: impl Into<String>, seconds: Option<f64>, rate: f64, unit: &'static str) -> Row {
        Row { what: what.into(), ms: seconds.map(|s| s * 1e3), rate, unit, of: String::new(), share: None }
    }

    fn of(self, ceiling: &Row) -> Row {
        Row { of: ceiling.what.clone(), share: Some(self.rate / ceiling.rate), ..self }
    }
}

/// Seconds of the fastest of `runs`, after one that does not count.
fn best<T>(runs: usize, mut f: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<f64> {
    f()?;
    let mut best = f64::INFINITY;
    for _ in 0..runs.max(1) {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// The two ceilings of arithmetic: a 2048^3 f32 product, and the FMA peak that it is compared with.
fn arithmetic(ctx: &Context) -> anyhow::Result<Vec<Row>> {
    let peak = Row::new("FMA peak, f32", None, ceiling::fma_peak_flops(ctx.threads) / 1e9, "GFLOP/s");
    let gemm = Row::new("gemm 2048^3, f32", None, ceiling::gemm_flops(2048, ctx.threads)? / 1e9, "GFLOP/s");
    Ok(vec![gemm.of(&peak), peak])
}

/// Fails a benchmark whose subject computes something else than it should.
fn check(what: &str, got: &[f64], want: &[f64], allowed: f64) -> anyhow::Result<()> {
    let error = flashlin_ops::conformance::relative_l2(got, want);
    if error <= allowed {
        return Ok(());
    }
    Err(Failure::runtime(format!("{what}: relative L2 error {error:.1e}, allowed {allowed:.0e}: not timed"))
        .into())
}

/// Which model to time.
#[derive(Debug, Args)]
struct ModelArgs {
    /// Model family
    #[arg(long, default_value = "gated_deltanet")]
    model: String,
    /// Size of the family
    #[arg(long, default_value = "132m")]
    preset: String,
    /// A model folder or config.json in place of family and size; its weights are not read
    #[arg(long, value_name = "PATH", conflicts_with_all = ["model", "preset"])]
    config: Option<PathBuf>,
    /// Set a key of the configuration, e.g. `--set num_hidden_layers=2`; the value is JSON, or else a string
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Type of the weights
    #[arg(long, default_value = "bf16")]
    dtype: String,
}

impl ModelArgs {
    fn dtype(&self) -> anyhow::Result<DType> {
        Ok(super::parse_dtype("--dtype", &self.dtype)?)
    }

    fn build(&self) -> anyhow::Result<Model> {
        self.build_on(&Device::Cpu)
    }

    fn build_on(&self, device: &Device) -> anyhow::Result<Model> {
        let mut map = match &self.config {
            None => super::new::preset(&self.model, Some(&self.preset))?,
            Some(path) if path.is_dir() => Config::load(&path.join(flashlin::CONFIG_FILE))?.to_json(),
            Some(file) => Config::load(file)?.to_json(),
        };
        super::new::apply_sets(&mut map, &self.sets)?;
        Ok(Model::new(&Config::from_json(map)?, self.dtype()?, device, 1)?)
    }

    fn name(&self) -> String {
        let sets: String = self.sets.iter().map(|s| format!(" {s}")).collect();
        match &self.config {
            Some(path) => format!("{}{sets} {}", path.display(), self.dtype),
            None => format!("{} {}{sets} {}", self.model, self.preset, self.dtype),
        }
    }
}

/// `n` random token ids.
fn random_ids(model: &Model, n: usize) -> Vec<u32> {
    let rng = Philox::named(1, "bench");
    let vocab = model.config().base().vocab_size as u64;
    (0..n as u64).map(|i| rng.below(i, vocab) as u32).collect()
}

/// One row of random tokens.
fn random_input(model: &Model, n: usize) -> anyhow::Result<Input> {
    Ok(Input::row(&random_ids(model, n))?)
}
