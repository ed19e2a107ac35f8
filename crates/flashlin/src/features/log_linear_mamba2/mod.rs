//! Log-linear Mamba-2.
#![doc = include_str!("README.md")]

use serde_json::{Value, json};

use crate::{
    Error, Result,
    backbone::{Block, SubLayer},
    config::BaseConfig,
    family::FamilyDef,
    features::mamba2::{Mamba2, Mamba2Keys, Mamba2Mixer},
    init::{Dist, Init},
    modules::{GatedMlp, Norm},
    registry::KeyLayout,
};

/// Levels of the tree of states: sequences reach 2^14 tokens.
pub const LEVELS: usize = 15;

/// The family `log_linear_mamba2`.
pub struct LogLinearMamba2;

impl FamilyDef for LogLinearMamba2 {
    type Own = Mamba2Keys;
    const MODEL_TYPE: &'static str = "log_linear_mamba2";
    const ARCHITECTURE: &'static str = "LogLinearMamba2ForCausalLM";
    const SUMMARY: &'static str = "Mamba-2 with a state for each of logarithmically many spans of the past";
    const PAPER: &'static str = "Guo et al., Log-Linear Attention, 2025 (arXiv:2506.04761)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] =
        &["hidden_ratio", "intermediate_size", "fuse_swiglu", "attn", "attn_mode", "elementwise_affine"];
    const LAYOUT: KeyLayout = KeyLayout { root: "backbone", final_norm: "norm_f" };

    fn defaults() -> Value {
        let own = json!({"residual_in_fp32": false, "chunk_size": 64});
        match (Mamba2::defaults(), own) {
            (Value::Object(mut shared), Value::Object(own)) => {
                shared.extend(own);
                Value::Object(shared)
            }
            (_, own) => own,
        }
    }

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 8, "head_dim": 32, "state_size": 32, "vocab_size": 1024}),
            ),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 21, "num_heads": 32, "head_dim": 64})),
            ("825m", json!({"hidden_size": 1536, "num_hidden_layers": 21, "num_heads": 48, "head_dim": 64})),
        ]
    }

    fn check(base: &BaseConfig, own: &Mamba2Keys) -> Result<()> {
        if own.residual_in_fp32 {
            let why = "is true; supported: false (the peer has no such model either)";
            return Err(Error::config("residual_in_fp32", why));
        }
        Mamba2::check(base, own)
    }

    fn block(base: &BaseConfig, own: &Mamba2Keys, _layer: usize, init: &Init) -> Result<Block> {
        let norm = |key: &str| Norm::rms(&init.sub(key), base.hidden_size, base.norm_eps, true);
        let (mixer_norm, mlp_norm) = (norm("mixer_norm")?, norm("mlp_norm")?);
        let mixer = Mamba2Mixer::log_linear(&init.sub("mixer"), base, own, LEVELS)?;
        // Kaiming-uniform, over the square root of all residual branches.
        let bound = 1.0 / ((base.mlp_size() * 2 * base.num_hidden_layers) as f64).sqrt();
        let down = if own.rescale_prenorm_residual {
            Dist::Uniform(-bound, bound)
        } else {
            Dist::Normal(init.std())
        };
        let mlp = GatedMlp::with_down(&init.sub("mlp"), base, down)?;
        let parts = vec![
            SubLayer { key: "mixer", norm: mixer_norm, layer: Box::new(mixer) },
            SubLayer { key: "mlp", norm: mlp_norm, layer: Box::new(mlp) },
        ];
        Ok(Block { entry: None, parts, residual_f32: false })
    }
}
