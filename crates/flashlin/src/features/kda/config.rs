//! Config keys of Kimi delta attention.

use crate::config::config_keys;

config_keys! {
    /// Keys of KDA beside the shared ones.
    pub struct KdaKeys {
        /// Width of a value head as a multiple of `head_dim`.
        Results expand_v: f64 = 1.0, aliases ["exapnd_v"];
        /// Width of a key head.
        Results head_dim: usize = 128;
        /// Query and key heads.
        Results num_heads: usize = 16;
        /// Value heads, a multiple of `num_heads`. Null: `num_heads`.
        Results num_v_heads: Option<usize> = None;
        /// Short convolutions on q, k and v.
        Results use_short_conv: bool = true;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
        /// Double beta, so that eigenvalues of the transition may be negative.
        Results allow_neg_eigval: bool = false;
        /// The gate is bounded below (needs `lower_bound`); `A_log` then starts at zero.
        Results safe_gate: bool = false;
        /// Lower bound of the log decay, below 0 (with `safe_gate` at least -5): the gate is `lower_bound * sigmoid(e^A (f + dt_bias))`.
        Results lower_bound: Option<f64> = None;
    }
}
crate::family::impl_keys!(KdaKeys);
