//! PaTH attention.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::PathAttnKeys;
pub use layer::PathAttention;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_attention_head, check_mlp, divides, mixer_and_mlp},
    init::Init,
};

/// The family `path_attn`.
pub struct PathAttn;

impl FamilyDef for PathAttn {
    type Own = PathAttnKeys;
    const MODEL_TYPE: &'static str = "path_attn";
    const ARCHITECTURE: &'static str = "PaTHAttentionForCausalLM";
    const SUMMARY: &'static str =
        "softmax attention with data-dependent products of Householder matrices for positions";
    const PAPER: &'static str = "Yang et al., PaTH Attention: Position Encoding via Accumulating Householder Transformations, 2025 (arXiv:2505.16381)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["attn", "attn_mode"];

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            ("tiny", json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "vocab_size": 1024})),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 16})),
            ("760m", json!({"hidden_size": 1536, "num_hidden_layers": 24, "num_heads": 24})),
        ]
    }

    fn check(base: &BaseConfig, own: &PathAttnKeys) -> Result<()> {
        check_mlp(base)?;
        divides("num_heads", base.hidden_size, own.num_heads)?;
        check_attention_head("num_heads", base.hidden_size / own.num_heads)?;
        match own.num_kv_heads {
            Some(kv) if kv == 0 || !own.num_heads.is_multiple_of(kv) => Err(Error::config(
                "num_kv_heads",
                format!("is {kv}, expected a divisor of num_heads {}", own.num_heads),
            )),
            _ => Ok(()),
        }
    }

    fn block(base: &BaseConfig, own: &PathAttnKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| PathAttention::new(at, base, own))
    }
}
