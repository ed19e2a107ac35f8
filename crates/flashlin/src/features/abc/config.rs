//! Config keys of ABC.

use crate::config::config_keys;

config_keys! {
    /// Keys of ABC beside the shared ones.
    pub struct AbcKeys {
        /// Key width as a multiple of `hidden_size`.
        Results expand_k: f64 = 0.5, aliases ["exapnd_k"];
        /// Value width as a multiple of `hidden_size`.
        Results expand_v: f64 = 1.0, aliases ["exapnd_v"];
        /// Heads.
        Results num_heads: usize = 4;
        /// Slots of a head. Null: as many as key channels.
        Results num_slots: Option<usize> = Some(64);
        /// Short convolutions on q, k and v.
        Results use_short_conv: bool = false;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
        /// Rotary embedding on q and k.
        Results use_rope: bool = true;
        /// Lower limit of the slots' logits.
        Results clamp_min: Option<f64> = Some(-32.0);
        /// Upper limit of the slots' logits.
        Results clamp_max: Option<f64> = Some(32.0);
        /// Reserved by the peer; its layer projects the output gate in one step.
        Hint gate_low_rank_dim: usize = 16;
    }
}
crate::family::impl_keys!(AbcKeys);
