//! Multi-head latent attention.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::MlaKeys;
pub use layer::LatentAttention;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_attention_head, check_mlp, check_window, even_head_dim, mixer_and_mlp},
    init::Init,
};

/// The family `mla`.
pub struct Mla;

/// Factor on the scores: `K^-1/2`, times the square of the length scaling's own factor where `rope_scaling` has one.
pub(crate) fn softmax_scale(own: &MlaKeys) -> Result<f64> {
    let plain = ((own.qk_nope_head_dim + own.qk_rope_head_dim) as f64).powf(-0.5);
    let bad = |why: String| Error::config("rope_scaling", why);
    let map = match &own.rope_scaling {
        Value::Null => return Ok(plain),
        Value::Object(map) => map,
        other => return Err(bad(format!("is {other}, expected null or a dict"))),
    };
    let kind = map.get("rope_type").or(map.get("type")).and_then(Value::as_str).unwrap_or("default");
    if kind == "default" {
        return Ok(plain);
    }
    let number = |key: &str, default: Option<f64>| match (map.get(key), default) {
        (None, Some(d)) => Ok(d),
        (v, _) => v
            .and_then(Value::as_f64)
            .filter(|x| x.is_finite() && *x >= 0.0)
            .ok_or_else(|| bad(format!("of type `{kind}` needs `{key}`, a number >= 0"))),
    };
    let (all, factor) = (number("mscale_all_dim", Some(0.0))?, number("factor", None)?);
    let scale = if factor <= 1.0 || all == 0.0 { 1.0 } else { 0.1 * all * factor.ln() + 1.0 };
    Ok(plain * scale * scale)
}

impl FamilyDef for Mla {
    type Own = MlaKeys;
    const MODEL_TYPE: &'static str = "mla";
    const ARCHITECTURE: &'static str = "MLAForCausalLM";
    const SUMMARY: &'static str =
        "softmax attention whose keys and values are made of one small latent a token";
    const PAPER: &'static str = "DeepSeek-AI, DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model, 2024 (arXiv:2405.04434)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["attn", "attn_mode", "elementwise_affine"];

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16,
                       "qk_nope_head_dim": 32, "qk_head_dim": 48, "v_head_dim": 32, "vocab_size": 1024}),
            ),
            (
                "340m",
                json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 16, "q_lora_rank": null, "kv_lora_rank": 256, "qk_rope_head_dim": 32,
                       "qk_nope_head_dim": 64, "qk_head_dim": 96, "v_head_dim": 64}),
            ),
            (
                "1.3b",
                json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 16, "q_lora_rank": null}),
            ),
        ]
    }

    fn check(base: &BaseConfig, own: &MlaKeys) -> Result<()> {
        check_mlp(base)?;
        let positive = [
            ("num_heads", own.num_heads),
            ("kv_lora_rank", own.kv_lora_rank),
            ("q_lora_rank", own.q_lora_rank.unwrap_or(1)),
        ];
        for (key, n) in positive {
            if n == 0 || n > 1 << 20 {
                return Err(Error::config(key, format!("is {n}, expected 1..={}", 1 << 20)));
            }
        }
        let all = own.qk_nope_head_dim.saturating_add(own.qk_rope_head_dim);
        if own.qk_nope_head_dim == 0 || own.qk_rope_head_dim == 0 {
            return Err(Error::config("qk_nope_head_dim", "and qk_rope_head_dim must be positive integers"));
        }
        check_attention_head("qk_nope_head_dim", all)?;
        even_head_dim("qk_rope_head_dim", own.qk_rope_head_dim)?;
        check_attention_head("v_head_dim", own.v_head_dim)?;
        if let Some(d) = own.qk_head_dim.filter(|&d| d != all) {
            let why = format!("is {d}, but qk_nope_head_dim + qk_rope_head_dim is {all}");
            return Err(Error::config("qk_head_dim", why));
        }
        if !(own.rope_theta > 0.0 && own.rope_theta.is_finite()) {
            let why = format!("is {}, expected a positive number", own.rope_theta);
            return Err(Error::config("rope_theta", why));
        }
        softmax_scale(own)?;
        check_window(own.window_size)
    }

    fn block(base: &BaseConfig, own: &MlaKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| LatentAttention::new(at, base, own))
    }
}
