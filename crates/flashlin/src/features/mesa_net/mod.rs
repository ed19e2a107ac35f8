//! MesaNet.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::MesaNetKeys;
pub use layer::MesaNetMixer;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, check_value_heads, mixer_and_mlp},
    init::Init,
};

/// The family `mesa_net`.
pub struct MesaNet;

impl FamilyDef for MesaNet {
    type Own = MesaNetKeys;
    const MODEL_TYPE: &'static str = "mesa_net";
    const ARCHITECTURE: &'static str = "MesaNetForCausalLM";
    const SUMMARY: &'static str =
        "a least-squares fit of values to keys at every token, by conjugate gradients";
    const PAPER: &'static str = "von Oswald et al., MesaNet: Sequence Modeling by Locally Optimal Test-Time Training, 2025 (arXiv:2506.05233)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["elementwise_affine"];

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "head_dim": 64, "vocab_size": 1024}),
            ),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 8, "head_dim": 128})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 16, "head_dim": 128})),
        ]
    }

    fn check(base: &BaseConfig, own: &MesaNetKeys) -> Result<()> {
        check_mlp(base)?;
        check_head_dim("head_dim", own.head_dim)?;
        if !(own.lambda_lower_bound >= 0.0 && own.lambda_lower_bound < 1.0) {
            let why = format!("is {}, expected a number in [0, 1)", own.lambda_lower_bound);
            return Err(Error::config("lambda_lower_bound", why));
        }
        for (key, n) in [
            ("max_cg_step_training", own.max_cg_step_training),
            ("max_cg_step_decoding", own.max_cg_step_decoding),
        ] {
            if n > 1000 {
                return Err(Error::config(key, format!("is {n}, expected 0 to 1000")));
            }
        }
        check_value_heads(own.num_heads, None)
    }

    fn block(base: &BaseConfig, own: &MesaNetKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| MesaNetMixer::new(at, base, own))
    }
}
