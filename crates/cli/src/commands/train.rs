//! `flashlin train`: a run as a file describes it.

use std::path::PathBuf;

use clap::Args;
use flashlin_train::{Outcome, Report, TrainConfig};

use crate::{
    args::Context,
    overrides::Override,
    progress::{Progress, clock},
    stop,
    table::thousands,
};

/// Train a model as run.toml says; `--section.key VALUE` sets a key over the file
///
/// Every key is described in docs/run-toml.md. Ctrl-C saves a checkpoint, which `--resume` continues.
#[derive(Debug, Args)]
pub struct Train {
    /// The run's configuration
    #[arg(value_name = "run.toml")]
    config: PathBuf,
    /// Continue from the newest checkpoint in the output folder (`checkpoint.resume`)
    #[arg(long)]
    resume: bool,
    /// Where to train, over the file's `train.device`: cpu or cuda:N
    #[arg(long)]
    device: Option<String>,
}

impl Train {
    pub fn run(self, ctx: &Context, overrides: &[Override]) -> anyhow::Result<()> {
        let mut config = TrainConfig::load(&self.config, overrides)?;
        config.checkpoint.resume |= self.resume;
        if let Some(device) = self.device {
            config.train.device = device;
        }
        let stop = stop::on_signal()?;
        let mut progress = Progress::new(ctx.quiet);
        let report = flashlin_train::run(&config, &mut progress, &stop);
        progress.finish();
        let report = report?;
        if ctx.out.json { ctx.out.value(&report) } else { ctx.out.line(summary(&report)) }
    }
}

/// What a run did, in a line or two.
pub fn summary(r: &Report) -> String {
    let how = match r.outcome {
        Outcome::Finished => "finished",
        Outcome::DataEnded => "the data ended",
        _ => "interrupted; --resume continues",
    };
    let mut text =
        format!("{how}: {} steps, {} tokens in {}", r.steps, thousands(r.tokens), clock(r.seconds));
    if r.skipped_steps > 0 {
        text.push_str(&format!(", {} steps skipped (not finite)", r.skipped_steps));
    }
    if let Some(v) = &r.validation {
        text.push_str(&format!(
            "\nheld out, in rows as in training ({} tokens): {:.4} bits/byte, loss {:.4} a token",
            thousands(v.tokens),
            v.bits_per_byte,
            v.loss
        ));
    }
    text.push_str(&format!("\ncheckpoint: {}", r.checkpoint.display()));
    text
}
