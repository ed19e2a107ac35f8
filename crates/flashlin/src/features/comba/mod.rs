//! Comba.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::CombaKeys;
pub use layer::CombaMixer;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, check_value_heads, mixer_and_mlp, scaled},
    init::Init,
};

/// The family `comba`.
pub struct Comba;

impl FamilyDef for Comba {
    type Own = CombaKeys;
    const MODEL_TYPE: &'static str = "comba";
    const ARCHITECTURE: &'static str = "CombaForCausalLM";
    const SUMMARY: &'static str = "a gated delta rule with a feedback key of its own and a corrected output";
    const PAPER: &'static str =
        "Hu et al., Comba: Improving Bilinear RNNs with Closed-loop Control, 2025 (arXiv:2506.02475)";
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
                "340m",
                json!({"hidden_size": 1024, "num_hidden_layers": 21, "num_heads": 6, "head_dim": 128, "correction_factor": 0.02}),
            ),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 21, "num_heads": 6, "head_dim": 256})),
        ]
    }

    fn check(base: &BaseConfig, own: &CombaKeys) -> Result<()> {
        check_mlp(base)?;
        check_head_dim("head_dim", own.head_dim)?;
        check_head_dim("expand_v", scaled("expand_v", own.head_dim, own.expand_v, 1)?)?;
        if !own.correction_factor.is_finite() {
            let why = format!("is {}, expected a number", own.correction_factor);
            return Err(Error::config("correction_factor", why));
        }
        check_value_heads(own.num_heads, own.num_v_heads)
    }

    fn block(base: &BaseConfig, own: &CombaKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| CombaMixer::new(at, base, own))
    }
}
