//! flashlin's models as what the loop trains, and making one from a run's configuration.

#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc};

use flashlin::{
    CONFIG_FILE, Config, ForwardOptions, Input, Logits, Mode, Model, ModelState, StateKind, find_family, hub,
    tokenizer::Tokenizer,
    weights::{LoadOptions, WeightMap, load_into},
};
use flashlin_tensor::{Parameter, Var};
use serde_json::{Map, Value};

use crate::{
    Error, Result, TrainConfig,
    config::ModelConfig,
    trainable::{CarriedState, Pass, PassOptions, Piece, Trainable},
};

/// What is trained when the configuration names nothing.
const DEFAULT_FAMILY: &str = "gated_deltanet";

impl CarriedState for ModelState {
    fn as_leaves(&self) -> Result<Self> {
        Ok(ModelState::as_leaves(self)?)
    }

    fn detach(&self) -> Result<Self> {
        Ok(ModelState::detach(self)?)
    }

    fn vars(&self) -> Vec<Var> {
        self.layers().iter().flat_map(|l| l.tensors()).map(|t| t.value.clone()).collect()
    }
}

impl Trainable for Model {
    type State = ModelState;

    fn params(&self) -> &[Arc<Parameter>] {
        Model::params(self)
    }

    fn wants_weight_decay(&self, name: &str) -> bool {
        Model::wants_weight_decay(self, name)
    }

    fn new_state(&self, rows: usize) -> Result<ModelState> {
        Ok(Model::new_state(self, rows)?)
    }

    fn check_exact_carry(&self) -> Result<()> {
        let state = Model::new_state(self, 1)?;
        let mut tensors = state.layers().iter().flat_map(|l| l.tensors());
        if tensors.any(|t| t.spec.kind == StateKind::KeyValue) {
            let problem = "exact is not available for models with softmax attention, whose cached keys and values carry no \
                           gradient; use train.carry = \"truncated\", or leave train.segment_len unset";
            return Err(Error::config("train.carry", problem));
        }
        Ok(())
    }

    fn pass(&self, piece: &Piece, state: Option<&mut ModelState>, options: PassOptions) -> Result<Pass> {
        let mut input = Input::ids(piece.ids.clone());
        input.seqs = piece.seqs.clone();
        input.targets = piece.targets.clone();
        let options = ForwardOptions {
            mode: Mode::Auto,
            logits: Logits::None,
            hidden_states: options.hidden_states,
            checkpoint_layers: options.recompute,
            rows_alike: false,
        };
        let out = self.forward(&input, state, &options)?;
        Ok(Pass { loss: out.loss, hidden_states: out.hidden_states })
    }

    fn save(&self, dir: &Path) -> Result<()> {
        Ok(Model::save(self, dir)?)
    }

    fn load(&self, dir: &Path) -> Result<()> {
        let map = WeightMap::open(dir)?;
        Ok(load_into(self.params(), self.tied_keys(), &map, LoadOptions::default())?)
    }
}

/// The model that `[model]` asks for: with the weights of `model.init`, else fresh ones from `train.seed`. A run that continues from
/// `checkpoint` takes its configuration from there, and its weights are loaded by the run.
///
/// # Errors
/// A configuration that cannot be used, one that contradicts the checkpoint, a tokenizer that does not fit.
pub fn build_model(config: &TrainConfig, tokenizer: &Tokenizer, checkpoint: Option<&Path>) -> Result<Model> {
    let (dtype, device) = (config.dtype()?, config.train.device()?);
    let wanted = match checkpoint {
        Some(dir) => resumed_config(&config.model, dir)?,
        None => model_config(&config.model, tokenizer)?,
    };
    tokenizer.check_vocab(wanted.base().vocab_size)?;
    if let Some(dir) = checkpoint {
        let mut model = Model::blank(&wanted, dtype, &device)?;
        model.adopt_generation_config(dir)?;
        return Ok(model);
    }
    match &config.model.init {
        None => Ok(Model::new(&wanted, dtype, &device, config.train.seed)?),
        Some(init) => {
            let dir = folder_of(init)?;
            let mut model = Model::blank(&wanted, dtype, &device)?;
            Trainable::load(&model, &dir)?;
            model.adopt_generation_config(&dir)?;
            Ok(model)
        }
    }
}

