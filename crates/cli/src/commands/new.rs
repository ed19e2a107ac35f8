//! `flashlin new`: a model with fresh weights.

use std::path::PathBuf;

use clap::Args;
use flashlin::{Config, DType, Model, config::Map};
use serde_json::{Value, json};

use crate::{args::Context, failure::Failure, table::thousands};

/// Make a model with fresh weights in a folder (Hugging Face layout)
#[derive(Debug, Args)]
pub struct New {
    /// Model family, see `flashlin models`
    model: String,
    /// A ready-made size of the family; without it, the family's default configuration
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// The folder to write; must not hold a model yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Set a key of config.json, e.g. `--set hidden_size=256`; the value is JSON, or else a string
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Type of the weights: f32, bf16, f16 or f64
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Seed of the initial weights
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Put this tokenizer beside the model: `bytes`, or a tokenizer.json or folder; `vocab_size` follows it unless set
    #[arg(long)]
    tokenizer: Option<String>,
}

impl New {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let dtype = super::parse_dtype("--dtype", &self.dtype)?;
        let mut map = preset(&self.model, self.preset.as_deref())?;
        let tokenizer = self.tokenizer.as_deref().map(super::open_tokenizer).transpose()?;
        if let Some(t) = &tokenizer {
            map.insert("vocab_size".into(), json!(t.vocab_size()));
            map.insert("bos_token_id".into(), json!(t.bos()));
            map.insert("eos_token_id".into(), json!(t.eos()));
        }
        apply_sets(&mut map, &self.sets)?;
        let config = Config::from_json(map)?;
        if let Some(t) = &tokenizer {
            t.check_vocab(config.base().vocab_size)?;
        }
        if self.out.join(flashlin::CONFIG_FILE).exists() {
            let message = format!("--out: {} holds a model already", self.out.display());
            return Err(Failure::usage(message).hint("choose another folder").into());
        }
        let model = Model::new(&config, dtype, &flashlin::Device::Cpu, self.seed)?;
        model.save(&self.out)?;
        if let Some(t) = &tokenizer {
            t.save(&self.out)?;
        }
        report(ctx, &self.out, &model, dtype)
    }
}

/// Sets keys as `--set KEY=VALUE` gives them.
pub fn apply_sets(map: &mut Map, sets: &[String]) -> anyhow::Result<()> {
    for set in sets {
        let (key, value) =
            set.split_once('=').ok_or_else(|| Failure::usage(format!("--set {set}: expected KEY=VALUE")))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()));
        map.insert(key.to_string(), value);
    }
    Ok(())
}

/// The configuration of a preset, or of the defaults.
pub fn preset(model: &str, preset: Option<&str>) -> anyhow::Result<Map> {
    let family = flashlin::find_family(model).map_err(|e| Failure::usage(e.to_string()))?;
    let presets = family.presets();
    let mut map = match preset {
        None => Map::new(),
        Some(name) => {
            let found = presets.iter().find(|(n, _)| *n == name);
            let names: Vec<&str> = presets.iter().map(|(n, _)| *n).collect();
            found.map(|(_, map)| map.clone()).ok_or_else(|| {
                Failure::usage(format!("--preset: {model} has no `{name}`"))
                    .hint(format!("presets: {}", names.join(", ")))
            })?
        }
    };
    map.shift_insert(0, "model_type".into(), json!(model));
    Ok(map)
}

/// Says what was written.
pub fn report(ctx: &Context, dir: &std::path::Path, model: &Model, dtype: DType) -> anyhow::Result<()> {
    let parameters = model.num_params() as u64;
    if ctx.out.json {
        let dir = dir.display().to_string();
        return ctx.out.value(&json!({"dir": dir, "parameters": parameters, "dtype": dtype.to_string()}));
    }
    let name = model.config().model_type();
    ctx.out.line(format!("{}: {name} with {} parameters in {dtype}", dir.display(), thousands(parameters)))
}
