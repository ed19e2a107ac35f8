//! `flashlin bench train`: a training step beside a dense product.

use clap::Args;
use flashlin::{ForwardOptions, Logits, Mode, Model};
use flashlin_tensor::{Tensor, no_grad};

use super::{ModelArgs, Row, arithmetic, best, check, random_ids};
use crate::{args::Context, failure::Failure};

/// Forward and backward of a model's loss, in FLOP/s (6 x non-embedding parameters x tokens), against a dense product
#[derive(Debug, Args)]
pub struct TrainBench {
    #[command(flatten)]
    model: ModelArgs,
    /// Rows of a batch
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens of a row
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// Runs to take the best of
    #[arg(long, default_value_t = 2)]
    runs: usize,
}

impl TrainBench {
    pub fn run(self, ctx: &Context) -> anyhow::Result<Vec<Row>> {
        if self.batch * self.tokens < 2 {
            return Err(Failure::usage("--batch and --tokens: need at least two tokens").into());
        }
        let model = self.model.build()?;
        same_loss(&model, self.model.dtype()?)?;
        let mut rows = arithmetic(ctx)?;
        let gemm = rows[0].clone();
        let ids: Vec<i64> = random_ids(&model, self.batch * self.tokens).into_iter().map(i64::from).collect();
        let ids = Tensor::from_vec(ids, &[self.batch, self.tokens])?;
        let seconds = best(self.runs, || {
            let loss = loss(&model, &ids, Mode::Auto)?;
            Ok(loss.backward()?)
        })?;
        let tokens = (self.batch * self.tokens) as f64;
        let flops = 6.0 * model.num_non_embedding_params() as f64 * tokens;
        let name = format!("train {}, {} x {} tokens", self.model.name(), self.batch, self.tokens);
        rows.push(Row::new(&name, Some(seconds), flops / seconds / 1e9, "GFLOP/s").of(&gemm));
        rows.push(Row::new(&name, Some(seconds), tokens / seconds, "tokens/s"));
        Ok(rows)
    }
}

fn loss(model: &Model, ids: &Tensor, mode: Mode) -> anyhow::Result<flashlin_tensor::Var> {
    loss_with(model, ids, mode, false)
}

pub(super) fn loss_with(
    model: &Model,
    ids: &Tensor,
    mode: Mode,
    checkpoint_layers: bool,
) -> anyhow::Result<flashlin_tensor::Var> {
    let input = flashlin::Input::ids(ids.clone()).with_labels(ids.clone());
    let options =
        ForwardOptions { mode, logits: Logits::None, checkpoint_layers, ..ForwardOptions::default() };
    let loss = model.forward(&input, None, &options)?.loss;
    Ok(loss.ok_or_else(|| Failure::runtime("the model returned no loss"))?)
}

/// The loss does not depend on the form of the recurrences.
pub(super) fn same_loss(model: &Model, dtype: flashlin::DType) -> anyhow::Result<()> {
    let ids: Vec<i64> = random_ids(model, 100).into_iter().map(i64::from).collect();
    let ids = Tensor::from_vec(ids, &[1, 100])?;
    let of = |mode| no_grad(|| Ok::<_, anyhow::Error>(loss(model, &ids, mode)?.tensor().to_scalar()?));
    let allowed = flashlin_ops::conformance::tolerance(dtype);
    check("loss, chunked against recurrent", &[of(Mode::Chunk)?], &[of(Mode::Recurrent)?], allowed)
}
