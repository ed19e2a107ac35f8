//! `flashlin bench model`: a whole model on one device: training with its optimizer, prefill, decoding, the first logits.
//!
//! Policy: every time ends when its result is there (a loss that was read, logits on the host); a decoding step includes choosing the most likely token
//! and sending it. The shares are of a large product in the weights' type and of a large copy (on the CPU: of a read loop), measured in the same run.

use std::time::Instant;

use clap::{Args, ValueEnum};
use flashlin::{DType, Device, Input, Model, ModelState, generate::RecordedStep, sample::Sampler};
use flashlin_cuda::{Gpu, Scalar, selftest};
use flashlin_tensor::{Tensor, cuda, no_grad};
use flashlin_train::{config::OptimConfig, optim::AdamW};

use super::{ModelArgs, Row, arithmetic, decode, random_ids, random_input, train};
use crate::{args::Context, commands::DeviceArgs, failure::Failure};

/// Training, prefill and decoding of a model with random weights, on a device
#[derive(Debug, Args)]
pub struct ModelBench {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// What to time
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["train", "prefill", "decode"])]
    parts: Vec<Part>,
    /// Rows of a training batch
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a row in training
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// Recompute each layer in the backward pass instead of keeping its activations
    #[arg(long)]
    checkpoint_layers: bool,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 8192)]
    prompt: usize,
    /// Rows that are decoded together
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64])]
    rows: Vec<usize>,
    /// Decoding steps of a run
    #[arg(long, default_value_t = 64)]
    steps: usize,
    /// Runs to take the best of
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// List also the kernels and products that take longest in one run of each part, as many as this (on a GPU)
    #[arg(long, default_value_t = 0)]
    profile: usize,
}

/// What to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Train,
    Prefill,
    Decode,
}

/// The two ceilings of a device: arithmetic in the weights' type, and memory.
struct Ceilings {
    arithmetic: Row,
    memory: Row,
}

impl ModelBench {
    pub fn run(self, ctx: &Context) -> anyhow::Result<Vec<Row>> {
        let sizes = [self.batch, self.tokens, self.prompt, self.steps, self.runs];
        if sizes.contains(&0) || self.rows.contains(&0) || self.batch * self.tokens < 2 {
            let text = "--batch, --tokens, --prompt, --rows, --steps, --runs: each at least 1, and two tokens a batch";
            return Err(Failure::usage(text).into());
        }
        let device = self.device.open()?;
        let begin = Instant::now();
        let model = self.model.build_on(&device)?;
        wait(&device)?;
        tracing::info!("{} parameters made in {:.1} s", model.num_params(), begin.elapsed().as_secs_f64());
        let mut rows = vec![first_logits(&model)?];
        train::same_loss(&model, model.dtype())?;
        decode::steps_equal_one_pass(&model)?;
        let ceilings = Ceilings::of(ctx, &device, model.dtype())?;
        rows.extend([ceilings.arithmetic.clone(), ceilings.memory.clone()]);
        for part in &self.parts {
            match part {
                Part::Train => rows.extend(self.train(&model, &ceilings)?),
                Part::Prefill => rows.extend(self.prefill(&model, &ceilings)?),
                Part::Decode => {
                    for &n in &self.rows {
                        rows.extend(self.decode(&model, &ceilings, n)?);
                    }
                }
            }
        }
        Ok(rows)
    }

    /// Whole steps: forward, backward, clipping, AdamW; each ends when its norm was read.
    fn train(&self, model: &Model, ceilings: &Ceilings) -> anyhow::Result<Vec<Row>> {
        let n = self.batch * self.tokens;
        let ids: Vec<i64> = random_ids(model, n).into_iter().map(i64::from).collect();
        let ids = Tensor::from_vec(ids, &[self.batch, self.tokens])?;
        let wants = |name: &str| model.wants_weight_decay(name);
        let mut adam = AdamW::new(&OptimConfig::default(), model.params(), wants)?;
        reset_peaks(&model.device())?;
        let mut step = || {
            let loss = train::loss_with(model, &ids, flashlin::Mode::Auto, self.checkpoint_layers)?;
            let grads = loss.backward()?;
            // A rate of nearly nothing: the weights of what follows stay those that were checked.
            let seen = adam.step(&grads, 1e-9, loss.tensor())?.read()?;
            match seen.applied {
                true => Ok(()),
                false => Err(Failure::runtime("a training step was not finite: not timed").into()),
            }
        };
        let seconds = super::best(self.runs, &mut step)?;
        let flops = 6.0 * model.num_non_embedding_params() as f64 * n as f64;
        let name = format!("train {}, {} x {} tokens", self.model.name(), self.batch, self.tokens);
        let mut rows = vec![
            Row::new(&name, Some(seconds), n as f64 / seconds, "tokens/s"),
            self.arithmetic(&name, seconds, flops, ceilings),
        ];
        rows.extend(peaks(&model.device())?);
        rows.extend(self.longest(&model.device(), step)?);
        Ok(rows)
    }

