//! Config keys of the forgetting transformer.

use crate::config::config_keys;

config_keys! {
    /// Keys of the forgetting transformer beside the shared ones.
    pub struct ForgettingKeys {
        /// Query heads.
        Results num_heads: usize = 32;
        /// Key/value heads. Null: `num_heads`.
        Results num_kv_heads: Option<usize> = None;
        /// Biases on the q, k and v projections.
        Results qkv_bias: bool = false;
        /// RMS norm on each head of q and k.
        Results qk_norm: bool = false;
        /// Tokens a query sees, itself included. Null: all before it.
        Results window_size: Option<usize> = None;
        /// Gate the output.
        Results use_output_gate: bool = false;
        /// The peer's model never reads it: its norms have weights.
        Hint elementwise_affine: Option<bool> = Some(true);
    }
}
crate::family::impl_keys!(ForgettingKeys);
