//! Gated DeltaNet.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::GatedDeltaNetKeys;
pub use layer::GatedDeltaNetMixer;

use crate::{
    Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, check_value_heads, mixer_and_mlp, scaled},
    init::Init,
    modules::gate_activation,
};

/// The family `gated_deltanet`.
pub struct GatedDeltaNet;

impl FamilyDef for GatedDeltaNet {
    type Own = GatedDeltaNetKeys;
    const MODEL_TYPE: &'static str = "gated_deltanet";
    const ARCHITECTURE: &'static str = "GatedDeltaNetForCausalLM";
    const SUMMARY: &'static str = "the delta rule with a scalar decay per head";
    const PAPER: &'static str =
        "Yang et al., Gated Delta Networks: Improving Mamba2 with Delta Rule, 2024 (arXiv:2412.06464)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["elementwise_affine"];

    fn defaults() -> Value {
        json!({"num_hidden_layers": 21})
    }

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "head_dim": 64, "expand_v": 1.0, "vocab_size": 1024}),
            ),
            (
                "132m",
                json!({"hidden_size": 768, "num_hidden_layers": 14, "num_heads": 6, "head_dim": 128, "expand_v": 1.0, "tie_word_embeddings": true}),
            ),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 21, "num_heads": 6, "head_dim": 256})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 21, "num_heads": 6, "head_dim": 256})),
        ]
    }

    fn check(base: &BaseConfig, own: &GatedDeltaNetKeys) -> Result<()> {
        check_mlp(base)?;
        check_head_dim("head_dim", own.head_dim)?;
        check_head_dim("expand_v", scaled("expand_v", own.head_dim, own.expand_v, 1)?)?;
        gate_activation("output_gate_activation", &own.output_gate_activation)?;
        check_value_heads(own.num_heads, own.num_v_heads)
    }

    fn block(base: &BaseConfig, own: &GatedDeltaNetKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| GatedDeltaNetMixer::new(at, base, own))
    }
}
