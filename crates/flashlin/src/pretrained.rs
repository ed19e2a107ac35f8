//! Models on disk: `config.json`, weights and `generation_config.json` in one folder, as Hugging Face lays them out.

use std::path::Path;

use flashlin_tensor::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::{
    Config, Error, Model, Result, files,
    weights::{self, DEFAULT_SHARD_BYTES, LoadOptions, WeightMap},
};

/// The model's configuration.
pub const CONFIG_FILE: &str = "config.json";
/// How to generate with it.
pub const GENERATION_FILE: &str = "generation_config.json";

impl Model {
    /// Loads a model from a folder. Without a `dtype` the configuration's is used, else that of the weights. Weights of
    /// that dtype stay views of the mapped files.
    ///
    /// # Errors
    /// A missing, corrupt or unsupported configuration; weights that do not fit it exactly.
    pub fn load(dir: &Path, dtype: Option<DType>, device: &Device) -> Result<Model> {
        Self::load_with(dir, dtype, device, LoadOptions::default())
    }

    /// As [`Model::load`], with options.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with(
        dir: &Path,
        dtype: Option<DType>,
        device: &Device,
        options: LoadOptions,
    ) -> Result<Model> {
        let config = Config::load(&dir.join(CONFIG_FILE))?;
        let map = WeightMap::open(dir)?;
        let dtype = match dtype {
            Some(d) => d,
            None => saved_dtype(&config)?.unwrap_or_else(|| map.main_dtype()),
        };
        let mut model = Model::blank_within(&config, dtype, device, map.bytes()).map_err(|e| match e {
            Error::Weights { problem, .. } => Error::Weights { path: dir.to_path_buf(), problem },
            other => other.in_file(&dir.join(CONFIG_FILE)),
        })?;
        weights::load_into(model.params(), model.tied_keys(), &map, options)?;
        model.adopt_generation_config(dir)?;
        Ok(model)
    }

    /// Keeps the `generation_config.json` of a folder, if it has one: [`Model::save`] writes it again, keys that nothing here knows
    /// included. [`Model::load`] does this by itself.
    ///
    /// # Errors
    /// A file that cannot be read or is no JSON object.
    pub fn adopt_generation_config(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(GENERATION_FILE);
        if path.exists() {
            self.generation = Some(files::read_json(&path, "generation config")?);
        }
        Ok(())
    }

    /// Saves the model into a folder, which is created. Loading it again gives the same bits.
    ///
    /// # Errors
    /// When a file cannot be written; its path is named, and what was there before stays whole.
    pub fn save(&self, dir: &Path) -> Result<()> {
        files::create_dir(dir)?;
        let tensors: Vec<(String, Tensor)> =
            self.params().iter().map(|p| (p.name().to_string(), p.tensor())).collect();
        weights::save(dir, &tensors, None, DEFAULT_SHARD_BYTES)?;
        files::write_json(&dir.join(GENERATION_FILE), &self.generation_config())?;
        files::write_json(&dir.join(CONFIG_FILE), &self.saved_config())
    }

    /// The configuration as saved: what was read, and what says how to load it.
    fn saved_config(&self) -> Value {
        let mut map = self.config().to_json();
        map.insert("architectures".into(), json!([self.config().family().architecture()]));
        map.remove("torch_dtype");
        map.insert("dtype".into(), self.dtype().torch_name().into());
        Value::Object(map)
    }

    /// What was loaded, else what the configuration says of generation.
    fn generation_config(&self) -> Value {
        if let Some(loaded) = &self.generation {
            return Value::Object(loaded.clone());
        }
        let base = self.config().base();
        let mut map = serde_json::Map::new();
        if let Some(bos) = base.bos_token_id {
            map.insert("bos_token_id".into(), bos.into());
        }
        map.insert("eos_token_id".into(), base.eos_token_id.clone());
        if let Some(pad) = base.pad_token_id {
            map.insert("pad_token_id".into(), pad.into());
        }
        map.insert("use_cache".into(), true.into());
        Value::Object(map)
    }
}

/// The dtype that the configuration names, under either key.
fn saved_dtype(config: &Config) -> Result<Option<DType>> {
    let raw = config.to_json();
    let named = ["dtype", "torch_dtype"].into_iter().find_map(|k| Some((k, raw.get(k)?.as_str()?)));
    let Some((key, name)) = named else { return Ok(None) };
    match DType::parse(name).filter(|d| d.is_float()) {
        Some(d) => Ok(Some(d)),
        None => {
            Err(Error::config(key, format!("is `{name}`, expected float32, bfloat16, float16 or float64")))
        }
    }
}
