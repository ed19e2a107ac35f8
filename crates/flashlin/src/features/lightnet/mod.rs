//! LightNet.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::LightNetKeys;
pub use layer::LightNetMixer;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, divides, mixer_and_mlp},
    init::Init,
};

/// The family `lightnet`.
pub struct LightNet;

impl FamilyDef for LightNet {
    type Own = LightNetKeys;
    const MODEL_TYPE: &'static str = "lightnet";
    const ARCHITECTURE: &'static str = "LightNetForCausalLM";
    const SUMMARY: &'static str = "linear attention with keys normalised by a running softmax over time";
    const PAPER: &'static str = "Qin et al., You Only Scan Once: Efficient Multi-dimension Sequential Modeling with LightNet, 2024 (arXiv:2405.21022)";
    const README: &'static str = include_str!("README.md");

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "expand_ratio": 64, "gate_low_rank_dim": 32, "vocab_size": 1024}),
            ),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "expand_ratio": 128})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "expand_ratio": 128})),
        ]
    }

    fn check(base: &BaseConfig, own: &LightNetKeys) -> Result<()> {
        check_mlp(base)?;
        let Some([heads, k]) = own.heads(base.hidden_size) else {
            return Err(Error::config(
                "expand_ratio",
                "and num_heads do not give heads: one of them must be a positive integer",
            ));
        };
        divides("num_heads", base.hidden_size, heads)?;
        check_head_dim("expand_ratio", k)?;
        check_head_dim("num_heads", base.hidden_size / heads)?;
        if own.gate_low_rank_dim == 0 {
            return Err(Error::config("gate_low_rank_dim", "is 0, expected a positive integer"));
        }
        Ok(())
    }

    fn block(base: &BaseConfig, own: &LightNetKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| LightNetMixer::new(at, base, own))
    }
}
