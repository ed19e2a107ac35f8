//! Rodimus.
#![doc = include_str!("README.md")]

mod config;
mod layer;
mod shared_key;

use serde_json::{Value, json};

pub use config::{RodimusKeys, SharedKeySpec};
pub use layer::RodimusMixer;
pub use shared_key::SharedKeyAttention;

use crate::{
    Error, Result,
    backbone::{Block, SubLayer},
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, mixer_and_mlp},
    init::Init,
    modules::{GatedMlp, Norm},
};

/// The family `rodimus`.
pub struct Rodimus;

/// The MLP's width: `hidden_ratio` times `hidden_size` (without the usual factor), rounded up to 8.
fn mlp(base: &BaseConfig) -> BaseConfig {
    let raw = (base.hidden_ratio.unwrap_or(4.0 / 3.0) * base.hidden_size as f64) as usize;
    let size = base.intermediate_size.unwrap_or(raw.max(1).saturating_add(7) / 8 * 8);
    BaseConfig { intermediate_size: Some(size), ..base.clone() }
}

impl FamilyDef for Rodimus {
    type Own = RodimusKeys;
    const MODEL_TYPE: &'static str = "rodimus";
    const ARCHITECTURE: &'static str = "RodimusForCausalLM";
    const SUMMARY: &'static str =
        "one wide head of gated linear attention with tempered gates; plus: with shared-key window attention";
    const PAPER: &'static str = "He et al., Rodimus*: Breaking the Accuracy-Efficiency Trade-Off with Efficient Attentions, 2024 (arXiv:2410.06577)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["attnres_block_size", "elementwise_affine"];

    fn defaults() -> Value {
        json!({"hidden_ratio": 4.0 / 3.0, "norm_eps": 1e-5, "bos_token_id": 126080, "eos_token_id": 126081,
               "tie_word_embeddings": true, "vocab_size": 126464})
    }

    fn presets() -> Vec<(&'static str, Value)> {
        let attention = |heads: usize, window: usize| json!({"num_heads": heads, "window_size": window});
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "block_type": "rodimus", "expand_ratio": 32, "vocab_size": 1024,
                       "bos_token_id": 1, "eos_token_id": 2}),
            ),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "ska_attn": attention(8, 1024)})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "ska_attn": attention(16, 1024)})),
        ]
    }

    fn check(base: &BaseConfig, own: &RodimusKeys) -> Result<()> {
        check_mlp(base)?;
        check_head_dim("expand_ratio", own.expand_ratio)?;
        own.rank(base.hidden_size)?;
        if own.plus()? {
            own.shared_key(base)?;
        }
        if own.conv_size == 0 {
            return Err(Error::config("conv_size", "is 0, expected a positive integer"));
        }
        if !own.k_norm_eps.is_none_or(|e| e.is_finite() && e >= 0.0) {
            return Err(Error::config("k_norm_eps", "is not a finite number >= 0"));
        }
        match mlp(base).mlp_size() {
            1..=0x8000_0000 => Ok(()),
            n => Err(Error::config(
                "hidden_ratio",
                format!("gives an MLP of width {n}, expected 1..=2147483648"),
            )),
        }
    }

    fn block(base: &BaseConfig, own: &RodimusKeys, layer: usize, init: &Init) -> Result<Block> {
        let mlp = mlp(base);
        if base.attention_at(layer)?.is_some() {
            let block = mixer_and_mlp(&mlp, layer, init, |at| RodimusMixer::new(at, base, own))?;
            return Ok(Block { residual_f32: own.residual_in_fp32, ..block });
        }
        let norm = |key: &str| Norm::rms(&init.sub(key), base.hidden_size, base.norm_eps, true);
        let mixer = RodimusMixer::new(&init.sub("mixer"), base, own)?;
        let mut parts = vec![SubLayer { key: "mixer", norm: norm("mixer_norm")?, layer: Box::new(mixer) }];
        if own.plus()? {
            let spec = own.shared_key(base)?;
            let attention = SharedKeyAttention::new(&init.sub("ska_attn"), base.hidden_size, &spec)?;
            let layer = Box::new(attention);
            parts.push(SubLayer { key: "ska_attn", norm: norm("ska_attn_norm")?, layer });
            let layer = Box::new(GatedMlp::new(&init.sub("mlp"), &mlp)?);
            parts.push(SubLayer { key: "mlp", norm: norm("mlp_norm")?, layer });
        }
        Ok(Block { entry: None, parts, residual_f32: own.residual_in_fp32 })
    }
}
