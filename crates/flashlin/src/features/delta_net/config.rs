//! Config keys of DeltaNet.

use crate::config::config_keys;

config_keys! {
    /// Keys of DeltaNet beside the shared ones.
    pub struct DeltaNetKeys {
        /// Key width as a multiple of `hidden_size`.
        Results expand_k: f64 = 1.0, aliases ["exapnd_k"];
        /// Value width as a multiple of `hidden_size`.
        Results expand_v: f64 = 1.0, aliases ["exapnd_v"];
        /// Heads.
        Results num_heads: usize = 16;
        /// Gate the output.
        Results use_gate: bool = false;
        /// Short convolutions on q, k and v.
        Results use_short_conv: bool = true;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
        /// Learn the write strength beta; otherwise it is 1.
        Results use_beta: bool = true;
        /// Double beta, so that eigenvalues of the transition may be negative.
        Results allow_neg_eigval: bool = false;
        /// Normalisation of q and k: l2, or sum (of the magnitudes).
        Results qk_norm: String = "l2".into();
        /// Activation of q and k: silu, relu, elu (plus one) or identity.
        Results qk_activation: String = "silu".into();
        /// The peer's layer always normalises its output.
        Hint use_output_norm: bool = true;
        /// The peer's chunk in older versions; here results do not depend on it.
        Hint chunk_size: usize = 64;
    }
}
crate::family::impl_keys!(DeltaNetKeys);
