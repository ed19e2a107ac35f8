//! RWKV-7.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::Rwkv7Keys;
pub use layer::{Rwkv7Ffn, Rwkv7Mixer};

use crate::{
    Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_head_dim},
    init::{Dist, Init},
    modules::{activation, rwkv_block},
    registry::Ends,
};

/// The family `rwkv7`.
pub struct Rwkv7;

impl FamilyDef for Rwkv7 {
    type Own = Rwkv7Keys;
    const MODEL_TYPE: &'static str = "rwkv7";
    const ARCHITECTURE: &'static str = "RWKV7ForCausalLM";
    const SUMMARY: &'static str =
        "a generalised delta rule with a decay a channel, token shift and value residual";
    const PAPER: &'static str =
        "Peng et al., RWKV-7 \"Goose\" with Expressive Dynamic State Evolution, 2025 (arXiv:2503.14456)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["fuse_swiglu", "attnres_block_size", "elementwise_affine"];

    fn defaults() -> Value {
        json!({"hidden_act": "sqrelu", "norm_eps": 1e-5, "use_l2warp": true})
    }

    fn presets() -> Vec<(&'static str, Value)> {
        let goose = |hidden: usize, layers: usize, ranks: [usize; 4]| {
            let [decay, gate, a, v] = ranks;
            json!({"hidden_size": hidden, "num_hidden_layers": layers, "head_dim": 64, "vocab_size": 65536, "decay_low_rank_dim": decay,
                "gate_low_rank_dim": gate, "a_low_rank_dim": a, "v_low_rank_dim": v})
        };
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "head_dim": 64, "decay_low_rank_dim": 32, "gate_low_rank_dim": 32,
                    "a_low_rank_dim": 32, "v_low_rank_dim": 32, "vocab_size": 1024}),
            ),
            ("0.1b", goose(768, 12, [64, 128, 64, 32])),
            ("0.4b", goose(1024, 24, [64, 128, 64, 32])),
            ("1.5b", goose(2048, 24, [96, 256, 96, 64])),
            ("2.9b", goose(2560, 32, [96, 320, 96, 64])),
        ]
    }

    fn check(base: &BaseConfig, own: &Rwkv7Keys) -> Result<()> {
        let sizes = own.sizes(base)?;
        check_head_dim("head_dim", sizes.head_dim)?;
        check_head_dim("value_dim", sizes.value_dim / sizes.heads)?;
        activation("hidden_act", &base.hidden_act).map(|_| ())
    }

    fn block(base: &BaseConfig, own: &Rwkv7Keys, layer: usize, init: &Init) -> Result<Block> {
        let mixer = |at: &Init| Rwkv7Mixer::new(at, base, own, layer);
        rwkv_block(base, layer, init, [own.norm_first, own.norm_bias], mixer, |at| {
            Rwkv7Ffn::new(at, base, layer)
        })
    }

    fn ends(base: &BaseConfig, own: &Rwkv7Keys) -> Ends {
        let wide = (base.vocab_size as f64 / base.hidden_size as f64).max(1.0).sqrt();
        Ends {
            embedding: Dist::Uniform(-1e-4, 1e-4),
            head: Dist::Orthogonal(0.5 * wide),
            layer_norm_bias: Some(own.norm_bias),
        }
    }
}
