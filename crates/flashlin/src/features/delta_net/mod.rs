//! DeltaNet.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::DeltaNetKeys;
pub use layer::DeltaNetMixer;

use crate::{
    Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, mixer_and_mlp, scaled},
    init::Init,
};

/// The family `delta_net`.
pub struct DeltaNet;

impl FamilyDef for DeltaNet {
    type Own = DeltaNetKeys;
    const MODEL_TYPE: &'static str = "delta_net";
    const ARCHITECTURE: &'static str = "DeltaNetForCausalLM";
    const SUMMARY: &'static str = "linear attention that overwrites: the delta rule";
    const PAPER: &'static str = "Yang et al., Parallelizing Linear Transformers with the Delta Rule over Sequence Length, 2024 (arXiv:2406.06484)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["elementwise_affine"];

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            ("tiny", json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "vocab_size": 1024})),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 8})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 16})),
        ]
    }

    fn check(base: &BaseConfig, own: &DeltaNetKeys) -> Result<()> {
        check_mlp(base)?;
        let k = scaled("expand_k", base.hidden_size, own.expand_k, own.num_heads)?;
        let v = scaled("expand_v", base.hidden_size, own.expand_v, own.num_heads)?;
        check_head_dim("expand_k", k / own.num_heads)?;
        check_head_dim("expand_v", v / own.num_heads)?;
        layer::QkActivation::parse(&own.qk_activation)?;
        layer::QkNorm::parse(&own.qk_norm).map(|_| ())
    }

    fn block(base: &BaseConfig, own: &DeltaNetKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| DeltaNetMixer::new(at, base, own))
    }
}
