//! What all evaluations have in common: the model, how items are computed and kept, how a result is shown.

use std::path::{Path, PathBuf};

use clap::Args;
use flashlin::{DType, Device, Mode, Model, tokenizer::Tokenizer};
use flashlin_eval::{
    fingerprint,
    score::Batching,
    store::{Shard, Store},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{args::Context, table::Table};

/// The model to evaluate.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Model folder or hub id
    pub model: String,
    /// Form of the recurrences: auto, chunk or recurrent
    #[arg(long, default_value = "auto", value_parser = |s: &str| s.parse::<Mode>().map_err(|e| e.to_string()))]
    pub mode: Mode,
    /// Type to compute in [default: that of the model]
    #[arg(long)]
    dtype: Option<String>,
    #[command(flatten)]
    device: super::super::DeviceArgs,
    #[command(flatten)]
    hub: super::super::HubArgs,
}

/// A model that is ready.
pub struct Loaded {
    pub model: Model,
    pub dir: PathBuf,
    /// Part of the results' header.
    pub identity: Value,
}

impl ModelArgs {
    /// What to compute in, if that is said, and where.
    pub fn compute(&self) -> anyhow::Result<(Option<DType>, Device)> {
        let dtype = self.dtype.as_deref().map(|d| super::super::parse_dtype("--dtype", d)).transpose()?;
        Ok((dtype, self.device.open()?))
    }

    /// The model's folder.
    pub fn folder(&self) -> anyhow::Result<PathBuf> {
        self.hub.resolve(&self.model)
    }

    pub fn open(&self) -> anyhow::Result<Loaded> {
        let (dtype, device) = self.compute()?;
        let dir = self.folder()?;
        let model = Model::load(&dir, dtype, &device)?;
        let mut identity = fingerprint::model(&dir, &model)?;
        identity["products"] = json!(self.device.products);
        identity["mode"] = json!(self.mode.to_string());
        Ok(Loaded { model, dir, identity })
    }
}

impl Loaded {
    pub fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        Ok(Tokenizer::from_dir(&self.dir)?)
    }
}

/// Which items are computed here, and where they are kept.
#[derive(Debug, Args)]
pub struct ItemArgs {
    /// Only the first N items (ruler: of each task and length)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub limit: Option<usize>,
    /// Folder for finished items and results.json: a run that was killed goes on where it was
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Compute the I-th of N parts of the items; the processes share one --output
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    shard: Shard,
}

/// How items become passes.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// Sequences of one forward pass [default: what --pass-tokens allows]; no result depends on it
    #[arg(long, value_name = "N", value_parser = positive)]
    pub batch_size: Option<usize>,
    /// Tokens of one forward pass, longer texts go in pieces; no result depends on it
    #[arg(long, value_name = "N", default_value_t = Batching::default().tokens, value_parser = positive)]
    pub pass_tokens: usize,
}

/// A number above 0.
pub fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number above 0".into())
}

impl BatchArgs {
    pub fn batching(&self) -> Batching {
        Batching { requests: self.batch_size, tokens: self.pass_tokens }
    }
}

impl ItemArgs {
    /// Opens the store of an evaluation. `options` is what decides its results besides model and data.
    pub fn store(
        &self,
        task: &str,
        model: Value,
        data: &[impl AsRef<Path>],
        options: Value,
    ) -> anyhow::Result<Store> {
        let mut options = options;
        options["limit"] = json!(self.limit);
        let header: Map<String, Value> = fingerprint::header(task, model, data, options)?;
        Ok(Store::open(self.output.as_deref(), self.shard, header)?)
    }

    /// Shows a result, or how far this process came where others have items to do.
    pub fn report<R: Serialize>(
        &self,
        ctx: &Context,
        store: &Store,
        result: Option<R>,
        table: impl FnOnce(&R) -> Table,
    ) -> anyhow::Result<()> {
        let Some(result) = result else {
            let done = store.done();
            if ctx.out.json {
                return ctx.out.value(&json!({ "finished": false, "done": done }));
            }
            return ctx.out.line(format!("{done} items are done; the other shards' are not yet"));
        };
        let whole = store.conclude(&result)?;
        if ctx.out.json {
            return ctx.out.value(&whole);
        }
        ctx.out.text(table(&result).to_string())?;
        match &self.output {
            Some(dir) => {
                ctx.out.line(format!("\nkept in {}", dir.join(flashlin_eval::store::RESULTS_FILE).display()))
            }
            None => Ok(()),
        }
    }
}
