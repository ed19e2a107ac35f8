//! The hybrid option `attn`: which layers are softmax attention, and how.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Map;
use crate::{Error, Result};

/// Softmax attention at some layers of a hybrid model.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Layer indices.
    pub layers: Vec<usize>,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// Tokens a query sees, itself included; None for all before it.
    pub window_size: Option<usize>,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
}

const KEYS: [&str; 7] =
    ["layers", "num_heads", "num_kv_heads", "qkv_bias", "qk_norm", "window_size", "rope_theta"];

/// Reads `attn`: null, one dict, or a list of dicts over disjoint layers.
pub(super) fn parse(value: Option<&Value>, num_layers: usize) -> Result<Vec<AttentionSpec>> {
    let specs = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(one)) => vec![one],
        Some(Value::Array(many)) => many
            .iter()
            .map(|v| {
                v.as_object().ok_or_else(|| Error::config("attn", format!("holds {v}, expected a dict")))
            })
            .collect::<Result<_>>()?,
        Some(other) => {
            return Err(Error::config(
                "attn",
                format!("is {other}, expected null, a dict or a list of dicts"),
            ));
        }
    };
    let mut taken = BTreeMap::new();
    specs.into_iter().enumerate().map(|(i, spec)| one_spec(spec, i, num_layers, &mut taken)).collect()
}

fn one_spec(
    spec: &Map,
    index: usize,
    num_layers: usize,
    taken: &mut BTreeMap<usize, usize>,
) -> Result<AttentionSpec> {
    if let Some(bad) = spec.keys().find(|k| !KEYS.contains(&k.as_str())) {
        return Err(Error::config("attn", format!("has the key `{bad}`; supported: {}", KEYS.join(", "))));
    }
    let count = |key: &'static str, default: Option<usize>| -> Result<usize> {
        match (spec.get(key), default) {
            (None | Some(Value::Null), Some(d)) => Ok(d),
            (Some(v), _) => v.as_u64().filter(|&n| n > 0).map(|n| n as usize).ok_or_else(|| {
                Error::config("attn", format!("has `{key}` = {v}, expected a positive integer"))
            }),
            (None, None) => Err(Error::config("attn", format!("lacks `{key}`"))),
        }
    };
    let listed = spec.get("layers").and_then(Value::as_array);
    let listed = listed.ok_or_else(|| Error::config("attn", "lacks `layers`, a list of layer indices"))?;
    let mut layers = Vec::with_capacity(listed.len());
    for v in listed {
        let layer = v.as_u64().map(|n| n as usize).filter(|&n| n < num_layers).ok_or_else(|| {
            Error::config("attn", format!("has {v} in `layers`, expected indices in 0..{num_layers}"))
        })?;
        if let Some(by) = taken.insert(layer, index) {
            return Err(Error::config(
                "attn",
                format!("gives layer {layer} twice (entries {by} and {index})"),
            ));
        }
        layers.push(layer);
    }
    let num_heads = count("num_heads", None)?;
    let num_kv_heads = count("num_kv_heads", Some(num_heads))?;
    if !num_heads.is_multiple_of(num_kv_heads) {
        let why = format!("has num_heads {num_heads}, which num_kv_heads {num_kv_heads} does not divide");
        return Err(Error::config("attn", why));
    }
    let window_size = match spec.get("window_size") {
        None | Some(Value::Null) => None,
        Some(_) => Some(count("window_size", None)?),
    };
    let qkv_bias = match spec.get("qkv_bias") {
        None => false,
        Some(v) => v
            .as_bool()
            .ok_or_else(|| Error::config("attn", format!("has qkv_bias = {v}, expected a bool")))?,
    };
    // The peer's rodimus writes it, and never reads it.
    if !matches!(spec.get("qk_norm"), None | Some(Value::Null | Value::Bool(false))) {
        return Err(Error::config("attn", "has qk_norm, which is not supported there; supported: false"));
    }
    let rope_theta = match spec.get("rope_theta") {
        None => 10_000.0,
        Some(v) => v.as_f64().filter(|t| *t > 0.0 && t.is_finite()).ok_or_else(|| {
            Error::config("attn", format!("has rope_theta = {v}, expected a positive number"))
        })?,
    };
    Ok(AttentionSpec { layers, num_heads, num_kv_heads, qkv_bias, window_size, rope_theta })
}
