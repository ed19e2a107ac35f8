//! `generation_config.json`: how a model wants to be used.

use std::path::Path;

use serde_json::Value;

use crate::{Config, Error, Result, files, pretrained::GENERATION_FILE, sample::SamplingParams};

/// Settings that change results and that nothing here implements; a file that sets them is used without, with a warning.
const NOT_HERE: [&str; 9] = [
    "num_beams",
    "penalty_alpha",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
];

/// The defaults that a model's folder gives for generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end one.
    pub eos: Vec<u32>,
    /// Sampling: greedy unless the file says `do_sample`.
    pub sampling: SamplingParams,
    /// Tokens to add, where the file says so.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// What `config.json` alone says.
    pub fn from_config(config: &Config) -> GenerationConfig {
        let base = config.base();
        GenerationConfig { bos: base.bos_token_id, eos: base.eos_token_ids(), ..Default::default() }
    }

    /// Reads `generation_config.json` of a model's folder over what `config.json` says; without the file that is all.
    ///
    /// # Errors
    /// A file that cannot be read, or values that cannot be used; the file and the key are named.
    pub fn load(dir: &Path, config: &Config) -> Result<GenerationConfig> {
        let mut out = Self::from_config(config);
        let path = dir.join(GENERATION_FILE);
        if !path.exists() {
            return Ok(out);
        }
        let map: serde_json::Map<String, Value> = files::read_json(&path, "generation config")?;
        out.read(&map).map_err(|e| e.in_file(&path))?;
        for key in NOT_HERE {
            let neutral = |v: &Value| v.is_null() || v.as_f64().is_some_and(|x| x == 0.0 || x == 1.0);
            if map.get(key).is_some_and(|v| !neutral(v)) {
                tracing::warn!("{}: `{key}` is not supported and not used", path.display());
            }
        }
        Ok(out)
    }

    fn read(&mut self, map: &serde_json::Map<String, Value>) -> Result<()> {
        if let Some(v) = set(map, "bos_token_id") {
            self.bos = Some(id("bos_token_id", v)?);
        }
        match set(map, "eos_token_id") {
            Some(Value::Array(ids)) => {
                self.eos = ids.iter().map(|v| id("eos_token_id", v)).collect::<Result<_>>()?;
            }
            Some(v) => self.eos = vec![id("eos_token_id", v)?],
            None => {}
        }
        if let Some(n) = number(map, "max_new_tokens")? {
            self.max_new_tokens = Some(n as usize);
        }
        let s = &mut self.sampling;
        if let Some(x) = number(map, "repetition_penalty")? {
            s.repetition_penalty = x;
        }
        match set(map, "do_sample") {
            None | Some(Value::Bool(false)) => {}
            Some(Value::Bool(true)) => {
                // The defaults of Hugging Face's sampling.
                s.temperature = number(map, "temperature")?.unwrap_or(1.0);
                s.top_k = number(map, "top_k")?.unwrap_or(50.0) as usize;
                s.top_p = number(map, "top_p")?.unwrap_or(1.0);
                s.min_p = number(map, "min_p")?.unwrap_or(0.0);
            }
            Some(other) => {
                return Err(Error::config("do_sample", format!("is {other}, expected true or false")));
            }
        }
        s.validate().map_err(|e| match e {
            Error::Argument { argument, problem } => Error::config(argument, problem),
            other => other,
        })
    }
}

fn set<'a>(map: &'a serde_json::Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|v| !v.is_null())
}

fn id(key: &str, v: &Value) -> Result<u32> {
    let id = v.as_u64().and_then(|n| u32::try_from(n).ok());
    id.ok_or_else(|| Error::config(key, format!("is {v}, expected a token id")))
}

fn number(map: &serde_json::Map<String, Value>, key: &str) -> Result<Option<f64>> {
    let Some(v) = set(map, key) else { return Ok(None) };
    match v.as_f64().filter(|x| x.is_finite() && *x >= 0.0) {
        Some(x) => Ok(Some(x)),
        None => Err(Error::config(key, format!("is {v}, expected a number >= 0"))),
    }
}
