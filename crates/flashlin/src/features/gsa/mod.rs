//! Gated slot attention.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::GsaKeys;
pub use layer::GatedSlotAttention;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, divides, mixer_and_mlp, scaled},
    init::Init,
    modules::FeatureMap,
};

/// The family `gsa`.
pub struct Gsa;

/// Maps that the configuration may name.
const MAPS: [&str; 3] = ["swish", "relu", "t2r"];

impl FamilyDef for Gsa {
    type Own = GsaKeys;
    const MODEL_TYPE: &'static str = "gsa";
    const ARCHITECTURE: &'static str = "GSAForCausalLM";
    const SUMMARY: &'static str = "softmax attention over a fixed number of slots that decay by a gate";
    const PAPER: &'static str = "Zhang et al., Gated Slot Attention for Efficient Linear-Time Sequence Modeling, 2024 (arXiv:2409.07146)";
    const README: &'static str = include_str!("README.md");

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "num_slots": 32, "vocab_size": 1024}),
            ),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 4})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 4})),
        ]
    }

    fn check(base: &BaseConfig, own: &GsaKeys) -> Result<()> {
        check_mlp(base)?;
        let k = scaled("expand_k", base.hidden_size, own.expand_k, own.num_heads)?;
        let v = scaled("expand_v", base.hidden_size, own.expand_v, own.num_heads)?;
        check_head_dim("expand_k", k / own.num_heads)?;
        check_head_dim("expand_v", v / own.num_heads)?;
        check_head_dim("num_slots", own.num_slots.unwrap_or(k / own.num_heads))?;
        if !MAPS.contains(&own.feature_map.as_str()) {
            return Err(FeatureMap::unknown("feature_map", &own.feature_map, &MAPS));
        }
        if !(own.gate_logit_normalizer > 0.0 && own.gate_logit_normalizer.is_finite()) {
            let why = format!("is {}, expected a number above 0", own.gate_logit_normalizer);
            return Err(Error::config("gate_logit_normalizer", why));
        }
        divides("num_kv_heads", own.num_heads, own.num_kv_heads.unwrap_or(own.num_heads))
    }

    fn block(base: &BaseConfig, own: &GsaKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| GatedSlotAttention::new(at, base, own))
    }
}
