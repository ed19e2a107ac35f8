//! Config keys of HGRN2.

use crate::config::config_keys;

config_keys! {
    /// Keys of HGRN2 beside the shared ones.
    pub struct Hgrn2Keys {
        /// Heads, where `expand_ratio` is null; else there are `hidden_size / expand_ratio`.
        Results num_heads: Option<usize> = None;
        /// State channels of a head. Null: `hidden_size / num_heads`.
        Results expand_ratio: Option<usize> = Some(128);
        /// Short convolutions on q, f and i.
        Results use_short_conv: bool = false;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
        /// Learn lower bounds of the forget gates, growing from layer to layer.
        Results use_lower_bound: bool = true;
    }
}
crate::family::impl_keys!(Hgrn2Keys);

impl Hgrn2Keys {
    /// Heads, and state channels of a head.
    pub(crate) fn heads(&self, hidden: usize) -> Option<[usize; 2]> {
        let heads = match (self.expand_ratio, self.num_heads) {
            (Some(ratio), _) => hidden.checked_div(ratio)?,
            (None, heads) => heads?,
        };
        Some([heads, self.expand_ratio.or(hidden.checked_div(heads))?])
    }
}