    /// What takes longest in one run of a part, after one that does not count.
    fn longest<T>(
        &self,
        device: &Device,
        mut part: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<Row>> {
        let (Device::Cuda(ordinal), true) = (*device, self.profile > 0) else { return Ok(Vec::new()) };
        part()?;
        let (out, spans) = flashlin_cuda::profiled(Gpu::open(ordinal)?, part)?;
        out?;
        let total: f64 = spans.iter().map(|s| s.ms).sum();
        let row = |s: &flashlin_cuda::Span| {
            let what = format!("  {} x {}", s.calls, s.name);
            Row::new(what, Some(s.ms / 1e3), 100.0 * s.ms / total, "% of what was timed")
        };
        Ok(spans.iter().take(self.profile).map(row).collect())
    }

    fn prefill(&self, model: &Model, ceilings: &Ceilings) -> anyhow::Result<Vec<Row>> {
        let input = random_input(model, self.prompt)?;
        let mut pass = || host_logits(model, &input, &mut model.new_state(1)?);
        let seconds = super::best(self.runs, &mut pass)?;
        let flops = 2.0 * model.num_non_embedding_params() as f64 * self.prompt as f64;
        let name = format!("prefill {}, 1 x {} tokens", self.model.name(), self.prompt);
        let mut rows = vec![
            Row::new(&name, Some(seconds), self.prompt as f64 / seconds, "tokens/s"),
            self.arithmetic(&name, seconds, flops, ceilings),
        ];
        rows.extend(self.longest(&model.device(), pass)?);
        Ok(rows)
    }

    fn arithmetic(&self, name: &str, seconds: f64, flops: f64, ceilings: &Ceilings) -> Row {
        let (unit, scale) = match ceilings.arithmetic.unit {
            unit @ "TFLOP/s" => (unit, 1e12),
            unit => (unit, 1e9),
        };
        Row::new(name, Some(seconds), flops / seconds / scale, unit).of(&ceilings.arithmetic)
    }

    fn decode(&self, model: &Model, ceilings: &Ceilings, n: usize) -> anyhow::Result<Vec<Row>> {
        let prompts: Vec<Vec<u32>> = (0..n).map(|_| random_ids(model, 16)).collect();
        let mut state = model.new_state(n)?;
        no_grad(|| model.forward(&Input::packed(&prompts)?, Some(&mut state), &decode::last()))?;
        let recorded = match RecordedStep::serves(model) {
            false => None,
            true => {
                let (step, own) = RecordedStep::new(model, &state)?;
                state = own;
                Some(step)
            }
        };
        let mut ids = random_ids(model, n);
        let mut greedy = Sampler::new(Default::default(), 0)?;
        let seconds = super::best(self.runs, || {
            for _ in 0..self.steps {
                if let Some(step) = &recorded {
                    step.run(model, &mut state, &ids)?;
                    ids = step.greedy()?;
                    continue;
                }
                let column: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
                let input = Input::ids(Tensor::from_vec(column, &[n, 1])?);
                let logits = host_logits(model, &input, &mut state)?;
                let vocab = logits.len() / n;
                ids = logits.chunks_exact(vocab).map(|row| greedy.sample(row)).collect::<Result<_, _>>()?;
            }
            Ok(())
        })? / self.steps as f64;
        let weights: usize =
            model.params().iter().map(|p| p.dims().iter().product::<usize>() * p.dtype().size()).sum();
        let how = recorded.as_ref().map_or("launched".into(), |s| format!("a graph of {}", s.nodes()));
        let name = format!("decode {}, {n} rows ({how})", self.model.name());
        // Weights are read, states read and written.
        let bytes = (weights + 2 * state.bytes()) as f64;
        let mut rows = vec![
            Row::new(&name, Some(seconds), n as f64 / seconds, "tokens/s"),
            Row::new(&name, Some(seconds), bytes / seconds / 1e9, "GB/s").of(&ceilings.memory),
        ];
        drop(recorded);
        let input = Input::ids(Tensor::from_vec(vec![1_i64; n], &[n, 1])?);
        rows.extend(self.longest(&model.device(), || host_logits(model, &input, &mut state))?);
        Ok(rows)
    }
}

impl Ceilings {
    fn of(ctx: &Context, device: &Device, dtype: DType) -> anyhow::Result<Ceilings> {
        let Device::Cuda(ordinal) = *device else {
            let read = decode::read_bandwidth(ctx)? / 1e9;
            let memory = Row::new("read bandwidth, best of 1 and all threads", None, read, "GB/s");
            return Ok(Ceilings { arithmetic: arithmetic(ctx)?.swap_remove(0), memory });
        };
        let gpu = Gpu::open(ordinal)?;
        let (scalar, size) = match dtype {
            DType::BF16 => (Scalar::Bf16, 8192),
            DType::F16 => (Scalar::F16, 8192),
            DType::F64 => (Scalar::F64, 4096),
            _ => (Scalar::F32, 4096),
        };
        let tf32 = scalar == Scalar::F32 && cuda::products() == cuda::Products::Tf32;
        let flops = selftest::product_flops(gpu, [scalar; 2], tf32, size)?;
        let kind = if tf32 { "tf32".into() } else { scalar.to_string() };
        let memory = Row::new("copy on the device", None, selftest::copy_bandwidth(gpu)? / 1e9, "GB/s");
        gpu.trim()?;
        Ok(Ceilings {
            arithmetic: Row::new(format!("product {size}^3, {kind}"), None, flops / 1e12, "TFLOP/s"),
            memory,
        })
    }
}

/// One token through a model that has computed nothing yet: kernels, libraries and tables are opened on the way.
fn first_logits(model: &Model) -> anyhow::Result<Row> {
    let begin = Instant::now();
    host_logits(model, &Input::row(&random_ids(model, 64))?, &mut model.new_state(1)?)?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Row::new("first logits, 64 tokens, weights in place", Some(seconds), 1.0 / seconds, "1/s"))
}

