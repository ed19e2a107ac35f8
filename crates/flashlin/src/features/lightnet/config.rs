//! Config keys of LightNet.

use crate::config::config_keys;

config_keys! {
    /// Keys of LightNet beside the shared ones.
    pub struct LightNetKeys {
        /// Heads. Null: `hidden_size / expand_ratio`.
        Results num_heads: Option<usize> = None;
        /// State channels of a head. Null: `hidden_size / num_heads`.
        Results expand_ratio: Option<usize> = Some(128);
        /// Short convolutions on q, k and v.
        Results use_short_conv: bool = false;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
        /// Width of the output gate's bottleneck.
        Results gate_low_rank_dim: usize = 128;
    }
}
crate::family::impl_keys!(LightNetKeys);

impl LightNetKeys {
    /// Heads, and state channels of a head.
    pub(crate) fn heads(&self, hidden: usize) -> Option<[usize; 2]> {
        match (self.num_heads, self.expand_ratio) {
            (Some(heads), Some(ratio)) => Some([heads, ratio]),
            (Some(heads), None) => Some([heads, hidden.checked_div(heads)?]),
            (None, ratio) => Some([hidden.checked_div(ratio?)?, ratio?]),
        }
    }
}
