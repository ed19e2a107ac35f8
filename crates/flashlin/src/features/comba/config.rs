//! Config keys of Comba.

use crate::config::config_keys;

config_keys! {
    /// Keys of Comba beside the shared ones.
    pub struct CombaKeys {
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
        /// Subtract the feedback key, weighted per head, from the query.
        Results use_output_correction: bool = true;
        /// Scale the feedback key by a learnt number per head.
        Results use_inner_decay: bool = true;
        /// Initial weight of the output correction.
        Results correction_factor: f64 = 1.0;
        /// Short convolutions on q, k and v.
        Results use_short_conv: bool = true;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
    }
}
crate::family::impl_keys!(CombaKeys);
