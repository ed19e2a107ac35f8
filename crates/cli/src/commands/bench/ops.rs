//! `flashlin bench ops`: the chunked recurrences beside a dense product.

use clap::Args;
use flashlin_ops::{
    Mode, SeqOutput,
    decay::{self, DecayArgs},
    delta::{self, DeltaArgs},
};
use flashlin_tensor::{DType, Device, Philox, Tensor, Var, no_grad};

use super::{Row, arithmetic, best, check};
use crate::{args::Context, failure::Failure};

/// Chunked gla and gated delta rule, forward and backward, against a dense product
#[derive(Debug, Args)]
pub struct OpsBench {
    /// Tokens
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// Heads
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// Width of keys and values
    #[arg(long, default_value_t = 64)]
    dim: usize,
    /// Tokens of a chunk: 16, 32 or 64
    #[arg(long, default_value_t = 64)]
    chunk: usize,
    /// Runs to take the best of
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Also time 4096, 16384 and 65536 tokens: the cost of a token should not grow
    #[arg(long)]
    lengths: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Op {
    Gla,
    GatedDelta,
}

/// Inputs and weights of the loss.
struct Problem {
    op: Op,
    chunk: usize,
    inputs: Vec<Tensor>,
    weights: Tensor,
}

impl OpsBench {
    pub fn run(self, ctx: &Context) -> anyhow::Result<Vec<Row>> {
        if ![16, 32, 64].contains(&self.chunk) {
            return Err(Failure::usage(format!("--chunk: {} is none of 16, 32, 64", self.chunk)).into());
        }
        let mut rows = arithmetic(ctx)?;
        let gemm = rows[0].clone();
        for op in [Op::Gla, Op::GatedDelta] {
            self.problem(op, 3 * self.chunk + 7)?.check()?;
            let problem = self.problem(op, self.tokens)?;
            let [forward, backward] = self.flops(op, self.tokens);
            let seconds = best(self.runs, || problem.forward())?;
            let text = |what: &str, t: usize| {
                format!("{} {what}, T {t} H {} K=V {} C {}", op.name(), self.heads, self.dim, self.chunk)
            };
            let row = |what: &str, flops: f64, s: f64| {
                Row::new(text(what, self.tokens), Some(s), flops / s / 1e9, "GFLOP/s").of(&gemm)
            };
            rows.push(row("forward", forward, seconds));
            let seconds = best(self.runs, || problem.backward())?;
            rows.push(row("forward+backward", forward + backward, seconds));
            if self.lengths {
                for t in [4096, 16384, 65536] {
                    let long = self.problem(op, t)?;
                    let s = best(2, || long.forward())?;
                    rows.push(Row::new(text("forward", t), Some(s), s * 1e9 / t as f64, "ns/token"));
                }
            }
        }
        Ok(rows)
    }

    fn flops(&self, op: Op, t: usize) -> [f64; 2] {
        let (h, d, c) = (self.heads, self.dim, self.chunk);
        match op {
            Op::GatedDelta => delta::chunk_matrix_flops(t, h, d, d, c),
            Op::Gla => {
                // Pairs of tokens at or before each other only: the least that a chunked implementation multiplies.
                let forward = decay::chunk_matrix_flops(t, h, (d, d), c, true, false);
                [forward, decay::chunk_matrix_flops(t, h, (d, d), c, true, true) - forward]
            }
        }
    }

    fn problem(&self, op: Op, t: usize) -> anyhow::Result<Problem> {
        let (h, d) = (self.heads, self.dim);
        let normal = |stream: u64, dims: &[usize]| {
            Philox::new(7, stream).randn(0.0, 1.0, dims, DType::F32, &Device::Cpu)
        };
        // Log-decays as trained gates have them: log-sigmoid over 16.
        let gate = |stream, dims: &[usize]| normal(stream, dims)?.softplus()?.affine(-1.0 / 16.0, 0.0);
        let mut inputs =
            vec![normal(1, &[1, t, h, d])?, normal(2, &[1, t, h, d])?, normal(3, &[1, t, h, d])?];
        match op {
            Op::Gla => inputs.push(gate(4, &[1, t, h, d])?),
            Op::GatedDelta => inputs.extend([gate(4, &[1, t, h])?, normal(5, &[1, t, h])?.sigmoid()?]),
        }
        Ok(Problem { op, chunk: self.chunk, inputs, weights: normal(6, &[1, t, h, d])? })
    }
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::Gla => "gla",
            Op::GatedDelta => "gated_delta_rule",
        }
    }
}

impl Problem {
    fn call(&self, x: &[Var], mode: Mode) -> flashlin_ops::Result<SeqOutput> {
        match (self.op, x) {
            (Op::Gla, [q, k, v, gk]) => decay::decay_attention(DecayArgs {
                gk: Some(gk),
                mode,
                chunk_size: self.chunk,
                ..DecayArgs::new(q, k, v)
            }),
            (Op::GatedDelta, [q, k, v, g, beta]) => delta::delta_rule(DeltaArgs {
                qk_l2norm: true,
                mode,
                chunk_size: self.chunk,
                ..DeltaArgs::gated_delta_rule(q, k, v, g, beta)
            }),
            _ => Err(flashlin_tensor::Error::invalid("bench", "inputs", "do not fit the operator")),
        }
    }

    fn forward(&self) -> anyhow::Result<Tensor> {
        let x: Vec<Var> = self.inputs.iter().cloned().map(Var::constant).collect();
        Ok(no_grad(|| self.call(&x, Mode::Chunk))?.o.into_tensor())
    }

    fn backward(&self) -> anyhow::Result<()> {
        let x: Vec<Var> = self.inputs.iter().cloned().map(Var::leaf).collect();
        let o = self.call(&x, Mode::Chunk)?.o;
        Var::backward_with(vec![(&o, self.weights.clone())])?;
        Ok(())
    }

    /// Outputs and gradients of the chunked form equal those of the recurrence.
    fn check(&self) -> anyhow::Result<()> {
        let run = |mode| -> anyhow::Result<Vec<Vec<f64>>> {
            let x: Vec<Var> = self.inputs.iter().cloned().map(Var::leaf).collect();
            let o = self.call(&x, mode)?.o;
            let grads = Var::backward_with(vec![(&o, self.weights.clone())])?;
            let mut all = vec![o.tensor().to_f64_vec()?];
            for leaf in &x {
                let missing = || Failure::runtime(format!("{}: an input has no gradient", self.op.name()));
                all.push(grads.get(leaf).ok_or_else(missing)?.to_f64_vec()?);
            }
            Ok(all)
        };
        let allowed = 2.0 * flashlin_ops::conformance::tolerance(DType::F32);
        for (got, want) in run(Mode::Chunk)?.iter().zip(&run(Mode::Recurrent)?) {
            check(&format!("{}: chunked against recurrent", self.op.name()), got, want, allowed)?;
        }
        Ok(())
    }
}
