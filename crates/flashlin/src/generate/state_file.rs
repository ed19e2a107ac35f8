//! Sessions on disk: one safetensors file with the state's tensors, the tokens and what is needed to refuse the wrong model.
//!
//! Policy: a state means something to one model only. The file carries its own version, the version of the state's meaning, kind and
//! layout of every tensor, and a fingerprint of configuration and weights; whatever differs is an error that names both sides.

use std::{collections::BTreeMap, path::Path};

use flashlin_ops::StateLayout;
use flashlin_tensor::{DType, Device, Tensor, cuda};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Session, session::Row};
use crate::{
    Error, Model, Result, STATE_VERSION, StateKind, StateSpec,
    weights::{WeightMap, check_finite, write_file},
};

/// Version of the file's form.
pub const STATE_FILE_VERSION: u32 = 1;
/// What the file says it is.
const FORMAT: &str = "flashlin-session";
/// The metadata entry that holds [`Head`].
const HEAD: &str = "flashlin";
/// Values of each parameter that the fingerprint looks at.
const SAMPLED: usize = 64;

/// Everything but tensors.
#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    state_version: u32,
    model: ModelId,
    rows: Vec<RowHead>,
    /// Kind and layout of every state tensor.
    tensors: BTreeMap<String, TensorHead>,
    /// SHA-256 of the tensors' bytes in order of their names: numbers have no other sign of damage.
    content: String,
}

/// Which model a state belongs to.
#[derive(Serialize, Deserialize, PartialEq)]
struct ModelId {
    model_type: String,
    dtype: String,
    layers: usize,
    hidden_size: usize,
    fingerprint: String,
}

#[derive(Serialize, Deserialize)]
struct RowHead {
    tokens: Vec<u32>,
    seen: usize,
    drawn: u64,
    stream: u64,
    has_logits: bool,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct TensorHead {
    kind: String,
    layout: Option<String>,
}

impl std::fmt::Display for ModelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = self.fingerprint.get(..12).unwrap_or(&self.fingerprint);
        let ModelId { model_type, dtype, layers, hidden_size, .. } = self;
        write!(f, "{model_type} ({layers} layers of {hidden_size}, {dtype}, fingerprint {short})")
    }
}

impl Session {
    /// Saves the session, atomically. Loaded again it continues with the same results.
    ///
    /// # Errors
    /// When the file cannot be written, or the session is not fit for use.
    pub fn save(&self, path: &Path, model: &Model) -> Result<()> {
        self.check()?;
        let vocab = model.config().base().vocab_size;
        let named = self.state.named();
        let tensors = named.iter().map(|(name, t)| (name.clone(), tensor_head(&t.spec))).collect();
        let rows = self.rows.iter().zip(self.state.seen()).map(|(row, &seen)| RowHead {
            tokens: row.tokens.clone(),
            seen,
            drawn: row.drawn,
            stream: row.stream,
            has_logits: row.logits.is_some(),
        });
        let rows = rows.collect();
        // Saving is the place where a device's state comes to the host.
        let mut stored = named
            .into_iter()
            .map(|(name, t)| Ok((name, t.value.tensor().to_device(&Device::Cpu)?)))
            .collect::<Result<Vec<(String, Tensor)>>>()?;
        let logits: Vec<f32> =
            self.rows.iter().filter_map(|r| r.logits.as_ref()).flatten().copied().collect();
        let with_logits = logits.len() / vocab;
        stored.push(("logits".into(), Tensor::from_vec(logits, &[with_logits, vocab])?));
        stored.sort_by(|a, b| a.0.cmp(&b.0));
        let head = Head {
            format: FORMAT.into(),
            version: STATE_FILE_VERSION,
            state_version: STATE_VERSION,
            model: identify(model)?,
            rows,
            tensors,
            content: content_hash(stored.iter().map(|(_, t)| Ok(t.clone())))?,
        };
        let head = serde_json::to_string(&head).map_err(|e| Error::file(path, e.to_string()))?;
        write_file(path, &stored, None, &BTreeMap::from([(HEAD.to_string(), head)]))
    }

    /// Loads a session that was saved with this very model.
    ///
    /// # Errors
    /// A file that is no session, is damaged, or belongs to another model, layout or version: both sides are named.
    pub fn load(path: &Path, model: &Model) -> Result<Session> {
        let map = WeightMap::open_file(path)?;
        let bad = |problem: String| Error::file(path, problem);
        let head =
            map.metadata().get(HEAD).ok_or_else(|| bad("not a saved session (no header of one)".into()))?;
        let head: serde_json::Value =
            serde_json::from_str(head).map_err(|e| bad(format!("not a usable saved session: {e}")))?;
        // Versions first: another version may have another header.
        for (key, ours) in [("version", STATE_FILE_VERSION), ("state_version", STATE_VERSION)] {
            if head[key] != ours {
                let problem =
                    format!("a saved session with {key} {}, but this program reads {ours}", head[key]);
                return Err(bad(problem));
            }
        }
        let head: Head =
            serde_json::from_value(head).map_err(|e| bad(format!("not a usable saved session: {e}")))?;
        let own = identify(model)?;
        if head.format != FORMAT || head.model != own {
            return Err(bad(format!(
                "a {} of the model {}, but this model is {own}",
                head.format, head.model
            )));
        }
        check_rows(&head.rows, model).map_err(bad)?;
        // One row suffices to know what the model declares: nothing is allocated on the header's word.
        let mut state = model.new_state(1)?;
        check_tensors(&head, &map, &state).map_err(bad)?;
        if content_hash(map.keys().map(|key| map.get(key)))? != head.content {
            return Err(bad("its tensors are damaged: their checksum is not the one in the header".into()));
        }
        let seen: Vec<usize> = head.rows.iter().map(|r| r.seen).collect();
        state
            .restore(seen, |name, _| {
                let tensor = map.get(name)?;
                check_finite(&tensor, || format!("{}: {name}", path.display()))?;
                // Mapped bytes cannot be updated in place.
                Ok(tensor.copy()?)
            })
            .map_err(|e| match e {
                Error::State { problem } => Error::file(path, problem),
                other => other,
            })?;
        let logits = map.get("logits")?;
        let vocab = model.config().base().vocab_size;
        let expected = [head.rows.iter().filter(|r| r.has_logits).count(), vocab];
        if logits.dims() != expected || logits.dtype() != DType::F32 {
            let problem =
                format!("logits are {} {:?}, expected f32 {expected:?}", logits.dtype(), logits.dims());
            return Err(bad(problem));
        }
        let mut values = logits.as_slice::<f32>()?.chunks_exact(vocab).map(<[f32]>::to_vec);
        let rows = head.rows.into_iter().map(|r| Row {
            logits: if r.has_logits { values.next() } else { None },
            tokens: r.tokens,
            drawn: r.drawn,
            stream: r.stream,
        });
        Ok(Session::of(state, rows.collect()))
    }
}

