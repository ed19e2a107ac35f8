//! Samba.
#![doc = include_str!("README.md")]

mod config;

use serde_json::{Value, json};

pub use config::SambaKeys;

use crate::{
    Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_mlp, named_mixer_and_mlp},
    init::Init,
    layer::Layer,
    modules::{Activation, Attention, MambaMixer},
    registry::KeyLayout,
};

/// The family `samba`.
pub struct Samba;

/// Layers of the default attention.
const LAYERS: [usize; 9] = [1, 3, 5, 7, 9, 11, 13, 15, 17];

/// Sliding-window attention at every second layer.
fn default_attention(layers: &[usize]) -> Value {
    json!({"layers": layers, "num_heads": 18, "num_kv_heads": 18, "qkv_bias": false, "window_size": 2048, "rope_theta": 10000.0})
}

impl FamilyDef for Samba {
    type Own = SambaKeys;
    const MODEL_TYPE: &'static str = "samba";
    const ARCHITECTURE: &'static str = "SambaForCausalLM";
    const SUMMARY: &'static str =
        "Mamba mixers in turn with sliding-window attention, each followed by an MLP";
    const PAPER: &'static str = "Ren et al., Samba: Simple Hybrid State Space Models for Efficient Unlimited Context Language Modeling, 2024 (arXiv:2406.07522)";
    const README: &'static str = include_str!("README.md");
    const PEER_CROSSES_BOUNDARIES: bool = true;
    const ABSENT: &'static [&'static str] = &["attn_mode", "elementwise_affine"];
    const FREEZES_PADDING: bool = false;
    const LAYOUT: KeyLayout = KeyLayout { root: "backbone", final_norm: "norm_f" };

    fn defaults() -> Value {
        json!({"hidden_size": 2304, "num_hidden_layers": 18, "norm_eps": 1e-5, "pad_token_id": 0, "attn": default_attention(&LAYERS)})
    }

    fn adapt(base: &mut BaseConfig) {
        // A shallower model keeps the layers of the default that it has, also where a file spells the default out.
        if base.attn == default_attention(&LAYERS) {
            let layers: Vec<usize> = LAYERS.into_iter().filter(|&l| l < base.num_hidden_layers).collect();
            base.attn = default_attention(&layers);
        }
    }

    fn presets() -> Vec<(&'static str, Value)> {
        let attention = |layers: &[usize], heads: usize, window: usize| json!({"layers": layers, "num_heads": heads, "num_kv_heads": heads, "window_size": window});
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "attn": attention(&[1, 3], 2, 64), "vocab_size": 1024}),
            ),
            (
                "340m",
                json!({"hidden_size": 1024, "num_hidden_layers": 24, "attn": attention(&[1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23], 16, 2048)}),
            ),
            ("1.3b", json!({"hidden_size": 2304, "num_hidden_layers": 18})),
        ]
    }

    fn check(base: &BaseConfig, own: &SambaKeys) -> Result<()> {
        check_mlp(base)?;
        own.mixer().check(base)
    }

    fn block(base: &BaseConfig, own: &SambaKeys, layer: usize, init: &Init) -> Result<Block> {
        let at = init.sub("mixer");
        let mixer: Box<dyn Layer> = match base.attention_at(layer)? {
            Some(spec) => Box::new(Attention::from_spec(&at, base.hidden_size, &spec)?),
            None => Box::new(MambaMixer::new(&at, &own.mixer().options(base, init, Activation::Silu)?)?),
        };
        // `intermediate_size` belongs to the mixers; the MLP's width comes from `hidden_ratio`.
        let mlp = BaseConfig { intermediate_size: None, ..base.clone() };
        named_mixer_and_mlp(base, init, mixer, &mlp)
    }
}
