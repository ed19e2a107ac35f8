//! `flashlin bench gpu`: the operators of the recurrent families on a GPU, at the shapes that the peers are measured at.
//!
//! Policy: an operator is first compared with the CPU on a shorter sequence with the same heads' sizes, then timed as a user calls it: everything from the raw
//! arguments to the result (cumulative sums, gates, norms of q and k, allocations), between events on the stream; the median of the runs. A forward's rate counts
//! the least that it must move: its inputs and its output.

use std::sync::{Arc, Mutex};

use clap::{Args, ValueEnum};
use flashlin_cuda::{Gpu, selftest};
use flashlin_ops::{
    PackedSeqs, SeqOutput,
    decay::{self, DecayArgs},
    delta::{self, DeltaArgs},
};
use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Philox, Tensor, Var, no_grad};

use super::{Row, check};
use crate::{args::Context, commands::DeviceArgs, failure::Failure};

/// Recurrent operators on a GPU at the benchmarks' shapes
#[derive(Debug, Args)]
pub struct GpuBench {
    #[command(flatten)]
    device: DeviceArgs,
    /// Which operators
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["simple-gla", "retention", "gated-delta-rule", "delta-rule", "gla", "kda"])]
    ops: Vec<Op>,
    /// Batch x tokens x heads, or batch x tokens x key heads / value heads; several packed sequences as 4*8192
    #[arg(long, value_delimiter = ',', default_values = ["1x8192x96", "2x16384x16", "1x32768x64", "1x8192x64"])]
    shapes: Vec<String>,
    /// K, the width of keys
    #[arg(long, default_value_t = 128)]
    key_dim: usize,
    /// V, the width of values
    #[arg(long, default_value_t = 128)]
    value_dim: usize,
    /// Type of the inputs: bf16, f16 or f32
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// Time the forward alone
    #[arg(long)]
    forward_only: bool,
    /// Runs to take the median of
    #[arg(long, default_value_t = 20)]
    runs: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    SimpleGla,
    Retention,
    GatedDeltaRule,
    DeltaRule,
    Gla,
    Kda,
}

/// Batch, tokens of a row, heads of keys and of values; packed sequences of equal length.
#[derive(Clone, Debug)]
struct Shape {
    text: String,
    batch: usize,
    tokens: usize,
    heads: usize,
    value_heads: usize,
    packed: Option<PackedSeqs>,
}

impl std::str::FromStr for Shape {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Shape, Failure> {
        let bad = || {
            Failure::usage(format!("--shapes: `{text}` is none of 1x8192x64, 1x8192x16/64, 1x4*8192x16/64"))
        };
        let number = |s: &str| s.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(bad);
        let [batch, tokens, heads] = text.split('x').collect::<Vec<_>>()[..] else { return Err(bad()) };
        let (batch, heads) = (number(batch)?, heads.split_once('/').unwrap_or((heads, heads)));
        let (packed, tokens) = match tokens.split_once('*') {
            Some((n, each)) => {
                (Some(PackedSeqs::from_lens(&vec![number(each)?; number(n)?])), number(n)? * number(each)?)
            }
            None => (None, number(tokens)?),
        };
        let (heads, value_heads) = (number(heads.0)?, number(heads.1)?);
        if !value_heads.is_multiple_of(heads) || (packed.is_some() && batch != 1) {
            return Err(bad());
        }
        Ok(Shape { text: text.into(), batch, tokens, heads, value_heads, packed })
    }
}

/// Inputs of a call, and the gradient of its output.
struct Problem {
    op: Op,
    packed: Option<PackedSeqs>,
    inputs: Vec<Tensor>,
    weights: Tensor,
}

impl GpuBench {
    pub fn run(self, _: &Context) -> anyhow::Result<Vec<Row>> {
        let device = self.device.open()?;
        let Device::Cuda(ordinal) = device else {
            let failure = Failure::usage("bench gpu: --device cpu");
            return Err(failure.hint("name a GPU with --device cuda:N; `bench ops` measures the CPU").into());
        };
        let dtype = crate::commands::parse_dtype("--dtype", &self.dtype)?;
        let shapes = self.shapes.iter().map(|s| s.parse()).collect::<Result<Vec<Shape>, _>>()?;
        if self.runs == 0 || self.key_dim == 0 || self.value_dim == 0 {
            return Err(Failure::usage("--runs, --key-dim, --value-dim: each at least 1").into());
        }
        let gpu = Gpu::open(ordinal)?;
        let copy = Row::new("copy on the device", None, selftest::copy_bandwidth(gpu)? / 1e9, "GB/s");
        gpu.trim()?;
        let mut rows = vec![copy.clone()];
        for &op in &self.ops {
            self.verified(op, dtype, &device)?;
            for shape in &shapes {
                rows.extend(self.time(op, shape, dtype, (gpu, &device), &copy)?);
            }
        }
        Ok(rows)
    }

