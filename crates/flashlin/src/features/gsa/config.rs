//! Config keys of gated slot attention.

use crate::config::config_keys;

config_keys! {
    /// Keys of gated slot attention beside the shared ones.
    pub struct GsaKeys {
        /// Key width as a multiple of `hidden_size`.
        Results expand_k: f64 = 1.0, aliases ["exapnd_k"];
        /// Value width as a multiple of `hidden_size`.
        Results expand_v: f64 = 1.0, aliases ["exapnd_v"];
        /// Heads.
        Results num_heads: usize = 4;
        /// Heads of keys, values and gates; each serves `num_heads / num_kv_heads` query heads. Null: `num_heads`.
        Results num_kv_heads: Option<usize> = None;
        /// Slots of a head. Null: as many as key channels.
        Results num_slots: Option<usize> = Some(64);
        /// Short convolutions on q, k and v.
        Results use_short_conv: bool = false;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
        /// Map of q and k: swish, relu or t2r.
        Results feature_map: String = "swish".into();
        /// Divisor of the gates' log-sigmoid.
        Results gate_logit_normalizer: f64 = 8.0;
        /// Reserved by the peer; its layer has no output gate.
        Hint use_output_gate: bool = false;
        /// Reserved by the peer; its layer always normalises the output.
        Hint use_norm: bool = true;
        /// Reserved by the peer; its layer does not clamp.
        Hint clamp_min: Option<f64> = None;
        /// Reserved by the peer; its layer does not clamp.
        Hint clamp_max: Option<f64> = None;
    }
}
crate::family::impl_keys!(GsaKeys);
