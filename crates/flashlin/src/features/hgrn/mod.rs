//! HGRN.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::HgrnKeys;
pub use layer::HgrnMixer;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_mlp, mixer_and_mlp, scaled},
    init::Init,
};

/// The family `hgrn`.
pub struct Hgrn;

impl FamilyDef for Hgrn {
    type Own = HgrnKeys;
    const MODEL_TYPE: &'static str = "hgrn";
    const ARCHITECTURE: &'static str = "HGRNForCausalLM";
    const SUMMARY: &'static str =
        "elementwise gated recurrence with forget gates bounded below, layer by layer";
    const PAPER: &'static str = "Qin et al., Hierarchically Gated Recurrent Neural Network for Sequence Modeling, 2023 (arXiv:2311.04823)";
    const README: &'static str = include_str!("README.md");

    fn defaults() -> Value {
        json!({"attn_mode": "fused_recurrent"})
    }

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            ("tiny", json!({"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 1024})),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24})),
        ]
    }

    fn check(base: &BaseConfig, own: &HgrnKeys) -> Result<()> {
        check_mlp(base)?;
        let width = scaled("expand_ratio", base.hidden_size, own.expand_ratio.unwrap_or(1.0), 1)?;
        if own.use_lower_bound && width != base.hidden_size {
            let why = format!(
                "gives a width of {width}; use_lower_bound needs hidden_size {} (an expand_ratio of 1)",
                base.hidden_size
            );
            return Err(Error::config("expand_ratio", why));
        }
        Ok(())
    }

    fn block(base: &BaseConfig, own: &HgrnKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| HgrnMixer::new(at, base, own, layer))
    }
}