    fn time(
        &self,
        op: Op,
        shape: &Shape,
        dtype: DType,
        (gpu, device): (Gpu, &Device),
        copy: &Row,
    ) -> anyhow::Result<Vec<Row>> {
        let problem = self.problem(op, shape, dtype, device)?;
        let name = |what: &str| format!("{} {} {what}", op.name(), shape.text);
        let seconds = self.median(gpu, || problem.forward().map(drop))?;
        let bytes: usize =
            problem.inputs.iter().chain([&problem.weights]).map(|t| t.numel() * t.dtype().size()).sum();
        let row = |what: &str, s: f64, bytes: usize| {
            Row::new(name(what), Some(s), bytes as f64 / s / 1e9, "GB/s").of(copy)
        };
        let mut rows = vec![row("forward", seconds, bytes)];
        if !self.forward_only {
            let seconds = self.median(gpu, || problem.backward().map(drop))?;
            // Inputs are read twice, gradients written, the output written and its gradient read.
            rows.push(row("forward+backward", seconds, 3 * bytes));
        }
        drop(problem);
        gpu.trim()?;
        Ok(rows)
    }

    /// Seconds between events around one call, the median; kernels and memory are there before.
    fn median(&self, gpu: Gpu, mut call: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
        (0..3).try_for_each(|_| call())?;
        let (begin, end) = (gpu.timed_event()?, gpu.timed_event()?);
        let mut all = Vec::with_capacity(self.runs);
        for _ in 0..self.runs {
            begin.record(gpu.compute())?;
            call()?;
            end.record(gpu.compute())?;
            end.synchronize()?;
            all.push(f64::from(begin.elapsed_ms(&end)?) / 1e3);
        }
        all.sort_by(f64::total_cmp);
        Ok(all[all.len() / 2])
    }

    /// Output and gradients on the device equal those on the CPU in f32, within what the type allows.
    fn verified(&self, op: Op, dtype: DType, device: &Device) -> anyhow::Result<()> {
        let shape: Shape = "1x200x2/4".parse()?;
        let held = dtype;
        let on = |dtype: DType, device: &Device| -> anyhow::Result<Vec<Vec<f64>>> {
            // Both sides begin with values that the measured type holds.
            let problem = self.problem(op, &shape, held, &Device::Cpu)?;
            let to =
                |t: &Tensor| t.to_dtype(if t.rank() == 4 { dtype } else { t.dtype() })?.to_device(device);
            let inputs = problem.inputs.iter().map(to).collect::<Result<Vec<_>, _>>()?;
            let problem = Problem { inputs, weights: to(&problem.weights)?, ..problem };
            problem.backward()?.iter().map(|t| Ok(t.to_f64_vec()?)).collect()
        };
        let (got, want) = (on(dtype, device)?, on(DType::F32, &Device::Cpu)?);
        let allowed = 2.0 * flashlin_ops::conformance::tolerance(dtype);
        for (got, want) in got.iter().zip(&want) {
            check(&format!("{} on {device} against the CPU", op.name()), got, want, allowed)?;
        }
        Ok(())
    }

