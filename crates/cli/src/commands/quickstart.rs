//! `flashlin quickstart`: from nothing to a model that writes, in about three minutes.
//!
//! The text and the recipe are part of the binary, so it runs anywhere. The number of steps follows from a few timed ones, so that a
//! slower machine ends in time too.

use std::{path::PathBuf, sync::atomic::AtomicBool, time::Instant};

use clap::Args;
use flashlin::{DType, Model, tokenizer::Tokenizer};
use flashlin_eval::{
    ngram::Ngram,
    ppl::{Perplexity, PplOptions, perplexity},
};
use flashlin_train::{
    Outcome, Report, TrainConfig, Trainer,
    data::{SourceConfig, read_text},
};
use serde_json::json;

use crate::{
    args::Context,
    commands::{generate, train::summary},
    overrides::Override,
    progress::Progress,
    stop,
};

/// The recipe.
const RECIPE: &str = include_str!("../../../../runs/quickstart.toml");
/// The text (data/README.md says where it comes from).
const TEXT: &str = include_str!("../../../../data/shakespeare.txt");
/// Orders of the n-gram models to compare with.
const ORDERS: [usize; 3] = [3, 4, 5];
/// Steps that are timed, after one that is not.
const TIMED: u32 = 4;
/// How long to train.
const SECONDS: f64 = 130.0;

/// Train a small Gated DeltaNet on Shakespeare and let it write: about three minutes
///
/// `--section.key VALUE` sets a key of the recipe (runs/quickstart.toml). Ctrl-C saves a checkpoint, which `--resume` continues.
#[derive(Debug, Args)]
pub struct Quickstart {
    /// Folder for checkpoints and metrics
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart")]
    out: PathBuf,
    /// Continue an interrupted run, to the number of steps that it began with
    #[arg(long)]
    resume: bool,
    /// Train about this long [default: 130]; the number of steps follows from the machine's speed
    #[arg(long, value_name = "S", conflicts_with_all = ["steps", "resume"], value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// Train exactly this many steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Train on this text file instead (UTF-8)
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    text: Option<PathBuf>,
    /// Where to train and write: cpu or cuda:N [default: cpu; of a run to resume, where it began]
    #[arg(long)]
    device: Option<String>,
    /// What the model continues at the end
    #[arg(long, default_value = "PROSPERO.\n")]
    prompt: String,
    /// Tokens to write at the end
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_new_tokens: usize,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|s: &f64| s.is_finite() && *s > 0.0)
        .ok_or_else(|| "expected a number above 0".into())
}

impl Quickstart {
    pub fn run(self, ctx: &Context, overrides: &[Override]) -> anyhow::Result<()> {
        let stop = stop::on_signal()?;
        let mut progress = Progress::new(ctx.quiet);
        let config = self.config(overrides, &progress)?;
        let report = flashlin_train::run(&config, &mut progress, &stop);
        progress.finish();
        let report = report?;
        if report.outcome == Outcome::Stopped {
            let text = format!(
                "{}\ncontinue with: flashlin quickstart --resume --out {}",
                summary(&report),
                self.out.display()
            );
            return if ctx.out.json { ctx.out.value(&report) } else { ctx.out.line(text) };
        }
        self.finish(ctx, &config, &report, &stop)
    }

    /// The recipe with the output folder, the text and the number of steps in it; of a run to resume, what it began with.
    fn config(&self, overrides: &[Override], progress: &Progress) -> anyhow::Result<TrainConfig> {
        let begun = self.out.join(flashlin_train::checkpoint::CONFIG_FILE);
        if self.resume && begun.exists() {
            let mut config = TrainConfig::load(&begun, overrides)?;
            self.place(&mut config)?;
            config.checkpoint.dir.clone_from(&self.out);
            config.checkpoint.resume = true;
            if let Some(steps) = self.steps {
                config.train.steps = steps;
            }
            return Ok(config);
        }
        let mut config = TrainConfig::parse(RECIPE, overrides)?;
        self.place(&mut config)?;
        config.checkpoint.dir.clone_from(&self.out);
        config.checkpoint.resume = self.resume;
        let text = match &self.text {
            Some(path) => path.clone(),
            None => self.write_text()?,
        };
        config.data.sources = vec![SourceConfig::new([text])];
        config.train.steps = match self.steps {
            Some(n) => n,
            None => self.steps_in_time(&config, progress)?,
        };
        // A short run warms up briefly; `--schedule.warmup_steps` beyond that would be refused.
        let warmup = &mut config.schedule.warmup_steps;
        *warmup = (*warmup).min(config.train.steps / 4);
        Ok(config)
    }

