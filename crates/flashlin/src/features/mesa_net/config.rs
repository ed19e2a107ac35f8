//! Config keys of MesaNet.

use crate::config::config_keys;

config_keys! {
    /// Keys of MesaNet beside the shared ones.
    pub struct MesaNetKeys {
        /// Heads.
        Results num_heads: usize = 16;
        /// Width of a head of keys and values.
        Results head_dim: usize = 128;
        /// Gate the output.
        Results use_output_gate: bool = false;
        /// The peer stores it; its layer convolves q and k in any case, and so does this one.
        Hint use_short_conv: bool = true;
        /// Width of the short convolutions on q and k.
        Results conv_size: usize = 4;
        /// The least regularisation.
        Results lambda_lower_bound: f64 = 0.25;
        /// Iterations of the solver over whole inputs.
        Results max_cg_step_training: usize = 30;
        /// Iterations of the solver for a single token from a state.
        Results max_cg_step_decoding: usize = 30;
    }
}
crate::family::impl_keys!(MesaNetKeys);
