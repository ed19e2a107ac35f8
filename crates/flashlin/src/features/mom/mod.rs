//! Mixture of memories.
#![doc = include_str!("README.md")]

mod config;
mod layer;
mod routing;

use flashlin_tensor::Var;
use serde_json::{Value, json};

pub use config::MomKeys;
pub use layer::MomMixer;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, check_mlp, mixer_and_mlp, scaled},
    init::Init,
    layer::Carried,
};

/// The family `mom`.
pub struct Mom;

/// What the layers' router logits are carried under, `[layers and tokens, memories]`.
const ROUTER: &str = "router_logits";

impl FamilyDef for Mom {
    type Own = MomKeys;
    const MODEL_TYPE: &'static str = "mom";
    const ARCHITECTURE: &'static str = "MomForCausalLM";
    const SUMMARY: &'static str = "gated delta-rule memories, of which a router chooses a few for each token";
    const PAPER: &'static str =
        "Du et al., MoM: Linear Sequence Modeling with Mixture-of-Memories, 2025 (arXiv:2502.13685)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["elementwise_affine"];

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "head_dim": 32, "vocab_size": 1024}),
            ),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 4, "head_dim": 128})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 4, "head_dim": 256})),
        ]
    }

    fn check(base: &BaseConfig, own: &MomKeys) -> Result<()> {
        check_mlp(base)?;
        if own.num_heads == 0 || own.num_heads > 1 << 16 {
            return Err(Error::config("num_heads", format!("is {}, expected 1..=65536", own.num_heads)));
        }
        check_head_dim("head_dim", own.head_dim)?;
        check_head_dim("expand_v", scaled("expand_v", own.head_dim, own.expand_v, 1)?)?;
        if own.num_memories == 0 || own.num_memories > 1 << 12 {
            return Err(Error::config("num_memories", format!("is {}, expected 1..=4096", own.num_memories)));
        }
        if own.topk == 0 || own.topk > own.num_memories {
            let why = format!("is {}, expected 1..={} (num_memories)", own.topk, own.num_memories);
            return Err(Error::config("topk", why));
        }
        if own.use_short_conv && (own.conv_size == 0 || own.conv_size > 1 << 10) {
            return Err(Error::config("conv_size", format!("is {}, expected 1..=1024", own.conv_size)));
        }
        if own.mom_backend != "gated_deltanet" {
            let why = format!("is `{}`; supported: gated_deltanet", own.mom_backend);
            return Err(Error::config("mom_backend", why));
        }
        match own.aux_loss_scale.is_finite() {
            true => Ok(()),
            false => Err(Error::config("aux_loss_scale", "is not a finite number")),
        }
    }

    fn block(base: &BaseConfig, own: &MomKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| MomMixer::new(at, base, own))
    }

    fn extra_loss(own: &MomKeys, carried: &Carried) -> Result<Option<Var>> {
        let Some(logits) = carried.get(ROUTER).filter(|l| l.dim(0) > 0) else { return Ok(None) };
        Ok(Some(routing::balance(logits, own.topk)?.affine(own.aux_loss_scale, 0.0)?))
    }
}