fn tensor_head(spec: &StateSpec) -> TensorHead {
    let layout = spec.layout.map(|l| match l {
        StateLayout::KV => "kv".to_string(),
        StateLayout::VK => "vk".to_string(),
    });
    TensorHead { kind: spec.kind.name().to_string(), layout }
}

fn check_rows(rows: &[RowHead], model: &Model) -> Result<(), String> {
    let vocab = model.config().base().vocab_size;
    if rows.is_empty() {
        return Err("a saved session without rows".into());
    }
    for (i, row) in rows.iter().enumerate() {
        if row.seen > row.tokens.len() || (row.has_logits && row.seen != row.tokens.len()) {
            let n = row.tokens.len();
            return Err(format!("row {i} says that {} of its {n} tokens are consumed", row.seen));
        }
        if let Some(id) = row.tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(format!("row {i} holds token {id}, but the vocabulary has {vocab}"));
        }
    }
    Ok(())
}

/// Names, kinds and layouts as the model declares them; shapes and dtypes are checked when the state takes the tensors.
fn check_tensors(head: &Head, map: &WeightMap, state: &crate::ModelState) -> Result<(), String> {
    let declared = state.named();
    let mut capacity = BTreeMap::new();
    for (name, t) in &declared {
        let want = tensor_head(&t.spec);
        match head.tensors.get(name) {
            Some(got) if *got == want => {}
            Some(got) => {
                let show =
                    |h: &TensorHead| format!("{} (layout {})", h.kind, h.layout.as_deref().unwrap_or("none"));
                return Err(format!(
                    "state tensor `{name}` is {}, but the model's is {}",
                    show(got),
                    show(&want)
                ));
            }
            None => return Err(format!("has no state tensor `{name}`, which the model needs")),
        }
        // Keys and values of a layer have room for the same number of tokens.
        if let (StateKind::KeyValue, Some(dims)) = (t.spec.kind, map.dims(name)) {
            let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
            let room = dims.get(1).copied();
            if *capacity.entry(layer).or_insert(room) != room {
                return Err(format!(
                    "state tensor `{name}` is {dims:?}, of another length than its layer's others"
                ));
            }
        }
    }
    let known = |key: &&str| *key == "logits" || declared.iter().any(|(name, _)| name == key);
    match map.keys().find(|key| !known(key)) {
        Some(extra) => Err(format!("holds `{extra}`, which the model's state does not have")),
        None => Ok(()),
    }
}

pub(super) fn content_hash(tensors: impl Iterator<Item = Result<Tensor>>) -> Result<String> {
    let mut hash = Sha256::new();
    for t in tensors {
        hash.update(t?.contiguous()?.as_bytes()?);
    }
    Ok(hex(hash))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// What distinguishes a model: its configuration and a sample of its weights.
fn identify(model: &Model) -> Result<ModelId> {
    let base = model.config().base();
    let mut hash = Sha256::new();
    // Hints do not change results, so they do not change the fingerprint.
    let keys = model.config().family().keys();
    let raw: BTreeMap<String, serde_json::Value> = model.config().to_json().into_iter().collect();
    for (key, value) in &raw {
        if keys.iter().any(|k| k.name == key && k.effect == crate::config::Effect::Results) {
            hash.update(format!("{key}={value};"));
        }
    }
    for param in model.params() {
        let t = param.tensor().contiguous()?;
        hash.update(format!("{} {} {:?};", param.name(), t.dtype(), t.dims()));
        let n = t.numel();
        // Evenly spread, the first and the last among them.
        let spread = |i: usize| (i * n.saturating_sub(1) / n.min(SAMPLED).saturating_sub(1).max(1)) as i64;
        let at: Vec<i64> = (0..n.min(SAMPLED)).map(spread).collect();
        let at = cuda::kept(&Tensor::from_slice(&at, &[at.len()])?, &t.device())?;
        let sample = t.reshape(&[n, 1])?.index_select(&at)?.to_device(&Device::Cpu)?;
        hash.update(sample.as_bytes()?);
    }
    Ok(ModelId {
        model_type: model.config().model_type().to_string(),
        dtype: model.dtype().to_string(),
        layers: base.num_hidden_layers,
        hidden_size: base.hidden_size,
        fingerprint: hex(hash),
    })
}
