//! Mamba.
#![doc = include_str!("README.md")]

mod config;

use serde_json::{Value, json};

pub use config::MambaKeys;

use crate::{
    Result,
    backbone::{Block, SubLayer},
    config::BaseConfig,
    family::FamilyDef,
    init::Init,
    modules::{MambaMixer, Norm, activation},
    registry::KeyLayout,
};

/// The family `mamba`.
pub struct Mamba;

impl FamilyDef for Mamba {
    type Own = MambaKeys;
    const MODEL_TYPE: &'static str = "mamba";
    const ARCHITECTURE: &'static str = "MambaForCausalLM";
    const SUMMARY: &'static str =
        "selective state space: a small state a channel, steps and projections by token";
    const PAPER: &'static str = "Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023 (arXiv:2312.00752)";
    const README: &'static str = include_str!("README.md");
    const PEER_CROSSES_BOUNDARIES: bool = true;
    const ABSENT: &'static [&'static str] =
        &["hidden_ratio", "fuse_swiglu", "attnres_block_size", "attn", "attn_mode", "elementwise_affine"];
    const FREEZES_PADDING: bool = false;
    const LAYOUT: KeyLayout = KeyLayout { root: "backbone", final_norm: "norm_f" };

    fn defaults() -> Value {
        json!({"num_hidden_layers": 48, "norm_eps": 1e-5, "hidden_act": "silu", "pad_token_id": 0})
    }

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            ("tiny", json!({"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 1024})),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 48})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 48})),
        ]
    }

    fn check(base: &BaseConfig, own: &MambaKeys) -> Result<()> {
        own.check(base)
    }

    fn block(base: &BaseConfig, own: &MambaKeys, _layer: usize, init: &Init) -> Result<Block> {
        let norm = Norm::rms(&init.sub("norm"), base.hidden_size, base.norm_eps, true)?;
        let act = activation("hidden_act", &base.hidden_act)?;
        let mixer = MambaMixer::new(&init.sub("mixer"), &own.options(base, init, act)?)?;
        let parts = vec![SubLayer { key: "mixer", norm, layer: Box::new(mixer) }];
        Ok(Block { entry: None, parts, residual_f32: own.residual_in_fp32 })
    }
}
