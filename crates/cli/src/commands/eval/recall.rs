//! `flashlin eval mqar` and `flashlin eval copy`: tasks of token ids, drawn by a seed. They need no tokenizer and no data, and can
//! train the model that they measure.

use clap::Args;
use flashlin::{Config, Model};
use flashlin_eval::recall::{Recall, RecallResult, RecallTask, evaluate};
use flashlin_train::{
    config::{LoopConfig, OptimConfig},
    data::Batch,
    fit::fit,
    schedule::Schedule,
};
use serde_json::json;

use super::{
    bar::Bar,
    shared::{ItemArgs, ModelArgs, positive},
};
use crate::{
    args::Context,
    commands::new::{apply_sets, preset},
    failure::Failure,
    progress::say_on_stderr,
    stop,
    table::{Table, thousands},
};

/// Sequences that are asked where nothing says how many.
const SEQUENCES: usize = 256;

/// Multi-query associative recall: keys with values, then keys; accuracy of the values
#[derive(Debug, Args)]
pub struct Mqar {
    #[command(flatten)]
    common: Common,
    /// Pairs of key and value
    #[arg(long, value_name = "N", default_value_t = 8)]
    pairs: usize,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 64)]
    length: usize,
    /// Exponent of the gaps' power law: the smaller, the sooner keys are asked for
    #[arg(long, value_name = "A", default_value_t = 0.01)]
    power: f64,
}

/// Copying: random tokens, a mark, the same tokens again; accuracy of the copy
#[derive(Debug, Args)]
pub struct Copy {
    #[command(flatten)]
    common: Common,
    /// Tokens to copy
    #[arg(long, value_name = "N", default_value_t = 32)]
    length: usize,
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    model: ModelArgs,
    /// Ids that the task uses [default: the model's vocabulary; 256 with --train]
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Seed of the sequences
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Sequences of one forward pass [default: what memory allows]; no result depends on it
    #[arg(long, value_name = "N", value_parser = positive)]
    batch_size: Option<usize>,
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    items: ItemArgs,
}

/// Training the model first.
#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
struct TrainArgs {
    /// First train a model of this family on the task and save it as MODEL, which must not exist
    #[arg(long, value_name = "FAMILY")]
    train: Option<String>,
    /// Set a key of the trained model's config.json; without any, the family's preset `tiny` if it has one
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "train")]
    sets: Vec<String>,
    /// Training steps
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "train")]
    steps: u64,
    /// Sequences of a training step
    #[arg(long, value_name = "N", default_value_t = 64, requires = "train", value_parser = positive)]
    train_batch: usize,
    /// Peak learning rate
    #[arg(long, value_name = "LR", default_value_t = 2e-3, requires = "train")]
    lr: f64,
}

impl Mqar {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let what = Recall::Mqar { pairs: self.pairs, len: self.length, power: self.power };
        self.common.run(ctx, "mqar", what)
    }
}

impl Copy {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        self.common.run(ctx, "copy", Recall::Copy { len: self.length })
    }
}

impl Common {
    fn run(self, ctx: &Context, name: &str, what: Recall) -> anyhow::Result<()> {
        if let Some(family) = &self.train.train {
            self.train(ctx, family, RecallTask::new(what, self.vocab.unwrap_or(256), self.seed)?)?;
        }
        let loaded = self.model.open()?;
        let vocab = self.vocab.unwrap_or(loaded.model.config().base().vocab_size);
        let task = RecallTask::new(what, vocab, self.seed)?;
        let sequences = self.items.limit.unwrap_or(SEQUENCES);
        let decides = json!({ "task": what, "vocab": vocab, "seed": self.seed, "sequences": sequences });
        let none: [&str; 0] = [];
        let mut store = self.items.store(name, loaded.identity.clone(), &none, decides)?;
        let mut bar = Bar::new(ctx, "sequences");
        let (batch, mode) = (self.batch_size, self.model.mode);
        let result =
            evaluate(&loaded.model, &task, sequences, batch, mode, &mut store, &mut |p| bar.show(p))?;
        bar.finish();
        self.items.report(ctx, &store, result, table)
    }

    fn train(&self, ctx: &Context, family: &str, task: RecallTask) -> anyhow::Result<()> {
        let dir = std::path::Path::new(&self.model.model);
        if dir.exists() {
            let message = format!("--train: {} exists already", dir.display());
            return Err(Failure::usage(message).hint("name a new folder for the trained model").into());
        }
        let known = flashlin::find_family(family).map_err(|e| Failure::usage(format!("--train: {e}")))?;
        let tiny = known.presets().iter().any(|(name, _)| *name == "tiny").then_some("tiny");
        let mut map = preset(family, tiny)?;
        map.insert("vocab_size".into(), json!(self.vocab.unwrap_or(256)));
        apply_sets(&mut map, &self.train.sets)?;
        let config = Config::from_json(map)?;
        let (dtype, device) = self.model.compute()?;
        let model = Model::new(&config, dtype.unwrap_or(flashlin::DType::F32), &device, self.seed)?;
        let t = &self.train;
        let how = LoopConfig { steps: t.steps, ..LoopConfig::default() };
        let schedule =
            Schedule { lr: t.lr, steps: t.steps, warmup_steps: t.steps / 10, ..Schedule::default() };
        let stop = stop::on_signal()?;
        let say = |text: String| {
            if !ctx.quiet {
                say_on_stderr(&text)
            }
        };
        say(format!("training {} parameters for {} steps", thousands(model.num_params() as u64), t.steps));
        let batch = |i: u64| batch(&task, i * t.train_batch as u64, t.train_batch);
        let told = (t.steps / 10).max(1);
        fit(
            &model,
            &how,
            &OptimConfig::default(),
            &schedule,
            batch,
            told,
            |step, loss| say(format!("step {step}/{}  loss {loss:.3}", t.steps)),
            &stop,
        )?;
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Failure::runtime("interrupted; nothing was saved").into());
        }
        Ok(model.save(dir)?)
    }
}

/// Training sequences `first..first + n`.
fn batch(task: &RecallTask, first: u64, n: usize) -> Batch {
    let mut batch =
        Batch { tokens: Vec::new(), labels: Vec::new(), cu_seqlens: vec![0], targets: 0, target_bytes: 0 };
    for index in first..first + n as u64 {
        let s = task.sequence("train", index);
        batch.targets += s.labels.iter().filter(|l| **l >= 0).count() as u64;
        batch.tokens.extend(s.tokens);
        batch.labels.extend(s.labels);
        batch.cu_seqlens.push(batch.tokens.len());
    }
    batch
}

fn table(r: &RecallResult) -> Table {
    let mut table = Table::new(&["metric", "value", "over"]);
    table.row(["accuracy".into(), format!("{:.4}", r.accuracy), format!("{} places", thousands(r.places))]);
    table.row([
        "exact".into(),
        format!("{:.4}", r.exact),
        format!("{} sequences", thousands(r.sequences as u64)),
    ]);
    table.row(["loss".into(), format!("{:.4}", r.loss), String::new()]);
    table
}