/// The model's configuration as `[model]` and the tokenizer decide it.
///
/// # Errors
/// Contradicting or unknown settings.
pub fn model_config(model: &ModelConfig, tokenizer: &Tokenizer) -> Result<Config> {
    let named = [
        ("family", model.family.is_some() || model.preset.is_some()),
        ("path", model.path.is_some()),
        ("init", model.init.is_some()),
    ];
    let named: Vec<_> = named.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    if let [first, second, ..] = named[..] {
        let problem =
            format!("contradicts model.{first}: the configuration comes from one of family, path and init");
        return Err(Error::config(format!("model.{second}"), problem));
    }
    let mut raw = match (&model.path, &model.init) {
        (Some(path), _) => Config::load(&config_file(path))?.to_json(),
        (_, Some(init)) => Config::load(&folder_of(init)?.join(CONFIG_FILE))?.to_json(),
        _ => of_family(model, tokenizer)?,
    };
    for (key, value) in &model.config {
        let value = serde_json::to_value(value);
        let value = value.map_err(|e| Error::config(format!("model.config.{key}"), e.to_string()))?;
        raw.insert(key.clone(), value);
    }
    Ok(Config::from_json(raw)?)
}

/// A family's preset (or defaults), with the tokenizer's vocabulary and special tokens.
fn of_family(model: &ModelConfig, tokenizer: &Tokenizer) -> Result<Map<String, Value>> {
    let family = find_family(model.family.as_deref().unwrap_or(DEFAULT_FAMILY))?;
    let mut raw = Map::from_iter([("model_type".to_string(), Value::from(family.model_type()))]);
    if let Some(name) = &model.preset {
        let presets = family.presets();
        let preset = presets.iter().find(|(n, _)| n == name).ok_or_else(|| {
            let names: Vec<_> = presets.iter().map(|(n, _)| *n).collect();
            let problem =
                format!("{} has no preset `{name}`; it has {}", family.model_type(), names.join(", "));
            Error::config("model.preset", problem)
        })?;
        raw.extend(preset.1.clone());
    }
    raw.insert("vocab_size".into(), tokenizer.vocab_size().into());
    for (key, id) in [
        ("bos_token_id", tokenizer.bos()),
        ("eos_token_id", tokenizer.eos()),
        ("pad_token_id", tokenizer.pad()),
    ] {
        raw.insert(key.into(), id.map_or(Value::Null, Value::from));
    }
    Ok(raw)
}

/// The checkpoint's configuration; what `[model]` sets must agree with it.
fn resumed_config(model: &ModelConfig, dir: &Path) -> Result<Config> {
    let saved = Config::load(&dir.join(CONFIG_FILE))?;
    if let Some(family) = model.family.as_ref().filter(|f| **f != saved.model_type()) {
        let problem = format!("is {family}, but {} holds a {}", dir.display(), saved.model_type());
        return Err(Error::config("model.family", problem));
    }
    let raw = saved.to_json();
    for (key, value) in &model.config {
        let value = serde_json::to_value(value).unwrap_or_default();
        if raw.get(key) != Some(&value) {
            let was = raw.get(key).unwrap_or(&Value::Null);
            let problem = format!("is {value}, but the run in {} was begun with {was}", dir.display());
            return Err(Error::config(format!("model.config.{key}"), problem));
        }
    }
    Ok(saved)
}

fn config_file(path: &Path) -> std::path::PathBuf {
    if path.is_dir() { path.join(CONFIG_FILE) } else { path.to_path_buf() }
}

/// The folder of a checkpoint given as a folder or a hub id.
fn folder_of(model: &str) -> Result<std::path::PathBuf> {
    Ok(hub::resolve(model, &hub::HubOptions::from_env()?)?)
}
