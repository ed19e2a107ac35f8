//! Reading `golden.json` and `golden.safetensors`.

use std::{collections::BTreeMap, path::Path};

use flashlin_tensor::{DType, Tensor};
use serde_json::Value;

use super::Tag;
use crate::{Error, Result, files, weights::WeightMap};

/// Boundaries of `logits_varlen`.
pub(super) const VARLEN: [usize; 4] = [0, 17, 80, 150];

/// Number of tokens of `greedy` that are the prompt.
pub(super) const GREEDY_PROMPT: usize = 20;

/// Golden values of one directory.
#[derive(Debug)]
pub struct Golden {
    pub(super) tensors: BTreeMap<String, Tensor>,
    pub(super) loss: Option<f64>,
    pub(super) grad_norm: Option<BTreeMap<String, f64>>,
    pub(super) precision: BTreeMap<String, String>,
    pub(super) peer_cannot: Vec<String>,
}

impl Golden {
    /// Reads the directory's golden files.
    ///
    /// # Errors
    /// A missing, corrupt or malformed file.
    pub fn load(dir: &Path) -> Result<Golden> {
        let map = WeightMap::open_file(&dir.join("golden.safetensors"))?;
        let keys: Vec<String> = map.keys().map(String::from).collect();
        let mut tensors = BTreeMap::new();
        for key in keys {
            let t = map.get(&key)?;
            tensors.insert(key, t);
        }
        let path = dir.join("golden.json");
        let json: Value = files::read_json(&path, "list of golden values")?;
        let bad = |what: &str| Error::file(&path, format!("`{what}` is missing or malformed"));
        let strings = |v: &Value| -> Option<BTreeMap<String, String>> {
            // Null: a key that the peer has no value for.
            let present = v.as_object()?.iter().filter(|(_, v)| !v.is_null());
            present.map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect()
        };
        let numbers = |v: &Value| -> Option<BTreeMap<String, f64>> {
            v.as_object()?.iter().map(|(k, v)| Some((k.clone(), v.as_f64()?))).collect()
        };
        let precision = json.get("precision").and_then(strings).ok_or_else(|| bad("precision"))?;
        let loss = match json.get("loss") {
            None | Some(Value::Null) => None,
            Some(v) => Some(v.as_f64().ok_or_else(|| bad("loss"))?),
        };
        let grad_norm = match json.get("grad_norm") {
            None | Some(Value::Null) => None,
            Some(v) => Some(numbers(v).ok_or_else(|| bad("grad_norm"))?),
        };
        let peer_cannot = match json.get("peer_cannot") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => {
                let names: Option<Vec<String>> = items.iter().map(|v| v.as_str().map(String::from)).collect();
                names.ok_or_else(|| bad("peer_cannot"))?
            }
            Some(Value::Object(map)) => map.keys().cloned().collect(),
            Some(_) => return Err(bad("peer_cannot")),
        };
        Ok(Golden { tensors, loss, grad_norm, precision, peer_cannot })
    }

    /// Whether a key is present.
    pub(super) fn has(&self, key: &str) -> bool {
        match key {
            "loss" => self.loss.is_some(),
            "grad_norm" => self.grad_norm.is_some(),
            tensor => self.tensors.contains_key(tensor),
        }
    }

    /// The tag of a present key.
    pub(super) fn tag(&self, key: &str) -> std::result::Result<Tag, String> {
        match self.precision.get(key) {
            Some(tag) => tag.parse(),
            None => Err("the key has no precision tag".into()),
        }
    }

    /// Token ids `[B, T]` as i64.
    pub(super) fn ids(&self, key: &str) -> Result<Tensor> {
        let t = self
            .tensors
            .get(key)
            .ok_or_else(|| Error::argument(key, "is missing from golden.safetensors"))?;
        Ok(t.to_dtype(DType::I64)?)
    }
}
