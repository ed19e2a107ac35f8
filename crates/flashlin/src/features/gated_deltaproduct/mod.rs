//! Gated DeltaProduct.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::GatedDeltaProductKeys;
pub use layer::GatedDeltaProductMixer;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, check_value_heads, mixer_and_mlp, scaled},
    init::Init,
};

/// The family `gated_deltaproduct`.
pub struct GatedDeltaProduct;

impl FamilyDef for GatedDeltaProduct {
    type Own = GatedDeltaProductKeys;
    const MODEL_TYPE: &'static str = "gated_deltaproduct";
    const ARCHITECTURE: &'static str = "GatedDeltaProductForCausalLM";
    const SUMMARY: &'static str = "several steps of the delta rule a token, with or without a decay";
    const PAPER: &'static str = "Siems et al., DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products, 2025 (arXiv:2502.10297)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["elementwise_affine"];

    fn defaults() -> Value {
        json!({"num_hidden_layers": 21})
    }

    fn presets() -> Vec<(&'static str, Value)> {
        let steps = |mut keys: Value| {
            let own = json!({"num_householder": 2, "use_forget_gate": true, "allow_neg_eigval": true});
            if let (Value::Object(keys), Value::Object(own)) = (&mut keys, own) {
                keys.extend(own);
            }
            keys
        };
        vec![
            (
                "tiny",
                steps(
                    json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "head_dim": 64, "expand_v": 1.0, "vocab_size": 1024}),
                ),
            ),
            (
                "340m",
                steps(
                    json!({"hidden_size": 1024, "num_hidden_layers": 21, "num_heads": 6, "head_dim": 128, "expand_v": 2.0}),
                ),
            ),
            (
                "1.3b",
                steps(json!({"hidden_size": 2048, "num_hidden_layers": 21, "num_heads": 6, "head_dim": 256})),
            ),
        ]
    }

    fn check(base: &BaseConfig, own: &GatedDeltaProductKeys) -> Result<()> {
        check_mlp(base)?;
        check_head_dim("head_dim", own.head_dim)?;
        check_head_dim("expand_v", scaled("expand_v", own.head_dim, own.expand_v, 1)?)?;
        if !(1..=64).contains(&own.num_householder) {
            let why = format!("is {}, expected 1 to 64", own.num_householder);
            return Err(Error::config("num_householder", why));
        }
        check_value_heads(own.num_heads, own.num_v_heads)
    }

    fn block(base: &BaseConfig, own: &GatedDeltaProductKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| GatedDeltaProductMixer::new(at, base, own))
    }
}
