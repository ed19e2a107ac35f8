//! A run's configuration: `run.toml` plus overrides, every key documented and with its default in `sections.rs`.
//!
//! Policy: a key nobody knows is an error that names the nearest one; a value of the wrong type is an error that names the key.
//! The resolved configuration (all keys, defaults filled in) is written beside every checkpoint and reads back to the same run.

mod keys;
mod sections;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;
use toml::{Table, Value};

pub use keys::Key;
use keys::Section;
pub use sections::{
    Carry, CheckpointConfig, DataSection, EvalConfig, LogConfig, LoopConfig, ModelConfig, OptimConfig,
    ScheduleConfig,
};

use crate::{
    Error, Result,
    data::{DataConfig, SourceConfig},
    schedule::Schedule,
};

/// Everything that decides a training run.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct TrainConfig {
    /// What is trained.
    pub model: ModelConfig,
    /// What is read.
    pub data: DataSection,
    /// The loop.
    pub train: LoopConfig,
    /// The optimizer.
    pub optim: OptimConfig,
    /// The learning rate.
    pub schedule: ScheduleConfig,
    /// What is kept.
    pub checkpoint: CheckpointConfig,
    /// What is written while training.
    pub log: LogConfig,
    /// Validation.
    pub eval: EvalConfig,
}

/// Keys of one entry of `data.sources` and `data.validation`.
const SOURCE_KEYS: [&str; 6] = ["paths", "format", "unit", "field", "weight", "range"];

impl TrainConfig {
    /// Every key with its default and description, in the order of the file: the source of the reference in the docs.
    pub fn keys() -> Vec<Key> {
        [
            ModelConfig::keys(),
            DataSection::keys(),
            LoopConfig::keys(),
            OptimConfig::keys(),
            ScheduleConfig::keys(),
            CheckpointConfig::keys(),
            LogConfig::keys(),
            EvalConfig::keys(),
        ]
        .concat()
    }

    /// Reads a file, then applies overrides such as `("optim.eps", "1e-8")`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] where the file is no TOML, [`Error::Config`] for unknown keys and wrong values.
    pub fn load(path: &Path, overrides: &[(String, String)]) -> Result<TrainConfig> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "reading"))?;
        let table = text.parse::<Table>().map_err(|e| Error::file(path, e.to_string()))?;
        Self::from_table(table, overrides)
    }

    /// Reads TOML text, then applies overrides.
    ///
    /// # Errors
    /// As [`TrainConfig::load`].
    pub fn parse(text: &str, overrides: &[(String, String)]) -> Result<TrainConfig> {
        let table = text.parse::<Table>().map_err(|e| Error::config("run.toml", e.to_string()))?;
        Self::from_table(table, overrides)
    }

    fn from_table(mut table: Table, overrides: &[(String, String)]) -> Result<TrainConfig> {
        let keys = Self::keys();
        for (key, value) in overrides {
            override_key(&mut table, key, value, &keys)?;
        }
        check_sources(&table)?;
        let config = TrainConfig {
            model: read(&mut table, "model", &keys)?,
            data: read(&mut table, "data", &keys)?,
            train: read(&mut table, "train", &keys)?,
            optim: read(&mut table, "optim", &keys)?,
            schedule: read(&mut table, "schedule", &keys)?,
            checkpoint: read(&mut table, "checkpoint", &keys)?,
            log: read(&mut table, "log", &keys)?,
            eval: read(&mut table, "eval", &keys)?,
        };
        if let Some(key) = table.keys().next() {
            return Err(unknown(key, &keys));
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks values against each other. Errors are [`Error::Config`] and name the key.
    pub fn validate(&self) -> Result<()> {
        self.train.validate()?;
        self.optim.validate()?;
        self.log.validate()?;
        self.eval.validate()?;
        self.data.validate()?;
        self.data_config().validate()?;
        if self.data.prefetch > MAX_PREFETCH {
            let problem = format!("is {}, expected at most {MAX_PREFETCH} batches", self.data.prefetch);
            return Err(Error::config("data.prefetch", problem));
        }
        for (i, source) in self.data.validation.iter().enumerate() {
            source.validate(&format!("data.validation[{i}]"))?;
        }
        self.dtype()?;
        self.schedule().validate().map_err(|e| match e {
            Error::Config { key, problem } => Error::config(format!("schedule.{key}"), problem),
            other => other,
        })
    }

    /// Type of the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] when it is none that can be trained.
    pub fn dtype(&self) -> Result<flashlin_tensor::DType> {
        use flashlin_tensor::DType;
        DType::parse(&self.model.dtype)
            .filter(|d| matches!(d, DType::F32 | DType::BF16 | DType::F16))
            .ok_or_else(|| {
                Error::config("model.dtype", format!("`{}` is none of f32, bf16, f16", self.model.dtype))
            })
    }

    /// The learning-rate schedule over this run's steps.
    pub fn schedule(&self) -> Schedule {
        let s = &self.schedule;
        Schedule {
            lr: s.lr,
            warmup_steps: s.warmup_steps,
            steps: self.train.steps,
            decay_type: s.decay_type,
            lr_min: s.lr_min,
            decay_ratio: s.decay_ratio,
        }
    }

    /// The training batches.
    pub fn data_config(&self) -> DataConfig {
        let d = &self.data;
        DataConfig {
            sources: d.split().0,
            seq_len: d.seq_len,
            batch_size: d.batch_size,
            context_len: d.context_len,
            packing: d.packing,
            shuffle: d.shuffle,
            seed: d.seed.unwrap_or(self.train.seed),
            repeat: d.repeat,
            bos: d.bos,
            eos: d.eos,
        }
    }

    /// The validation batches; None when no text is held out.
    pub fn validation_config(&self) -> Option<DataConfig> {
        let held_out = self.data.split().1;
        (!held_out.is_empty()).then(|| self.data_config().for_validation(held_out))
    }

    /// All keys as TOML, defaults filled in.
    ///
    /// # Errors
    /// [`Error::Config`] when a value has no TOML form (a path that is not UTF-8).
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::config("run.toml", e.to_string()))
    }
}