fn host_logits(model: &Model, input: &Input, state: &mut ModelState) -> anyhow::Result<Vec<f32>> {
    let out = no_grad(|| model.forward(input, Some(state), &decode::last()))?;
    let logits = out.logits.ok_or_else(|| Failure::runtime("the model returned no logits"))?;
    on_host(logits.tensor())
}

fn on_host(logits: &Tensor) -> anyhow::Result<Vec<f32>> {
    Ok(logits.to_dtype(DType::F32)?.to_vec()?)
}

fn wait(device: &Device) -> anyhow::Result<()> {
    if let Device::Cuda(ordinal) = device {
        Gpu::open(*ordinal)?.synchronize()?;
    }
    Ok(())
}

/// Lets the counters of memory begin here, with nothing cached from before.
fn reset_peaks(device: &Device) -> anyhow::Result<()> {
    if let Device::Cuda(ordinal) = device {
        let gpu = Gpu::open(*ordinal)?;
        gpu.trim()?;
        gpu.reset_peaks();
    }
    Ok(())
}

/// The most memory that was used and held since [`reset_peaks`]; nothing for the CPU.
fn peaks(device: &Device) -> anyhow::Result<Vec<Row>> {
    let Device::Cuda(ordinal) = device else { return Ok(Vec::new()) };
    let stats = Gpu::open(*ordinal)?.memory();
    let row = |what: &str, bytes: usize| Row::new(what, None, bytes as f64 / (1u64 << 30) as f64, "GiB");
    Ok(vec![
        row("  memory in use at most", stats.peak_in_use),
        row("  memory held at most, with what the pool keeps", stats.peak_held),
    ])
}
