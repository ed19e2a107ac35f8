//! Multi-scale retention.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::RetNetKeys;
pub use layer::MultiScaleRetention;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, divides, even_head_dim, mixer_and_mlp, scaled},
    init::Init,
    modules::Activation,
};

/// The feature map of this name. The peer takes RetNet's from `transformers`, whose names mean other functions than its own.
fn feature_map(name: &str) -> Result<Activation> {
    Ok(match name {
        "relu" => Activation::Relu,
        "sigmoid" => Activation::Sigmoid,
        "silu" | "swish" => Activation::Silu,
        "relu2" => Activation::SqRelu,
        "gelu" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" => Activation::Gelu,
        other => {
            let known = "relu, sigmoid, silu, swish, relu2, gelu, gelu_new, gelu_pytorch_tanh";
            return Err(Error::config("feature_map", format!("is `{other}`; supported: {known}")));
        }
    })
}

/// The family `retnet`.
pub struct RetNet;

impl FamilyDef for RetNet {
    type Own = RetNetKeys;
    const MODEL_TYPE: &'static str = "retnet";
    const ARCHITECTURE: &'static str = "RetNetForCausalLM";
    const SUMMARY: &'static str = "linear attention with rotary embedding and a constant decay per head";
    const PAPER: &'static str = "Sun et al., Retentive Network: A Successor to Transformer for Large Language Models, 2023 (arXiv:2307.08621)";
    const README: &'static str = include_str!("README.md");

    fn defaults() -> Value {
        json!({"hidden_ratio": 2})
    }

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            ("tiny", json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "vocab_size": 1024})),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 4})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 8})),
        ]
    }

    fn check(base: &BaseConfig, own: &RetNetKeys) -> Result<()> {
        check_mlp(base)?;
        let k = scaled("expand_k", base.hidden_size, own.expand_k, own.num_heads)?;
        let v = scaled("expand_v", base.hidden_size, own.expand_v, own.num_heads)?;
        check_head_dim("expand_k", k / own.num_heads)?;
        even_head_dim("expand_k", k / own.num_heads)?;
        check_head_dim("expand_v", v / own.num_heads)?;
        own.feature_map.as_deref().map(feature_map).transpose()?;
        divides("num_kv_heads", own.num_heads, own.num_kv_heads.unwrap_or(own.num_heads))
    }

    fn block(base: &BaseConfig, own: &RetNetKeys, layer: usize, init: &Init) -> Result<Block> {
        // The layer could; the peer's model passes neither key on.
        let own = RetNetKeys { use_short_conv: false, ..own.clone() };
        mixer_and_mlp(base, layer, init, |at| MultiScaleRetention::new(at, base, &own))
    }
}
