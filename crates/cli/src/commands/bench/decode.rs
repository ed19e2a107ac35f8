//! `flashlin bench decode` and `generate`: one token at a time beside the read bandwidth, and prefill by number of threads.

use std::time::Instant;

use clap::Args;
use flashlin::{DType, ForwardOptions, Input, Logits, Model, ModelState};
use flashlin_tensor::{cpu::ceiling, no_grad};

use super::{ModelArgs, Row, best, check, random_ids, random_input};
use crate::{args::Context, failure::Failure};

/// Decoding: bytes of weights and state a second, against the best read bandwidth
#[derive(Debug, Args)]
pub struct DecodeBench {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens to decode in one run
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Runs to take the best of
    #[arg(long, default_value_t = 8)]
    runs: usize,
}

/// Prefill and decoding in tokens a second, prefill by number of threads
#[derive(Debug, Args)]
pub struct GenerateBench {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens to decode
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Runs to take the best of
    #[arg(long, default_value_t = 2)]
    runs: usize,
}

impl DecodeBench {
    pub fn run(self, ctx: &Context) -> anyhow::Result<Vec<Row>> {
        let model = self.model.build()?;
        steps_equal_one_pass(&model)?;
        let state_bytes = model.new_state(1)?.bytes();
        let weight_bytes: usize =
            model.params().iter().map(|p| p.dims().iter().product::<usize>() * p.dtype().size()).sum();
        // In turn, so that what else the machine does meets both alike.
        let (mut bandwidth, mut seconds) = (0f64, f64::INFINITY);
        for _ in 0..self.runs.max(1) {
            bandwidth = bandwidth.max(read_bandwidth(ctx)?);
            seconds = seconds.min(best(1, || decode(&model, self.tokens))? / self.tokens.max(1) as f64);
        }
        let bandwidth = Row::new("read bandwidth, best of 1 and all threads", None, bandwidth / 1e9, "GB/s");
        let rate = (weight_bytes + state_bytes) as f64 / seconds / 1e9;
        let name = format!("decode {}", self.model.name());
        Ok(vec![
            bandwidth.clone(),
            Row::new(&name, Some(seconds), rate, "GB/s").of(&bandwidth),
            Row::new(&name, Some(seconds), 1.0 / seconds, "tokens/s"),
            Row::new("  weights", None, weight_bytes as f64 / 1e6, "MB"),
            Row::new("  state", None, state_bytes as f64 / 1e6, "MB"),
        ])
    }
}

impl GenerateBench {
    pub fn run(self, ctx: &Context) -> anyhow::Result<Vec<Row>> {
        let model = self.model.build()?;
        steps_equal_one_pass(&model)?;
        let input = random_input(&model, self.prompt.max(1))?;
        let mut rows: Vec<Row> = Vec::new();
        let counts: Vec<usize> =
            (0..).map(|i| 1 << i).take_while(|n| *n < ctx.threads).chain([ctx.threads]).collect();
        for threads in counts {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            let seconds = pool.install(|| best(self.runs, || prefill(&model, &input).map(drop)))?;
            let name = format!("prefill {}, {} tokens, {threads} threads", self.model.name(), self.prompt);
            let row = Row::new(name, Some(seconds), self.prompt as f64 / seconds, "tokens/s");
            rows.push(match rows.first() {
                Some(one) => row.of(one),
                None => row,
            });
        }
        let start = Instant::now();
        prefill(&model, &input)?;
        let first = start.elapsed().as_secs_f64();
        rows.push(Row::new("first token", Some(first), 1.0 / first, "1/s"));
        let seconds = best(self.runs, || decode(&model, self.tokens))? / self.tokens.max(1) as f64;
        rows.push(Row::new(
            format!("decode {}", self.model.name()),
            Some(seconds),
            1.0 / seconds,
            "tokens/s",
        ));
        Ok(rows)
    }
}

/// The best of read loops with one thread and all, and several streams each, in bytes a second.
pub(super) fn read_bandwidth(ctx: &Context) -> anyhow::Result<f64> {
    let mut best = 0f64;
    for threads in [1, ctx.threads] {
        for streams in [1, 2, 4, 8] {
            best = best.max(ceiling::read_bandwidth(threads, streams)?);
        }
    }
    Ok(best)
}

pub(super) fn last() -> ForwardOptions {
    ForwardOptions { logits: Logits::Last(1), ..ForwardOptions::default() }
}

pub(super) fn prefill(model: &Model, input: &Input) -> anyhow::Result<ModelState> {
    let mut state = model.new_state(1)?;
    no_grad(|| model.forward(input, Some(&mut state), &last()))?;
    Ok(state)
}

fn decode(model: &Model, tokens: usize) -> anyhow::Result<()> {
    let mut state = model.new_state(1)?;
    for id in random_ids(model, tokens.max(1)) {
        no_grad(|| model.forward(&Input::row(&[id])?, Some(&mut state), &last()))?;
    }
    Ok(())
}

/// Decoding step by step gives the logits of one pass.
pub(super) fn steps_equal_one_pass(model: &Model) -> anyhow::Result<()> {
    const STEPS: usize = 12;
    let ids = random_ids(model, STEPS);
    let logits = |input: &Input, state: &mut ModelState| -> anyhow::Result<Vec<f64>> {
        let out = no_grad(|| model.forward(input, Some(state), &last()))?;
        let logits = out.logits.ok_or_else(|| Failure::runtime("the model returned no logits"))?;
        Ok(logits.tensor().to_f64_vec()?)
    };
    let want = logits(&Input::row(&ids)?, &mut model.new_state(1)?)?;
    let mut state = model.new_state(1)?;
    let mut got = Vec::new();
    for id in ids {
        got = logits(&Input::row(&[id])?, &mut state)?;
    }
    // A whole model rounds many times in low precision; the errors of its layers add as independent ones do.
    let depth = (model.blocks().len() as f64 / 4.0).max(1.0).sqrt();
    let allowed = match model.dtype() {
        DType::F32 | DType::F64 => 1e-5 * depth,
        _ => 4e-2 * depth,
    };
    check("logits, step by step against one pass", &got, &want, allowed)
}
