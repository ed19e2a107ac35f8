//! `flashlin eval choice`.

use std::path::PathBuf;

use clap::Args;
use flashlin_eval::{
    choice::{ChoiceOptions, ChoiceResult, Schema, Shots, evaluate, read},
    text::Encoder,
};
use serde_json::json;

use super::{
    bar::Bar,
    shared::{BatchArgs, ItemArgs, ModelArgs, positive},
};
use crate::{args::Context, table::Table};

/// Multiple choice by log-likelihood (ARC, HellaSwag, PIQA, plain jsonl): acc, acc_norm, acc_bytes
#[derive(Debug, Args)]
pub struct Choice {
    #[command(flatten)]
    model: ModelArgs,
    /// Questions: a jsonl file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Form of the lines: arc, hellaswag, piqa or plain [default: by the fields of the first line]
    #[arg(long)]
    schema: Option<Schema>,
    /// Answered questions before each question
    #[arg(long, value_name = "N", default_value_t = 0)]
    num_fewshot: usize,
    /// Where examples come from: a jsonl file [default: FILE without the question that is asked]
    #[arg(long, value_name = "FILE")]
    fewshot_file: Option<PathBuf>,
    /// How examples are chosen: random (by the seed) or first
    #[arg(long, value_name = "HOW", default_value = "random", value_parser = parse_shots)]
    fewshot_order: Shots,
    /// Seed of the choice of examples
    #[arg(long, value_name = "N", default_value_t = ChoiceOptions::default().seed)]
    seed: u64,
    /// What stands between a question and an answer
    #[arg(long, value_name = "TEXT", default_value = " ")]
    delimiter: String,
    /// Tokens that the model reads at most; longer contexts lose their beginning [default: no limit]
    #[arg(long, value_name = "N", value_parser = positive)]
    max_length: Option<usize>,
    /// Put a BOS before each context (true or false) [default: as tokenizer.json asks]
    #[arg(long)]
    bos: Option<bool>,
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    items: ItemArgs,
}

fn parse_shots(name: &str) -> Result<Shots, String> {
    match name {
        "random" => Ok(Shots::Random),
        "first" => Ok(Shots::First),
        _ => Err("expected random or first".into()),
    }
}

impl Choice {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let (docs, schema) = read(&self.file, self.schema)?;
        let pool = self.fewshot_file.as_ref().map(|f| read(f, Some(schema))).transpose()?;
        let loaded = self.model.open()?;
        let tokenizer = loaded.tokenizer()?;
        let encoder = Encoder::new(&tokenizer, self.bos)?;
        let options = ChoiceOptions {
            num_fewshot: self.num_fewshot,
            shots: self.fewshot_order,
            seed: self.seed,
            delimiter: self.delimiter.clone(),
            max_length: self.max_length,
            limit: self.items.limit,
            batching: self.batch.batching(),
            mode: self.model.mode,
        };
        let decides = json!({
            "schema": schema, "num_fewshot": self.num_fewshot, "fewshot_order": self.fewshot_order, "seed": self.seed,
            "delimiter": self.delimiter, "max_length": self.max_length, "bos": self.bos,
        });
        let files: Vec<&PathBuf> = std::iter::once(&self.file).chain(&self.fewshot_file).collect();
        let mut store = self.items.store("choice", loaded.identity.clone(), &files, decides)?;
        let mut bar = Bar::new(ctx, "questions");
        let pool = pool.as_ref().map(|(docs, _)| docs.as_slice());
        let result =
            evaluate(&loaded.model, &encoder, &docs, pool, &options, &mut store, &mut |p| bar.show(p))?;
        bar.finish();
        if let Some(n) = result.as_ref().map(|r| r.truncated).filter(|n| *n > 0) {
            tracing::warn!("{n} questions were cut to --max-length");
        }
        self.items.report(ctx, &store, result, table)
    }
}

fn table(r: &ChoiceResult) -> Table {
    let mut table = Table::new(&["metric", "value", "stderr", "questions"]);
    for (name, acc) in [("acc", r.acc), ("acc_norm", r.acc_norm), ("acc_bytes", r.acc_bytes)] {
        let stderr = acc.stderr.map_or(String::new(), |e| format!("{e:.4}"));
        table.row([name.into(), format!("{:.4}", acc.value), stderr, r.items.to_string()]);
    }
    table
}
