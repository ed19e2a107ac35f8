//! `generation_config.json`: how a model wants to be used.
//!
//! Policy: a setting that changes which tokens come out is followed or refused, never passed over. Keys that are about speed, caches
//! or output formats, and keys nobody knows, are left alone (and kept when the model is saved).

use std::path::Path;

use serde_json::Value;

use crate::{
    Config, Error, Result, files,
    pretrained::{CONFIG_FILE, GENERATION_FILE},
    sample::SamplingParams,
};

/// Tokens to add where nothing says how many.
pub const DEFAULT_NEW_TOKENS: usize = 128;

/// When a setting that nothing here implements changes results.
#[derive(Clone, Copy, PartialEq)]
enum Matters {
    Always,
    /// It filters candidates of a random choice.
    Sampling,
}

/// Settings of the peer's `generate` that change results and are not implemented, each with the value that turns it off (null,
/// false and empty collections always do). Settings of beam search are not listed: they do nothing with one beam.
const NOT_HERE: [(&str, Matters, Option<f64>); 27] = [
    ("num_beams", Matters::Always, Some(1.0)),
    ("num_beam_groups", Matters::Always, Some(1.0)),
    ("num_return_sequences", Matters::Always, Some(1.0)),
    ("constraints", Matters::Always, None),
    ("force_words_ids", Matters::Always, None),
    ("penalty_alpha", Matters::Always, Some(0.0)),
    ("dola_layers", Matters::Always, None),
    ("guidance_scale", Matters::Always, Some(1.0)),
    ("min_length", Matters::Always, Some(0.0)),
    ("min_new_tokens", Matters::Always, Some(0.0)),
    ("max_time", Matters::Always, None),
    ("no_repeat_ngram_size", Matters::Always, Some(0.0)),
    ("encoder_no_repeat_ngram_size", Matters::Always, Some(0.0)),
    ("encoder_repetition_penalty", Matters::Always, Some(1.0)),
    ("exponential_decay_length_penalty", Matters::Always, None),
    ("sequence_bias", Matters::Always, None),
    ("bad_words_ids", Matters::Always, None),
    ("suppress_tokens", Matters::Always, None),
    ("begin_suppress_tokens", Matters::Always, None),
    ("forced_bos_token_id", Matters::Always, None),
    ("forced_eos_token_id", Matters::Always, None),
    ("watermarking_config", Matters::Always, None),
    ("token_healing", Matters::Always, None),
    ("typical_p", Matters::Sampling, Some(1.0)),
    ("epsilon_cutoff", Matters::Sampling, Some(0.0)),
    ("eta_cutoff", Matters::Sampling, Some(0.0)),
    ("top_h", Matters::Sampling, None),
];

/// The defaults that a model's folder gives for generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end one.
    pub eos: Vec<u32>,
    /// Strings that end one.
    pub stop: Vec<String>,
    /// Sampling: greedy unless the file says `do_sample`.
    pub sampling: SamplingParams,
    /// Tokens to add, where the file says so.
    pub max_new_tokens: Option<usize>,
    /// Tokens of prompt and continuation together, where the file says so.
    pub max_length: Option<usize>,
}

impl GenerationConfig {
    /// What `config.json` alone says.
    pub fn from_config(config: &Config) -> GenerationConfig {
        let base = config.base();
        GenerationConfig { bos: base.bos_token_id, eos: base.eos_token_ids(), ..Default::default() }
    }

    /// Reads `generation_config.json` of a model's folder over what `config.json` says. Without the file, settings of generation that
    /// `config.json` itself holds (as older programs wrote them) count.
    ///
    /// # Errors
    /// A file that cannot be read, values that cannot be used, and settings that would change results and are not implemented
    /// (`num_beams` above 1, ...); the file and the key are named.
    pub fn load(dir: &Path, config: &Config) -> Result<GenerationConfig> {
        let mut out = Self::from_config(config);
        let own = dir.join(GENERATION_FILE);
        let (path, map) = match own.exists() {
            true => (own.clone(), files::read_json(&own, "generation config")?),
            false => (dir.join(CONFIG_FILE), config.to_json()),
        };
        check_supported(&map).and_then(|()| out.read(&map)).map_err(|e| e.in_file(&path))?;
        Ok(out)
    }

    /// Tokens to add to prompts of which the longest has `longest` tokens; `max_new_tokens` goes before `max_length`.
    ///
    /// # Errors
    /// A prompt that fills `max_length` already.
    pub fn new_tokens(&self, longest: usize) -> Result<usize> {
        match (self.max_new_tokens, self.max_length) {
            (Some(n), _) => Ok(n),
            (None, Some(whole)) if whole > longest => Ok(whole - longest),
            (None, Some(whole)) => {
                let problem = format!(
                    "has {longest} tokens, but the model's generation config ends at max_length {whole}"
                );
                Err(Error::argument("prompt", problem))
            }
            (None, None) => Ok(DEFAULT_NEW_TOKENS),
        }
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
        self.max_new_tokens = number(map, "max_new_tokens")?.map(|n| n as usize);
        self.max_length = number(map, "max_length")?.map(|n| n as usize);
        self.stop = match set(map, "stop_strings") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(v) => texts(v).ok_or_else(|| {
                Error::config("stop_strings", format!("is {v}, expected a string or a list of strings"))
            })?,
        };
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

/// Refuses settings that change results and are not implemented.
fn check_supported(map: &serde_json::Map<String, Value>) -> Result<()> {
    let samples = map.get("do_sample") == Some(&Value::Bool(true));
    for (key, matters, off) in NOT_HERE {
        let Some(value) = set(map, key) else { continue };
        let neutral = match value {
            Value::Bool(on) => !on,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            other => other.as_f64().is_some_and(|x| Some(x) == off),
        };
        if neutral || (matters == Matters::Sampling && !samples) {
            continue;
        }
        let supported = off.map_or("null".to_string(), |x| format!("{x}"));
        let problem = format!("is {value}, which is not supported; supported: {supported}");
        return Err(Error::config(key, problem));
    }
    Ok(())
}

fn texts(v: &Value) -> Option<Vec<String>> {
    v.as_array()?.iter().map(|s| s.as_str().map(String::from)).collect()
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
