//! `flashlin eval ppl`.

use std::path::{Path, PathBuf};

use clap::Args;
use flashlin_eval::ppl::{Cut, Detokenize, Perplexity, PplOptions, measure};
use flashlin_train::data::{Format, SourceConfig, TextUnit, read_text, texts};
use serde_json::{Value, json};

use super::{
    bar::Bar,
    shared::{BatchArgs, ItemArgs, ModelArgs, positive},
};
use crate::{
    args::Context,
    table::{Table, thousands},
};

/// Perplexity and bits per byte on text, jsonl or parquet files; long documents roll with a carried state
#[derive(Debug, Args)]
pub struct Ppl {
    #[command(flatten)]
    model: ModelArgs,
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
    /// Put a BOS before each document (true or false) [default: as tokenizer.json asks]
    #[arg(long)]
    bos: Option<bool>,
    /// As lm-evaluation-harness: every token of a document counts, the first behind BOS (else EOS); adds word_perplexity
    #[arg(long, conflicts_with = "block_size")]
    rolling: bool,
    /// Rolling in windows in which the model reads at most N tokens [default: no limit]
    #[arg(long, value_name = "N", requires = "rolling", value_parser = positive)]
    max_length: Option<usize>,
    /// Documents one after the other, cut into texts of N tokens
    #[arg(long, value_name = "N")]
    block_size: Option<usize>,
    /// Also report by the number of tokens before a token, N to a bucket
    #[arg(long, value_name = "N", value_parser = positive)]
    bucket_size: Option<usize>,
    /// Undo the spacing of WikiText's pages before they are tokenised; words and bytes stay the pages' own
    #[arg(long)]
    wikitext: bool,
    /// Stop after N predicted tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    items: ItemArgs,
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
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let documents = self.files.iter().map(|f| self.documents(f)).collect::<anyhow::Result<Vec<_>>>()?;
        let loaded = self.model.open()?;
        let tokenizer = loaded.tokenizer()?;
        let options = self.options();
        let decides = json!({
            "cut": options.cut, "detokenize": options.detokenize, "bos": self.bos, "max_tokens": self.max_tokens,
            "bucket_size": self.bucket_size, "range": self.range, "field": self.field,
        });
        let mut store = self.items.store("ppl", loaded.identity.clone(), &self.files, decides)?;
        let mut bar = Bar::new(ctx, "texts");
        let all = documents.into_iter().flatten();
        let result = measure(&loaded.model, &tokenizer, all, &options, &mut store, &mut |p| bar.show(p))?;
        bar.finish();
        self.items.report(ctx, &store, result.as_ref().map(shown), |_| table(result.as_ref()))
    }

    fn options(&self) -> PplOptions {
        let cut = match (self.rolling, self.block_size) {
            (true, _) => Cut::Rolling { window: self.max_length },
            (_, Some(tokens)) => Cut::Blocks { tokens },
            _ => Cut::Documents,
        };
        PplOptions {
            cut,
            detokenize: if self.wikitext { Detokenize::Wikitext } else { Detokenize::No },
            bos: self.bos,
            max_tokens: self.max_tokens,
            limit: self.items.limit,
            bucket: self.bucket_size,
            batching: self.batch.batching(),
            mode: self.model.mode,
        }
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

fn shown(r: &Perplexity) -> Value {
    let buckets: Vec<Value> = r
        .buckets
        .iter()
        .map(|b| json!({ "tokens": b.tokens, "loss": b.loss(), "perplexity": b.perplexity() }))
        .collect();
    json!({
        "documents": r.documents, "tokens": r.tokens(), "bytes": r.bytes, "words": r.words, "nats": r.sum.nats,
        "loss": r.loss(), "perplexity": r.perplexity(), "bits_per_byte": r.bits_per_byte(),
        "byte_perplexity": r.byte_perplexity(), "word_perplexity": r.word_perplexity(), "buckets": buckets,
    })
}

fn table(r: Option<&Perplexity>) -> Table {
    let mut table = Table::new(&["metric", "value", "over"]);
    let Some(r) = r else { return table };
    let four = |x: f64| format!("{x:.4}");
    table.row(["bits_per_byte".into(), four(r.bits_per_byte()), format!("{} bytes", thousands(r.bytes))]);
    table.row(["byte_perplexity".into(), four(r.byte_perplexity()), String::new()]);
    if let (Some(p), Some(words)) = (r.word_perplexity(), r.words) {
        table.row(["word_perplexity".into(), four(p), format!("{} words", thousands(words))]);
    }
    table.row(["perplexity".into(), four(r.perplexity()), format!("{} tokens", thousands(r.tokens()))]);
    table.row(["loss".into(), four(r.loss()), format!("{} texts", thousands(r.documents))]);
    for (i, b) in r.buckets.iter().enumerate() {
        table.row([
            format!("perplexity, bucket {i}"),
            four(b.perplexity()),
            format!("{} tokens", thousands(b.tokens)),
        ]);
    }
    table
}
