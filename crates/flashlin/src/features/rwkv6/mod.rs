//! RWKV-6.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::Rwkv6Keys;
pub use layer::{Rwkv6Ffn, Rwkv6Mixer};

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim, scaled},
    init::Init,
    modules::{activation, rwkv_block},
    registry::Ends,
};

/// The family `rwkv6`.
pub struct Rwkv6;

impl FamilyDef for Rwkv6 {
    type Own = Rwkv6Keys;
    const MODEL_TYPE: &'static str = "rwkv6";
    const ARCHITECTURE: &'static str = "RWKV6ForCausalLM";
    const SUMMARY: &'static str =
        "a decay a channel with a bonus for the own token, behind data-dependent token shifts";
    const PAPER: &'static str = "Peng et al., Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence, 2024 (arXiv:2404.05892)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["fuse_swiglu", "attnres_block_size", "elementwise_affine"];

    fn defaults() -> Value {
        json!({"hidden_act": "sqrelu", "norm_eps": 1e-5, "hidden_ratio": 3.5})
    }

    fn presets() -> Vec<(&'static str, Value)> {
        let finch = |hidden: usize, layers: usize, ranks: [usize; 2]| {
            json!({"hidden_size": hidden, "num_hidden_layers": layers, "num_heads": hidden / 64, "expand_k": 1.0, "vocab_size": 65536,
                "proj_low_rank_dim": ranks[0], "gate_low_rank_dim": ranks[1]})
        };
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "expand_k": 1.0, "proj_low_rank_dim": 16,
                    "gate_low_rank_dim": 16, "vocab_size": 1024}),
            ),
            ("1.6b", finch(2048, 24, [32, 64])),
            ("3b", finch(2560, 32, [32, 64])),
            ("7b", finch(4096, 32, [64, 128])),
        ]
    }

    fn check(base: &BaseConfig, own: &Rwkv6Keys) -> Result<()> {
        for (key, expand) in [("expand_k", own.expand_k), ("expand_v", own.expand_v)] {
            let width = scaled(key, base.hidden_size, expand, own.num_heads)?;
            check_head_dim(key, width / own.num_heads)?;
        }
        for (key, n) in
            [("proj_low_rank_dim", own.proj_low_rank_dim), ("gate_low_rank_dim", own.gate_low_rank_dim)]
        {
            if !(1..=1 << 20).contains(&n) {
                return Err(Error::config(key, format!("is {n}, expected a positive width")));
            }
        }
        activation("hidden_act", &base.hidden_act).map(|_| ())
    }

    fn block(base: &BaseConfig, own: &Rwkv6Keys, layer: usize, init: &Init) -> Result<Block> {
        let mixer = |at: &Init| Rwkv6Mixer::new(at, base, own);
        rwkv_block(base, layer, init, [own.norm_first, own.norm_bias], mixer, |at| Rwkv6Ffn::new(at, base))
    }

    fn ends(base: &BaseConfig, own: &Rwkv6Keys) -> Ends {
        Ends { layer_norm_bias: Some(own.norm_bias), ..Ends::usual(base) }
    }
}