    /// Sets the device, opened before anything is written.
    fn place(&self, config: &mut TrainConfig) -> anyhow::Result<()> {
        if let Some(device) = &self.device {
            config.train.device.clone_from(device);
        }
        Ok(config.train.device()?.open()?)
    }

    /// Puts the text beside the run, where a resumed run and the user find it.
    fn write_text(&self) -> anyhow::Result<PathBuf> {
        let path = self.out.join("shakespeare.txt");
        if !std::fs::read(&path).is_ok_and(|old| old == TEXT.as_bytes()) {
            flashlin::files::create_dir(&self.out)?;
            flashlin::files::write_bytes(&path, TEXT.as_bytes())?;
        }
        Ok(path)
    }

    /// How many steps fit into the time, from a few steps of a model that is thrown away.
    fn steps_in_time(&self, config: &TrainConfig, progress: &Progress) -> anyhow::Result<u64> {
        progress.say("training the tokenizer and measuring this machine's speed ...");
        let tokenizer = flashlin_train::make_tokenizer(config)?;
        let model = flashlin_train::build_model(config, &tokenizer, None)?;
        let mut trainer = Trainer::new(model, tokenizer, config)?;
        // A step that was queued on a GPU has taken its time once its status is read.
        let wait = |trainer: &mut Trainer<Model>| -> anyhow::Result<()> {
            if let Some(record) = trainer.train_step()? {
                record.status.read()?;
            }
            Ok(())
        };
        wait(&mut trainer)?;
        let start = Instant::now();
        for _ in 0..TIMED {
            wait(&mut trainer)?;
        }
        let step = start.elapsed().as_secs_f64() / f64::from(TIMED);
        Ok(((self.seconds.unwrap_or(SECONDS) / step) as u64).max(1))
    }

    /// Compares with n-grams and writes.
    fn finish(
        &self,
        ctx: &Context,
        config: &TrainConfig,
        report: &Report,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        let (train, held_out) = config.data.split();
        let read = |s: &[SourceConfig]| s.iter().map(read_text).collect::<Result<String, _>>();
        let (train, held_out) = (read(&train)?, read(&held_out)?);
        let model = Model::load(&report.checkpoint, Some(DType::F32), &config.train.device()?)?;
        let tokenizer = Tokenizer::from_dir(&report.checkpoint)?;
        let ours = measure(&model, &tokenizer, &held_out)?.bits_per_byte();
        let mut baselines = Vec::new();
        for order in ORDERS {
            baselines.push((order, Ngram::fit(train.as_bytes(), order)?.bits_per_byte(held_out.as_bytes())));
        }
        if ctx.out.json {
            let baselines: Vec<_> =
                baselines.iter().map(|(n, b)| json!({"order": n, "bits_per_byte": b})).collect();
            // `report.validation` is of rows as in training, this of all held-out text with the state carried on.
            return ctx.out.value(&json!({"report": report, "bits_per_byte": ours, "kneser_ney": baselines}));
        }
        ctx.out.line(summary(report))?;
        ctx.out.line(format!("\nheld-out bits per byte ({} bytes the model never saw)", held_out.len()))?;
        ctx.out.line(format!("  this model           {ours:.3} (state carried over all of them)"))?;
        for (order, bits) in baselines {
            ctx.out.line(format!("  Kneser-Ney, order {order}  {bits:.3}"))?;
        }
        ctx.out.line(format!("\nwrite more with: flashlin generate {}\n", report.checkpoint.display()))?;
        generate::sample(ctx, &model, &tokenizer, &self.prompt, self.max_new_tokens, stop)
    }
}

/// Rolls over the whole held-out text.
fn measure(model: &Model, tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Perplexity> {
    let documents = std::iter::once(Ok::<_, anyhow::Error>(text.to_string()));
    perplexity(model, tokenizer, documents, &PplOptions::default())
}
