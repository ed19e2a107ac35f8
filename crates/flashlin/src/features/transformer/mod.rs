//! The softmax-attention transformer.
#![doc = include_str!("README.md")]

mod config;

use serde_json::{Value, json};

pub use config::TransformerKeys;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{
        FamilyDef, check_attention_head, check_mlp, check_window, divides, even_head_dim, mixer_and_mlp,
    },
    init::Init,
    modules::{Attention, AttentionOptions},
};

/// The family `transformer`.
pub struct Transformer;

impl FamilyDef for Transformer {
    type Own = TransformerKeys;
    const MODEL_TYPE: &'static str = "transformer";
    const ARCHITECTURE: &'static str = "TransformerForCausalLM";
    const SUMMARY: &'static str = "softmax attention with rotary embedding: the baseline";
    const PAPER: &'static str = "Vaswani et al., Attention Is All You Need, 2017 (arXiv:1706.03762); Touvron et al., LLaMA, 2023 (arXiv:2302.13971)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["attn", "attn_mode", "elementwise_affine"];

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            ("tiny", json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "vocab_size": 1024})),
            ("340m", json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 16})),
            ("1.3b", json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 32})),
        ]
    }

    fn check(base: &BaseConfig, own: &TransformerKeys) -> Result<()> {
        check_mlp(base)?;
        divides("num_heads", base.hidden_size, own.num_heads)?;
        check_attention_head("num_heads", base.hidden_size / own.num_heads)?;
        even_head_dim("num_heads", base.hidden_size / own.num_heads)?;
        divides("num_kv_heads", own.num_heads, own.num_kv_heads.unwrap_or(own.num_heads))?;
        check_window(own.window_size)?;
        if !(own.rope_theta > 0.0 && own.rope_theta.is_finite()) {
            return Err(Error::config(
                "rope_theta",
                format!("is {}, expected a positive number", own.rope_theta),
            ));
        }
        Ok(())
    }

    fn block(base: &BaseConfig, own: &TransformerKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| {
            let options = AttentionOptions {
                heads: own.num_heads,
                kv_heads: own.num_kv_heads.unwrap_or(own.num_heads),
                qkv_bias: own.qkv_bias,
                qk_norm: own.qk_norm,
                window: own.window_size,
                rope_theta: own.rope_theta,
            };
            Attention::new(at, base.hidden_size, &options)
        })
    }
}
