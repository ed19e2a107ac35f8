//! ABC.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::AbcKeys;
pub use layer::AbcAttention;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, even_head_dim, mixer_and_mlp, scaled},
    init::Init,
};

/// The family `abc`.
pub struct Abc;

impl FamilyDef for Abc {
    type Own = AbcKeys;
    const MODEL_TYPE: &'static str = "abc";
    const ARCHITECTURE: &'static str = "ABCForCausalLM";
    const SUMMARY: &'static str = "softmax attention over slots that are running averages of keys and values";
    const PAPER: &'static str =
        "Peng et al., ABC: Attention with Bounded-memory Control, 2021 (arXiv:2110.02488)";
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

    fn check(base: &BaseConfig, own: &AbcKeys) -> Result<()> {
        check_mlp(base)?;
        let k = scaled("expand_k", base.hidden_size, own.expand_k, own.num_heads)?;
        let v = scaled("expand_v", base.hidden_size, own.expand_v, own.num_heads)?;
        check_head_dim("expand_k", k / own.num_heads)?;
        check_head_dim("expand_v", v / own.num_heads)?;
        check_head_dim("num_slots", own.num_slots.unwrap_or(k / own.num_heads))?;
        if own.use_rope {
            even_head_dim("expand_k", k / own.num_heads)?;
        }
        if let (Some(lo), Some(hi)) = (own.clamp_min, own.clamp_max)
            && (lo > hi || lo.is_nan() || hi.is_nan())
        {
            return Err(Error::config("clamp_min", format!("is {lo}, above clamp_max {hi}")));
        }
        Ok(())
    }

    fn block(base: &BaseConfig, own: &AbcKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| AbcAttention::new(at, base, own))
    }
}
