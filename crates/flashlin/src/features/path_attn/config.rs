//! Config keys of PaTH attention.

use crate::config::config_keys;

config_keys! {
    /// Keys of PaTH attention beside the shared ones.
    pub struct PathAttnKeys {
        /// Query heads.
        Results num_heads: usize = 32;
        /// Key/value heads, a divisor of `num_heads`. Null: `num_heads`.
        Results num_kv_heads: Option<usize> = None;
        /// Forget gates on the scores (PaTH-FoX).
        Results use_forget_gate: bool = false;
        /// A short convolution of width 3 on the directions.
        Results use_w_shortconv: bool = true;
        /// Directions through a bottleneck of 32.
        Results use_low_rank_w: bool = true;
    }
}
crate::family::impl_keys!(PathAttnKeys);
