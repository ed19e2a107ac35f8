//! Mamba-2.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::Mamba2Keys;
pub use layer::Mamba2Mixer;

use crate::{
    Error, Result,
    backbone::{Block, SubLayer},
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, divides, scaled},
    init::Init,
    modules::{Norm, activation},
    registry::KeyLayout,
};

/// The family `mamba2`.
pub struct Mamba2;

impl FamilyDef for Mamba2 {
    type Own = Mamba2Keys;
    const MODEL_TYPE: &'static str = "mamba2";
    const ARCHITECTURE: &'static str = "Mamba2ForCausalLM";
    const SUMMARY: &'static str = "state-space duality: scalar decay per head with grouped B and C";
    const PAPER: &'static str = "Dao and Gu, Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality, 2024 (arXiv:2405.21060)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &[
        "hidden_ratio",
        "intermediate_size",
        "fuse_swiglu",
        "attnres_block_size",
        "attn",
        "attn_mode",
        "elementwise_affine",
    ];
    const FREEZES_PADDING: bool = false;
    const LAYOUT: KeyLayout = KeyLayout { root: "backbone", final_norm: "norm_f" };

    fn defaults() -> Value {
        json!({"num_hidden_layers": 48, "norm_eps": 1e-5, "hidden_act": "silu", "pad_token_id": 0})
    }

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 8, "head_dim": 32, "n_groups": 1, "state_size": 32, "vocab_size": 1024}),
            ),
            (
                "340m",
                json!({"hidden_size": 1024, "num_hidden_layers": 48, "num_heads": 32, "head_dim": 64, "n_groups": 1}),
            ),
            (
                "1.3b",
                json!({"hidden_size": 2048, "num_hidden_layers": 48, "num_heads": 64, "head_dim": 64, "n_groups": 1}),
            ),
        ]
    }

    fn check(base: &BaseConfig, own: &Mamba2Keys) -> Result<()> {
        let inner = scaled("expand", base.hidden_size, own.expand, 1)?;
        check_head_dim("head_dim", own.head_dim)?;
        check_head_dim("state_size", own.state_size)?;
        if inner % own.head_dim != 0 {
            let why = format!("is {}, which does not divide expand * hidden_size = {inner}", own.head_dim);
            return Err(Error::config("head_dim", why));
        }
        let heads = inner / own.head_dim;
        if let Some(n) = own.num_heads.filter(|&n| n != heads && n != 0) {
            let why = format!("is {n}, but expand * hidden_size / head_dim = {heads}");
            return Err(Error::config("num_heads", why));
        }
        divides("n_groups", heads, own.n_groups)?;
        if own.conv_kernel == 0 {
            return Err(Error::config("conv_kernel", "is 0, expected a positive integer"));
        }
        let [lo, hi] = own.A_init_range;
        if !(lo > 0.0 && hi >= lo) {
            return Err(Error::config("A_init_range", format!("is [{lo}, {hi}], expected 0 < low <= high")));
        }
        if !(own.dt_min > 0.0 && own.dt_max >= own.dt_min && own.dt_init_floor > 0.0) {
            return Err(Error::config(
                "dt_min",
                "and dt_max, dt_init_floor: expected 0 < dt_min <= dt_max, floor > 0",
            ));
        }
        let [lo, hi] = own.dt_limit;
        if !(lo >= 0.0 && hi >= lo) {
            return Err(Error::config("dt_limit", format!("is [{lo}, {hi}], expected 0 <= low <= high")));
        }
        activation("hidden_act", &base.hidden_act).map(|_| ())
    }

    fn block(base: &BaseConfig, own: &Mamba2Keys, _layer: usize, init: &Init) -> Result<Block> {
        let norm = Norm::rms(&init.sub("norm"), base.hidden_size, base.norm_eps, true)?;
        let mixer = Mamba2Mixer::new(&init.sub("mixer"), base, own)?;
        let parts = vec![SubLayer { key: "mixer", norm, layer: Box::new(mixer) }];
        Ok(Block { entry: None, parts, residual_f32: own.residual_in_fp32 })
    }
}