/// More batches than a run can be ahead of itself with any use.
const MAX_PREFETCH: usize = 4096;

/// Takes one section out of the table; everything in it must be known.
fn read<S: Section>(table: &mut Table, section: &str, keys: &[Key]) -> Result<S> {
    let mut part = match table.remove(section) {
        None => Table::new(),
        Some(Value::Table(part)) => part,
        Some(other) => {
            let problem = format!("is a section (`[{section}]`), not a value: {other}");
            return Err(Error::config(section, problem));
        }
    };
    let known = S::from_table(&mut part)?;
    match part.keys().next() {
        Some(name) => Err(unknown(&format!("{section}.{name}"), keys)),
        None => Ok(known),
    }
}

/// An error about a key nobody knows, with the nearest one that exists.
fn unknown(path: &str, keys: &[Key]) -> Error {
    let nearest = match path.split_once('.') {
        None => nearest(path, keys.iter().map(|k| (k.section.to_string(), k.section, 0.0))),
        // The right name in the wrong section is nearer than another name in the right one.
        Some((section, name)) => nearest(
            name,
            keys.iter().map(|k| (k.path(), k.name, if k.section == section { 0.05 } else { 0.0 })),
        ),
    };
    let hint = nearest.map(|key| format!("; the nearest key is `{key}`")).unwrap_or_default();
    Error::config(path, format!("unknown key{hint}"))
}

/// The candidate (what to show, what to compare, head start) most like `name`, if it is like it at all.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = (String, &'a str, f64)>) -> Option<String> {
    let scored = candidates.map(|(shown, c, start)| (strsim::jaro_winkler(name, c) + start, shown));
    scored.filter(|(s, _)| *s > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, shown)| shown)
}

/// Unknown keys inside `data.sources` and `data.validation`.
fn check_sources(table: &Table) -> Result<()> {
    let Some(data) = table.get("data").and_then(Value::as_table) else { return Ok(()) };
    for list in ["sources", "validation"] {
        for (i, source) in data.get(list).and_then(Value::as_array).into_iter().flatten().enumerate() {
            let path = format!("data.{list}[{i}]");
            for name in source.as_table().into_iter().flat_map(Table::keys) {
                if !SOURCE_KEYS.contains(&name.as_str()) {
                    let hint = nearest(name, SOURCE_KEYS.iter().map(|k| (k.to_string(), *k, 0.0)));
                    let hint = hint.map(|k| format!("; the nearest key is `{k}`")).unwrap_or_default();
                    return Err(Error::config(format!("{path}.{name}"), format!("unknown key{hint}")));
                }
            }
            source.clone().try_into::<SourceConfig>().map_err(|e| Error::config(path, e.message()))?;
        }
    }
    Ok(())
}

/// Sets `section.key` (or deeper: `model.config.hidden_size`, `data.sources.0.weight`) to a value given as text.
fn override_key(table: &mut Table, path: &str, text: &str, keys: &[Key]) -> Result<()> {
    let parts: Vec<&str> = path.split('.').collect();
    let [section, name, inner @ ..] = parts.as_slice() else { return Err(unknown(path, keys)) };
    let key =
        keys.iter().find(|k| k.section == *section && k.name == *name).ok_or_else(|| unknown(path, keys))?;
    let text_value = Value::String(text.to_string());
    let value = match key.is_text() {
        true => text_value,
        false => {
            format!("x = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("x")).unwrap_or(text_value)
        }
    };
    let no_place = |problem: &str| Error::config(path, problem.to_string());
    let section = table.entry(*section).or_insert_with(|| Value::Table(Table::new()));
    let section = section.as_table_mut().ok_or_else(|| no_place("its section is a value, not a table"))?;
    let Some((last, between)) = inner.split_last() else {
        section.insert(name.to_string(), value);
        return Ok(());
    };
    let mut at = section.entry(*name).or_insert_with(|| Value::Table(Table::new()));
    for part in between {
        at = child(at, part).ok_or_else(|| no_place("there is nothing at that place to set"))?;
    }
    match at {
        Value::Table(t) => {
            t.insert(last.to_string(), value);
        }
        other => {
            *child(other, last).ok_or_else(|| no_place("there is nothing at that place to set"))? = value
        }
    }
    Ok(())
}

/// A member of a table (made if it is not there) or an element of an array.
fn child<'a>(value: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    match value {
        Value::Table(t) => Some(t.entry(name).or_insert_with(|| Value::Table(Table::new()))),
        Value::Array(a) => a.get_mut(name.parse::<usize>().ok()?),
        _ => None,
    }
}
