//! Config keys of Gated DeltaProduct.

use crate::config::config_keys;

config_keys! {
    /// Keys of Gated DeltaProduct beside the shared ones.
    pub struct GatedDeltaProductKeys {
        /// Width of a value head as a multiple of `head_dim`.
        Results expand_v: f64 = 2.0, aliases ["exapnd_v"];
        /// Width of a key head.
        Results head_dim: usize = 256;
        /// Query and key heads.
        Results num_heads: usize = 6;
        /// Value heads, a multiple of `num_heads`. Null: `num_heads`.
        Results num_v_heads: Option<usize> = None;
        /// Gate the output.
        Results use_output_gate: bool = true;
        /// Decay the state once a token. Without it the model is DeltaProduct.
        Results use_forget_gate: bool = false;
        /// Double beta, so that eigenvalues of the transition may be negative.
        Results allow_neg_eigval: bool = false;
        /// Updates of the state a token.
        Results num_householder: usize = 1;
        /// Short convolutions on q, k and v.
        Results use_short_conv: bool = true;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
    }
}
crate::family::impl_keys!(GatedDeltaProductKeys);
