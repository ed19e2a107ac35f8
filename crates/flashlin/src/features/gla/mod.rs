//! Gated linear attention.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::GlaKeys;
pub use layer::GatedLinearAttention;

use crate::{
    Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, divides, mixer_and_mlp, scaled},
    init::Init,
    modules::activation,
};

/// The family `gla`.
pub struct Gla;

impl FamilyDef for Gla {
    type Own = GlaKeys;
    const MODEL_TYPE: &'static str = "gla";
    const ARCHITECTURE: &'static str = "GLAForCausalLM";
    const SUMMARY: &'static str = "linear attention with a data-dependent decay per key channel";
    const PAPER: &'static str = "Yang et al., Gated Linear Attention Transformers with Hardware-Efficient Training, 2023 (arXiv:2312.06635)";
    const README: &'static str = include_str!("README.md");

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            ("tiny", json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "vocab_size": 1024})),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 4})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 4})),
        ]
    }

    fn check(base: &BaseConfig, own: &GlaKeys) -> Result<()> {
        check_mlp(base)?;
        let k = scaled("expand_k", base.hidden_size, own.expand_k, own.num_heads)?;
        let v = scaled("expand_v", base.hidden_size, own.expand_v, own.num_heads)?;
        check_head_dim("expand_k", k / own.num_heads)?;
        check_head_dim("expand_v", v / own.num_heads)?;
        own.feature_map.as_deref().map(|m| activation("feature_map", m)).transpose()?;
        divides("num_kv_heads", own.num_heads, own.num_kv_heads.unwrap_or(own.num_heads))
    }

    fn block(base: &BaseConfig, own: &GlaKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| GatedLinearAttention::new(at, base, own))
    }
}
