//! HGRN2.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::Hgrn2Keys;
pub use layer::Hgrn2Mixer;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, divides, mixer_and_mlp},
    init::Init,
};

/// The family `hgrn2`.
pub struct Hgrn2;

impl FamilyDef for Hgrn2 {
    type Own = Hgrn2Keys;
    const MODEL_TYPE: &'static str = "hgrn2";
    const ARCHITECTURE: &'static str = "HGRN2ForCausalLM";
    const SUMMARY: &'static str =
        "gated linear recurrence with outer-product states and lower-bounded forget gates";
    const PAPER: &'static str =
        "Qin et al., HGRN2: Gated Linear RNNs with State Expansion, 2024 (arXiv:2404.07904)";
    const README: &'static str = include_str!("README.md");

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "expand_ratio": 64, "vocab_size": 1024}),
            ),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "expand_ratio": 128})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "expand_ratio": 128})),
        ]
    }

    fn check(base: &BaseConfig, own: &Hgrn2Keys) -> Result<()> {
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
        if own.use_lower_bound && heads * k != base.hidden_size {
            let why = format!(
                "is {k}: {heads} heads of it are not hidden_size {}, which use_lower_bound needs",
                base.hidden_size
            );
            return Err(Error::config("expand_ratio", why));
        }
        Ok(())
    }

    fn block(base: &BaseConfig, own: &Hgrn2Keys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| Hgrn2Mixer::new(at, base, own, layer))
    }
}
