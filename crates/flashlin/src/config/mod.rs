//! Model configurations: `config.json` as Hugging Face writes it, read into a typed struct per family.
//!
//! Policy: a key either changes results, is a hint (kept on save, no effect on results), or is refused with what
//! is supported. Every key of a family stands in one table (`config_keys!`), from which parsing, defaults,
//! docs and the nearest-name message for unknown keys come. Loading keeps the raw map, so that saving loses
//! nothing.

mod attn;
mod base;
mod generic;
mod json;
mod table;

use std::{path::Path, sync::Arc};

pub use attn::AttentionSpec;
pub use base::BaseConfig;
pub use generic::GENERIC_KEYS;
pub use json::parse_json;
pub(crate) use table::config_keys;
pub use table::{Effect, KeyInfo, Map};

use crate::{
    Error, Result, files,
    registry::{FamilyConfig, ModelFamily, find_family},
};

/// The configuration of one model: its family, the typed values, and the raw map it came from.
#[derive(Clone)]
pub struct Config {
    family: &'static dyn ModelFamily,
    typed: Arc<dyn FamilyConfig>,
    raw: Map,
}

impl Config {
    /// Reads and checks a `config.json` map.
    ///
    /// # Errors
    /// An unknown `model_type`, an unknown or unsupported key, a wrong type, or sizes that cannot be.
    pub fn from_json(raw: Map) -> Result<Config> {
        let model_type = raw.get("model_type").and_then(|v| v.as_str()).ok_or_else(|| {
            Error::config(
                "model_type",
                "is missing; expected the name of a model family, see `flashlin models`",
            )
        })?;
        let family = find_family(model_type)?;
        Self::with_family(family, raw)
    }

    /// As [`Config::from_json`], for a family of the caller's own.
    ///
    /// # Errors
    /// As [`Config::from_json`], but for the model type.
    pub fn with_family(family: &'static dyn ModelFamily, raw: Map) -> Result<Config> {
        table::check_known(family, &raw)?;
        let typed = family.parse(&raw)?;
        typed.base().check(&BaseConfig::with_defaults(&family.defaults(), &Map::new())?)?;
        typed.check()?;
        Ok(Config { family, typed, raw })
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// As [`Config::from_json`], and I/O or syntax errors that name the file.
    pub fn load(path: &Path) -> Result<Config> {
        let map: Map = files::read_json(path, "model configuration")?;
        Self::from_json(map).map_err(|e| e.in_file(path))
    }

    /// The map to write as `config.json`: what was read, hints included.
    pub fn to_json(&self) -> Map {
        self.raw.clone()
    }

    /// The family's name (`gla`, `gated_deltanet`, ...).
    pub fn model_type(&self) -> &'static str {
        self.family.model_type()
    }

    /// The family.
    pub fn family(&self) -> &'static dyn ModelFamily {
        self.family
    }

    /// What all families share.
    pub fn base(&self) -> &BaseConfig {
        self.typed.base()
    }

    /// The typed configuration.
    pub(crate) fn typed(&self) -> &dyn FamilyConfig {
        &*self.typed
    }

    /// A copy with some keys replaced (the vocabulary of a tokenizer, a preset's size).
    ///
    /// # Errors
    /// As [`Config::from_json`].
    pub fn with(&self, changes: impl IntoIterator<Item = (String, serde_json::Value)>) -> Result<Config> {
        let mut raw = self.raw.clone();
        raw.extend(changes);
        Self::with_family(self.family, raw)
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Config({})", serde_json::Value::Object(self.raw.clone()))
    }
}

#[cfg(test)]
mod tests;
