//! The forgetting transformer.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::ForgettingKeys;
pub use layer::ForgettingAttention;

use crate::{
    Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_attention_head, check_mlp, check_window, divides, mixer_and_mlp},
    init::Init,
};

/// The family `forgetting_transformer`.
pub struct ForgettingTransformer;

impl FamilyDef for ForgettingTransformer {
    type Own = ForgettingKeys;
    const MODEL_TYPE: &'static str = "forgetting_transformer";
    const ARCHITECTURE: &'static str = "ForgettingTransformerForCausalLM";
    const SUMMARY: &'static str = "softmax attention with a data-dependent forget gate instead of positions";
    const PAPER: &'static str =
        "Lin et al., Forgetting Transformer: Softmax Attention with a Forget Gate, 2025 (arXiv:2503.02130)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["attn", "attn_mode", "elementwise_affine"];

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            ("tiny", json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "vocab_size": 1024})),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 16})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 32})),
        ]
    }

    fn check(base: &BaseConfig, own: &ForgettingKeys) -> Result<()> {
        check_mlp(base)?;
        divides("num_heads", base.hidden_size, own.num_heads)?;
        check_attention_head("num_heads", base.hidden_size / own.num_heads)?;
        divides("num_kv_heads", own.num_heads, own.num_kv_heads.unwrap_or(own.num_heads))?;
        check_window(own.window_size)
    }

    fn block(base: &BaseConfig, own: &ForgettingKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| ForgettingAttention::new(at, base, own))
    }
}
