//! Native sparse attention.
#![doc = include_str!("README.md")]

mod config;
mod layer;

use serde_json::{Value, json};

pub use config::NsaKeys;
pub use layer::NativeSparseAttention;

use crate::{
    Error, Result,
    backbone::Block,
    config::BaseConfig,
    family::{FamilyDef, check_attention_head, check_mlp, even_head_dim, mixer_and_mlp},
    init::Init,
};

/// The family `nsa`.
pub struct Nsa;

impl FamilyDef for Nsa {
    type Own = NsaKeys;
    const MODEL_TYPE: &'static str = "nsa";
    const ARCHITECTURE: &'static str = "NSAForCausalLM";
    const SUMMARY: &'static str = "softmax attention over block means, selected blocks and a window";
    const PAPER: &'static str = "Yuan et al., Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention, 2025 (arXiv:2502.11089)";
    const README: &'static str = include_str!("README.md");
    const ABSENT: &'static [&'static str] = &["attn", "attn_mode"];

    fn presets() -> Vec<(&'static str, Value)> {
        vec![
            (
                "tiny",
                json!({"hidden_size": 128, "num_hidden_layers": 4, "num_heads": 16, "num_kv_heads": 1, "head_dim": 16, "block_size": 16,
                    "block_counts": 4, "window_size": 32, "vocab_size": 1024}),
            ),
            (
                "340m",
                json!({"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 32, "num_kv_heads": 2, "head_dim": 32}),
            ),
            (
                "1.3b",
                json!({"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 64, "num_kv_heads": 4, "head_dim": 32}),
            ),
        ]
    }

    fn check(base: &BaseConfig, own: &NsaKeys) -> Result<()> {
        check_mlp(base)?;
        check_attention_head("head_dim", own.head_dim)?;
        even_head_dim("head_dim", own.head_dim)?;
        let kv = own.num_kv_heads.unwrap_or(own.num_heads);
        if own.num_heads == 0 || kv == 0 || !own.num_heads.is_multiple_of(kv) {
            let why = format!("is {kv}, expected a divisor of num_heads {}", own.num_heads);
            return Err(Error::config("num_kv_heads", why));
        }
        for (key, n) in [("block_size", own.block_size), ("block_counts", own.block_counts)] {
            if n == 0 {
                return Err(Error::config(key, "is 0, expected a positive integer"));
            }
        }
        Ok(())
    }

    fn block(base: &BaseConfig, own: &NsaKeys, layer: usize, init: &Init) -> Result<Block> {
        mixer_and_mlp(base, layer, init, |at| NativeSparseAttention::new(at, base, own))
    }
}
