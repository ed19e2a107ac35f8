//! Config keys of Rodimus.

use serde_json::Value;

use crate::{
    Error, Result,
    config::{BaseConfig, config_keys},
};

config_keys! {
    /// Keys of Rodimus beside the shared ones.
    pub struct RodimusKeys {
        /// `rodimus` (the mixer alone) or `rodimus_plus` (mixer, shared-key attention, MLP).
        Results block_type: String = "rodimus_plus".into();
        /// State channels.
        Results expand_ratio: usize = 64;
        /// Width of the input gate's bottleneck; "auto": a 64th of `hidden_size`, at least 16.
        Results input_gate_low_rank: Value = Value::from("auto");
        /// Short convolution before the gates, q and k.
        Results use_short_conv: bool = true;
        /// Width of the short convolution.
        Results conv_size: usize = 4;
        /// Least length that keys are divided by. Null: 1e-12.
        Results k_norm_eps: Option<f64> = None;
        /// Of `rodimus_plus`: a dict with `num_heads`, `qkv_bias`, `qk_norm`, `window_size`, `rope_theta`.
        Results ska_attn: Value = Value::Null;
        /// Keep the residual stream, and the mixer's skip weights, in f32.
        Results residual_in_fp32: bool = true;
        /// The peer's way of carrying the residual stream over blocks.
        Hint block_residual_in_fp32: bool = false;
    }
}
crate::family::impl_keys!(RodimusKeys);

/// Shared-key attention of `rodimus_plus`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SharedKeySpec {
    /// Heads of queries and values.
    pub heads: usize,
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// RMS norm on each head of q and k.
    pub qk_norm: bool,
    /// Tokens a query sees, itself included.
    pub window: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
}

const SPEC_KEYS: [&str; 5] = ["num_heads", "qkv_bias", "qk_norm", "window_size", "rope_theta"];

impl RodimusKeys {
    /// Width of the input gate's bottleneck.
    pub(crate) fn rank(&self, hidden: usize) -> Result<usize> {
        let rank = match &self.input_gate_low_rank {
            Value::String(s) if s == "auto" => Some((hidden / 64).max(16)),
            v => v.as_f64().filter(|x| x.fract() == 0.0 && *x >= 1.0 && *x <= 1048576.0).map(|x| x as usize),
        };
        rank.ok_or_else(|| {
            let why = format!("is {}, expected \"auto\" or a positive integer", self.input_gate_low_rank);
            Error::config("input_gate_low_rank", why)
        })
    }

    /// Whether blocks have attention and an MLP too.
    pub(crate) fn plus(&self) -> Result<bool> {
        match self.block_type.as_str() {
            "rodimus" => Ok(false),
            "rodimus_plus" => Ok(true),
            other => {
                Err(Error::config("block_type", format!("is `{other}`; supported: rodimus, rodimus_plus")))
            }
        }
    }

    /// Shared-key attention, as `ska_attn` says.
    pub(crate) fn shared_key(&self, base: &BaseConfig) -> Result<SharedKeySpec> {
        let bad = |why: String| Error::config("ska_attn", why);
        let Value::Object(map) = &self.ska_attn else {
            let why = format!("is {}; rodimus_plus needs a dict with num_heads", self.ska_attn);
            return Err(bad(why));
        };
        if let Some(key) = map.keys().find(|k| !SPEC_KEYS.contains(&k.as_str())) {
            return Err(bad(format!("has the key `{key}`; supported: {}", SPEC_KEYS.join(", "))));
        }
        let count = |key: &str, default: Option<usize>| match (map.get(key), default) {
            (None, Some(d)) => Ok(d),
            (v, _) => v
                .and_then(Value::as_u64)
                .filter(|n| (1..=1 << 31).contains(n))
                .map(|n| n as usize)
                .ok_or_else(|| bad(format!("needs `{key}`, a positive integer"))),
        };
        let flag = |key: &str| match map.get(key) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| bad(format!("has `{key}` = {v}, expected a bool"))),
        };
        let theta = match map.get("rope_theta") {
            None => 10_000.0,
            Some(v) => v
                .as_f64()
                .filter(|t| *t > 0.0 && t.is_finite())
                .ok_or_else(|| bad(format!("has `rope_theta` = {v}, expected a positive number")))?,
        };
        let spec = SharedKeySpec {
            heads: count("num_heads", None)?,
            qkv_bias: flag("qkv_bias")?,
            qk_norm: flag("qk_norm")?,
            window: count("window_size", Some(1024))?,
            rope_theta: theta,
        };
        let head = base.hidden_size / spec.heads;
        if !base.hidden_size.is_multiple_of(spec.heads) || head % 2 == 1 || head > 256 {
            let why = format!(
                "has num_heads {}: hidden_size {} is not that many heads of an even width up to 256",
                spec.heads, base.hidden_size
            );
            return Err(bad(why));
        }
        Ok(spec)
    }
}