    fn problem(&self, op: Op, s: &Shape, dtype: DType, device: &Device) -> anyhow::Result<Problem> {
        let (b, t, h, hv, dk, dv) = (s.batch, s.tokens, s.heads, s.value_heads, self.key_dim, self.value_dim);
        let normal =
            |stream: u64, dims: &[usize], dtype| Philox::new(7, stream).randn(0.0, 1.0, dims, dtype, device);
        // Log-decays as trained gates have them: log-sigmoid over 16.
        let gate = |dims: &[usize]| normal(4, dims, DType::F32)?.softplus()?.affine(-1.0 / 16.0, 0.0);
        let mut inputs = vec![
            normal(1, &[b, t, h, dk], dtype)?,
            normal(2, &[b, t, h, dk], dtype)?,
            normal(3, &[b, t, hv, dv], dtype)?,
        ];
        match op {
            Op::Retention => {}
            Op::SimpleGla | Op::GatedDeltaRule => inputs.push(gate(&[b, t, hv])?),
            Op::Gla | Op::Kda => inputs.push(gate(&[b, t, hv, dk])?),
            Op::DeltaRule => {}
        }
        if matches!(op, Op::GatedDeltaRule | Op::DeltaRule | Op::Kda) {
            inputs.push(normal(5, &[b, t, hv], DType::F32)?.sigmoid()?);
        }
        Ok(Problem { op, packed: s.packed.clone(), inputs, weights: normal(6, &[b, t, hv, dv], dtype)? })
    }
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::SimpleGla => "simple_gla",
            Op::Retention => "retention",
            Op::GatedDeltaRule => "gated_delta_rule",
            Op::DeltaRule => "delta_rule",
            Op::Gla => "gla",
            Op::Kda => "kda",
        }
    }
}

/// Where the inputs come from: takes their gradients.
struct Source(Arc<Mutex<Vec<Option<Tensor>>>>);

impl Backward for Source {
    fn backward(
        self: Box<Self>,
        _: &mut BackwardCtx<'_>,
        grads: Vec<Option<Tensor>>,
    ) -> flashlin_ops::Result<Vec<Option<Tensor>>> {
        if let Ok(mut to) = self.0.lock() {
            *to = grads;
        }
        Ok(vec![None])
    }
}

impl Problem {
    fn call(&self, x: &[Var]) -> flashlin_ops::Result<SeqOutput> {
        let seqs = self.packed.as_ref();
        let decayed = |q, k, v| DecayArgs { seqs, ..DecayArgs::new(q, k, v) };
        let normed = |args| DeltaArgs { qk_l2norm: true, seqs, ..args };
        match (self.op, x) {
            (Op::Retention, [q, k, v]) => decay::retention(decayed(q, k, v)),
            (Op::SimpleGla, [q, k, v, g]) => decay::simple_gla(DecayArgs { g: Some(g), ..decayed(q, k, v) }),
            (Op::Gla, [q, k, v, gk]) => decay::gla(DecayArgs { gk: Some(gk), ..decayed(q, k, v) }),
            (Op::DeltaRule, [q, k, v, beta]) => {
                delta::delta_rule(normed(DeltaArgs::delta_rule(q, k, v, beta)))
            }
            (Op::GatedDeltaRule, [q, k, v, g, beta]) => {
                delta::delta_rule(normed(DeltaArgs::gated_delta_rule(q, k, v, g, beta)))
            }
            (Op::Kda, [q, k, v, g, beta]) => delta::delta_rule(normed(DeltaArgs::kda(q, k, v, g, beta))),
            _ => Err(flashlin_tensor::Error::invalid("bench", "inputs", "do not fit the operator")),
        }
    }

    fn forward(&self) -> anyhow::Result<Tensor> {
        let x: Vec<Var> = self.inputs.iter().cloned().map(Var::constant).collect();
        Ok(no_grad(|| self.call(&x))?.o.into_tensor())
    }

    /// Output, then the gradients of all inputs.
    fn backward(&self) -> anyhow::Result<Vec<Tensor>> {
        // Inputs come from an operation before, as in a model: it gets the gradients in their own types.
        let before = Var::leaf(Tensor::zeros(&[1], DType::F32, &self.weights.device())?);
        let given = Arc::new(Mutex::new(Vec::new()));
        let source = Source(given.clone());
        let x = Var::from_op("inputs", &[&before], self.inputs.clone(), || Box::new(source));
        let o = self.call(&x)?.o;
        Var::backward_with(vec![(&o, self.weights.clone())])?;
        let missing = || Failure::runtime(format!("{}: an input has no gradient", self.op.name()));
        let grads = std::mem::take(&mut *given.lock().map_err(|_| missing())?);
        let grads = grads.into_iter().map(|g| g.ok_or_else(missing)).collect::<Result<Vec<_>, _>>()?;
        Ok(std::iter::once(o.into_tensor()).chain(grads).collect())
    }
}
