//! Config keys of Gated DeltaNet.

use crate::config::config_keys;

config_keys! {
    /// Keys of Gated DeltaNet beside the shared ones.
    pub struct GatedDeltaNetKeys {
        /// Width of a value head as a multiple of `head_dim`.
        Results expand_v: f64 = 2.0, aliases ["exapnd_v"];
        /// Width of a key head.
        Results head_dim: usize = 256;
        /// Query and key heads.
        Results num_heads: usize = 6;
        /// Value heads, a multiple of `num_heads`. Null: `num_heads`.
        Results num_v_heads: Option<usize> = None;
        /// Gate the output.
        Results use_gate: bool = true;
        /// Activation of the output gate: swish (silu) or sigmoid.
        Results output_gate_activation: String = "swish".into();
        /// Short convolutions on q, k and v.
        Results use_short_conv: bool = true;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
        /// Double beta, so that eigenvalues of the transition may be negative.
        Results allow_neg_eigval: bool = false;
    }
}
crate::family::impl_keys!(GatedDeltaNetKeys);
