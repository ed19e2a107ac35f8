//! Config keys of HGRN.

use crate::config::config_keys;

config_keys! {
    /// Keys of HGRN beside the shared ones.
    pub struct HgrnKeys {
        /// Width of the recurrence as a multiple of `hidden_size` (1 with `use_lower_bound`).
        Results expand_ratio: Option<f64> = Some(1.0);
        /// Short convolutions on i and f.
        Results use_short_conv: bool = false;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
        /// Learn lower bounds of the forget gates, growing from layer to layer.
        Results use_lower_bound: bool = true;
    }
}
crate::family::impl_keys!(HgrnKeys);
