//! Config keys of multi-head latent attention.

use serde_json::Value;

use crate::config::config_keys;

config_keys! {
    /// Keys of multi-head latent attention beside the shared ones.
    pub struct MlaKeys {
        /// Heads.
        Results num_heads: usize = 16;
        /// Width of the queries' bottleneck. Null: one full projection.
        Results q_lora_rank: Option<usize> = Some(64);
        /// Channels of a head of q and k with rotary embedding.
        Results qk_rope_head_dim: usize = 64;
        /// Width of the latent that keys and values are made of.
        Results kv_lora_rank: usize = 512;
        /// Channels of a value head.
        Results v_head_dim: usize = 128;
        /// Channels of a head of q and k without rotary embedding.
        Results qk_nope_head_dim: usize = 128;
        /// Sum of the two, checked where given.
        Results qk_head_dim: Option<usize> = Some(192);
        /// Tokens a query sees, itself included. Null: all before it.
        Results window_size: Option<usize> = None;
        /// Base of the rotary embedding.
        Results rope_theta: f64 = 10000.0;
        /// Null, or a dict with `rope_type`, `factor`, `mscale_all_dim`: what it does to the softmax scale.
        Results rope_scaling: Value = Value::Null;
        /// What newer versions of `transformers` write beside `rope_theta`.
        Hint rope_parameters: Value = Value::Null;
        /// The peer's model never reads it: its norms have weights.
        Hint elementwise_affine: Option<bool> = Some(true);
    }
}
crate::family::impl_keys!(MlaKeys);
