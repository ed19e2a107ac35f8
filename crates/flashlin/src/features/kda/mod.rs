//! Kimi delta attention.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::KdaKeys;
pub use layer::KimiDeltaAttention;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, check_value_heads, mixer_and_mlp, scaled},
    init::Init,
};

/// The family `kda`.
pub struct Kda;

impl FamilyDef for Kda {
    type Own = KdaKeys;
    const MODEL_TYPE: &'static str = "kda";
    const ARCHITECTURE: &'static str = "KDAForCausalLM";
    const SUMMARY: &'static str = "the delta rule with a decay per key channel";
    const PAPER: &'static str =
        "Kimi Team, Kimi Linear: An Expressive, Efficient Attention Architecture, 2025 (arXiv:2510.26692)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["elementwise_affine", "fuse_linear_cross_entropy"];

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "head_dim": 64, "vocab_size": 1024}),
            ),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 8})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 16})),
        ]
    }

    fn check(base: &BaseConfig, own: &KdaKeys) -> Result<()> {
        check_mlp(base)?;
        check_head_dim("head_dim", own.head_dim)?;
        check_head_dim("expand_v", scaled("expand_v", own.head_dim, own.expand_v, 1)?)?;
        match own.lower_bound {
            None if own.safe_gate => {
                return Err(Error::config("lower_bound", "is null, but safe_gate needs one in [-5, 0)"));
            }
            Some(b) if own.safe_gate && !(-5.0..0.0).contains(&b) => {
                let problem = format!("is {b}, expected a number in [-5, 0) with safe_gate");
                return Err(Error::config("lower_bound", problem));
            }
            Some(b) if !(b < 0.0 && b.is_finite()) => {
                return Err(Error::config("lower_bound", format!("is {b}, expected a number < 0 or null")));
            }
            _ => {}
        }
        check_value_heads(own.num_heads, own.num_v_heads)
    }

    fn block(base: &BaseConfig, own: &KdaKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| KimiDeltaAttention::new(at, base, own))
    }
}
