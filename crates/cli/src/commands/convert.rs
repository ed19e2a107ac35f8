//! `flashlin convert`: checkpoints of other projects.

use std::path::PathBuf;

use clap::Args;
use flashlin::{
    config::Map,
    convert::{Layout, Options, convert},
};

use crate::{args::Context, failure::Failure};

/// Make a model of a checkpoint of another project: RWKV-7 and RWKV-6 (.pth), Mamba and Mamba-2 (pytorch_model.bin), Llama and Mistral
#[derive(Debug, Args)]
pub struct Convert {
    /// A .pth, .pt, .bin or safetensors file, or a folder with one and its config.json. Nothing in it is executed
    source: PathBuf,
    /// The folder to write; must not hold a model yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Layout of the source: rwkv7, rwkv6, mamba, mamba2 or llama; without it, what the names of its tensors say
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// Type of the weights: f32, bf16, f16 or f64; without it, that of the source
    #[arg(long)]
    dtype: Option<String>,
    /// Llama and Mistral: a family whose mixer takes the place of attention, to be trained on
    #[arg(long, value_name = "FAMILY")]
    to: Option<String>,
    /// Layers whose attention `--to` replaces, e.g. `0,2,5`; without it, all
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    layers: Vec<usize>,
    /// Set a key of the new config.json, e.g. `--set expand_k=1.0`; the value is JSON, or else a string
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Seed of parameters that the source does not have
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

impl Convert {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        if self.out.join(flashlin::CONFIG_FILE).exists() {
            let message = format!("--out: {} holds a model already", self.out.display());
            return Err(Failure::usage(message).hint("choose another folder").into());
        }
        let mut keys = Map::new();
        super::new::apply_sets(&mut keys, &self.sets)?;
        let options = Options {
            layout: self.from.as_deref().map(str::parse::<Layout>).transpose()?,
            dtype: self.dtype.as_deref().map(|d| super::parse_dtype("--dtype", d)).transpose()?,
            family: self.to,
            layers: self.layers,
            keys,
            seed: self.seed,
        };
        let model = convert(&self.source, &options)?;
        model.save(&self.out)?;
        super::new::report(ctx, &self.out, &model, model.dtype())
    }
}
