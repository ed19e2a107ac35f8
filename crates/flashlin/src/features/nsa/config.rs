//! Config keys of native sparse attention.

use crate::config::config_keys;

config_keys! {
    /// Keys of native sparse attention beside the shared ones.
    pub struct NsaKeys {
        /// Query heads.
        Results num_heads: usize = 64;
        /// Key/value heads, a divisor of `num_heads`. Null: `num_heads`.
        Results num_kv_heads: Option<usize> = Some(4);
        /// Width of a head.
        Results head_dim: usize = 32;
        /// Biases on the q, k and v projections.
        Results qkv_bias: bool = false;
        /// Tokens of a block.
        Results block_size: usize = 64;
        /// Blocks that a query selects.
        Results block_counts: usize = 16;
        /// Keys of the window branch, the own token included. Null or 0: no such branch.
        Results window_size: Option<usize> = Some(512);
        /// Base of the rotary embedding.
        Results rope_theta: f64 = 10000.0;
    }
}
crate::family::impl_keys!(NsaKeys);
