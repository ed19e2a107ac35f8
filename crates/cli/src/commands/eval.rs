//! `flashlin eval`: how good a model is.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use flashlin::{DType, Mode, Model, tokenizer::Tokenizer};
use flashlin_eval::ppl::{Perplexity, PplOptions, perplexity};
use flashlin_train::data::{Format, SourceConfig, TextUnit, read_text, texts};
use serde_json::json;

use crate::{args::Context, failure::Failure, table::thousands};

/// Evaluate a model
#[derive(Debug, Args)]
pub struct Eval {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Ppl(Ppl),
}

impl Eval {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        match self.what {
            What::Ppl(ppl) => ppl.run(ctx),
        }
    }
}

/// Perplexity and bits per byte on text or jsonl files; long documents roll with a carried state
#[derive(Debug, Args)]
struct Ppl {
    /// Model folder or hub id
    model: String,
    /// Text (`.txt`: a file is a document), jsonl or parquet files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Format of the files, whatever their names: text, jsonl or parquet
    #[arg(long, value_parser = parse_format)]
    format: Option<Format>,
    /// Field or column of jsonl and parquet files that holds the text [default: text, else content]
    #[arg(long)]
    field: Option<String>,
    /// The part of each file to read, as shares of its length, e.g. `0.9:1`
    #[arg(long, value_name = "FROM:TO", value_parser = parse_range)]
    range: Option<[f64; 2]>,
    /// Stop after about this many predicted tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    /// Tokens of one forward pass; the result does not depend on it
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    /// Put a BOS before each document (true or false) [default: as tokenizer.json asks]
    #[arg(long)]
    bos: Option<bool>,
    /// Form of the recurrences: auto, chunk or recurrent
    #[arg(long, default_value = "auto", value_parser = |s: &str| s.parse::<Mode>().map_err(|e| e.to_string()))]
    mode: Mode,
    /// Type to compute in [default: that of the model]
    #[arg(long)]
    dtype: Option<String>,
    #[command(flatten)]
    device: super::DeviceArgs,
    #[command(flatten)]
    hub: super::HubArgs,
}

fn parse_format(name: &str) -> Result<Format, String> {
    match name {
        "text" => Ok(Format::Text),
        "jsonl" => Ok(Format::Jsonl),
        "parquet" => Ok(Format::Parquet),
        _ => Err("expected text, jsonl or parquet".into()),
    }
}

fn parse_range(text: &str) -> Result<[f64; 2], String> {
    let parts = text.split_once(':').and_then(|(a, b)| Some([a.parse().ok()?, b.parse().ok()?]));
    parts.filter(|[a, b]| 0.0 <= *a && a < b && *b <= 1.0).ok_or_else(|| "expected FROM:TO inside 0:1".into())
}

impl Ppl {
    fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let dtype: Option<DType> =
            self.dtype.as_deref().map(|d| super::parse_dtype("--dtype", d)).transpose()?;
        if self.block == Some(0) {
            return Err(Failure::usage("--block: must be at least 1").into());
        }
        let device = self.device.open()?;
        let dir = self.hub.resolve(&self.model)?;
        let model = Model::load(&dir, dtype, &device)?;
        let tokenizer = Tokenizer::from_dir(&dir)?;
        let options =
            PplOptions { block: self.block, bos: self.bos, max_tokens: self.max_tokens, mode: self.mode };
        let documents = self.files.iter().map(|f| self.documents(f)).collect::<anyhow::Result<Vec<_>>>()?;
        let result = perplexity(&model, &tokenizer, documents.into_iter().flatten(), &options, |sum| {
            tracing::info!("{} tokens, {:.4} bits/byte", sum.tokens, sum.bits_per_byte());
        })?;
        print(ctx, &self.model, &result)
    }

    /// The documents of one file.
    fn documents(&self, file: &Path) -> anyhow::Result<Box<dyn Iterator<Item = anyhow::Result<String>>>> {
        let mut source = SourceConfig::new([file]);
        source.format = self.format;
        source.field.clone_from(&self.field);
        source.range = self.range.unwrap_or(source.range);
        let by_name = || Format::of_extension(file.extension()?.to_str()?);
        let format = self.format.or_else(by_name).or(file.is_file().then_some(Format::Text));
        source.format = format;
        source.validate(&file.display().to_string())?;
        if format == Some(Format::Text) && source.unit == TextUnit::File {
            // One document, read when its turn comes.
            return Ok(Box::new(std::iter::once_with(move || Ok(read_text(&source)?))));
        }
        Ok(Box::new(texts(&source)?.map(|t| Ok(t?))))
    }
}

fn print(ctx: &Context, model: &str, r: &Perplexity) -> anyhow::Result<()> {
    if ctx.out.json {
        return ctx.out.value(&json!({
            "model": model, "documents": r.documents, "tokens": r.tokens, "bytes": r.bytes, "nats": r.nats,
            "loss": r.loss(), "perplexity": r.perplexity(), "bits_per_byte": r.bits_per_byte(),
        }));
    }
    ctx.out.line(format!(
        "bits/byte   {:.4}\nperplexity  {:.4} a token\nloss        {:.4} nats a token\nmeasured on {} tokens, {} bytes, {} documents",
        r.bits_per_byte(), r.perplexity(), r.loss(), thousands(r.tokens), thousands(r.bytes), thousands(r.documents),
    ))
}
