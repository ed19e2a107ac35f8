//! `flashlin show`: what a model folder holds.

use std::path::PathBuf;

use clap::Args;
use flashlin::{Model, tokenizer::TOKENIZER_FILE, tokenizer::Tokenizer};
use serde::Serialize;

use crate::{
    args::Context,
    table::{Table, bytes, thousands},
};

/// Show a model: module tree, parameters, size of its state
#[derive(Debug, Args)]
pub struct Show {
    /// Model folder or hub id
    model: String,
    /// Show every parameter
    #[arg(long)]
    parameters: bool,
    #[command(flatten)]
    hub: super::HubArgs,
}

#[derive(Serialize)]
struct Shown {
    dir: String,
    model_type: &'static str,
    dtype: String,
    parameters: u64,
    non_embedding_parameters: u64,
    weight_bytes: u64,
    tokenizer_size: Option<usize>,
    blocks: Vec<Vec<String>>,
    state: Vec<StateRow>,
    state_bytes: u64,
    tensors: Vec<Tensor>,
}

#[derive(Serialize)]
struct StateRow {
    name: String,
    kind: &'static str,
    layout: Option<String>,
    dims: Vec<usize>,
    dtype: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    dims: Vec<usize>,
    dtype: String,
    role: String,
}

impl Show {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let dir: PathBuf = self.hub.resolve(&self.model)?;
        let model = Model::load(&dir, None, &flashlin::Device::Cpu)?;
        let tokenizer = match dir.join(TOKENIZER_FILE).exists() {
            true => Some(Tokenizer::from_dir(&dir)?),
            false => None,
        };
        let shown = Shown::of(&dir, &model, tokenizer.as_ref())?;
        if ctx.out.json { ctx.out.value(&shown) } else { ctx.out.text(shown.text(self.parameters)) }
    }
}

impl Shown {
    fn of(dir: &std::path::Path, model: &Model, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Shown> {
        let describe = |block: &std::sync::Arc<flashlin::Block>| -> Vec<String> {
            block.parts.iter().map(|p| format!("{}: {}", p.key, p.layer.describe())).collect()
        };
        let state = model.new_state(1)?;
        let state_rows = state.named().into_iter().map(|(name, t)| StateRow {
            name,
            kind: t.spec.kind.name(),
            layout: t.spec.layout.map(|l| l.to_string()),
            dims: t.spec.dims.clone(),
            dtype: t.spec.dtype.to_string(),
            bytes: (t.value.tensor().numel() * t.spec.dtype.size()) as u64,
        });
        let tensors = model.params().iter().map(|p| Tensor {
            name: p.name().to_string(),
            dims: p.dims().to_vec(),
            dtype: p.dtype().to_string(),
            role: model.role(p.name()).map(|r| format!("{r:?}").to_lowercase()).unwrap_or_default(),
        });
        let size = |p: &std::sync::Arc<flashlin_tensor::Parameter>| {
            (p.dims().iter().product::<usize>() * p.dtype().size()) as u64
        };
        Ok(Shown {
            dir: dir.display().to_string(),
            model_type: model.config().model_type(),
            dtype: model.dtype().to_string(),
            parameters: model.num_params() as u64,
            non_embedding_parameters: model.num_non_embedding_params() as u64,
            weight_bytes: model.params().iter().map(size).sum(),
            tokenizer_size: tokenizer.map(Tokenizer::vocab_size),
            blocks: model.blocks().iter().map(describe).collect(),
            state: state_rows.collect(),
            state_bytes: state.bytes() as u64,
            tensors: tensors.collect(),
        })
    }

    fn text(&self, parameters: bool) -> String {
        let mut text = format!(
            "{}: {} in {}\nparameters  {} ({} without embeddings), {}\n",
            self.dir,
            self.model_type,
            self.dtype,
            thousands(self.parameters),
            thousands(self.non_embedding_parameters),
            bytes(self.weight_bytes),
        );
        match self.tokenizer_size {
            Some(n) => text.push_str(&format!("tokenizer   {} tokens\n", thousands(n as u64))),
            None => text.push_str("tokenizer   none\n"),
        }
        text.push_str(&format!("state       {} a sequence\n\n", bytes(self.state_bytes)));
        let mut first = 0;
        for i in 0..self.blocks.len() {
            // Runs of equal blocks are one entry.
            if i + 1 < self.blocks.len() && self.blocks[i + 1] == self.blocks[i] {
                continue;
            }
            let range = if first == i { format!("{i}") } else { format!("{first}-{i}") };
            text.push_str(&format!("block {range}\n"));
            self.blocks[i].iter().for_each(|part| text.push_str(&format!("  {part}\n")));
            first = i + 1;
        }
        if parameters {
            let mut table = Table::new(&["parameter", "shape", "dtype", "role"]);
            for t in &self.tensors {
                table.row([t.name.clone(), format!("{:?}", t.dims), t.dtype.clone(), t.role.clone()]);
            }
            text.push_str(&format!("\n{table}"));
        }
        text
    }
}
