//! Linear attention.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::LinearAttnKeys;
pub use layer::LinearAttention;

use crate::{
    Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, divides, mixer_and_mlp, scaled},
    init::Init,
    modules::FeatureMap,
};

/// The family `linear_attn`.
pub struct LinearAttn;

/// Maps that the configuration may name.
const MAPS: [&str; 7] = ["hedgehog", "t2r", "elementwise_product", "dpfp", "elu", "relu", "identity"];

impl FamilyDef for LinearAttn {
    type Own = LinearAttnKeys;
    const MODEL_TYPE: &'static str = "linear_attn";
    const ARCHITECTURE: &'static str = "LinearAttentionForCausalLM";
    const SUMMARY: &'static str = "linear attention without decay, with a choice of feature maps";
    const PAPER: &'static str = "Katharopoulos et al., Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention, 2020 (arXiv:2006.16236)";
    const README: &'static str = include_str!("README.md");
    const PEER_CROSSES_BOUNDARIES: bool = true;

    fn defaults() -> Value {
        json!({"attn_mode": "fused_chunk"})
    }

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            ("tiny", json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "vocab_size": 1024})),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 16})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 32})),
        ]
    }

    fn check(base: &BaseConfig, own: &LinearAttnKeys) -> Result<()> {
        check_mlp(base)?;
        let k = scaled("expand_k", base.hidden_size, own.expand_k, own.num_heads)?;
        let v = scaled("expand_v", base.hidden_size, own.expand_v, own.num_heads)?;
        check_head_dim("expand_k", k / own.num_heads)?;
        check_head_dim("expand_v", v / own.num_heads)?;
        if !MAPS.contains(&own.feature_map.as_str()) {
            return Err(FeatureMap::unknown("feature_map", &own.feature_map, &MAPS));
        }
        divides("num_kv_heads", own.num_heads, own.num_kv_heads.unwrap_or(own.num_heads))
    }

    fn block(base: &BaseConfig, own: &LinearAttnKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| LinearAttention::new(at, base, own))
    }
}
