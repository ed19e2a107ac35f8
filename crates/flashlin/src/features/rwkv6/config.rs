//! Config keys of RWKV-6.

use crate::config::config_keys;

config_keys! {
    /// Keys of RWKV-6 beside the shared ones.
    pub struct Rwkv6Keys {
        /// Width of all keys as a multiple of `hidden_size`.
        Results expand_k: f64 = 0.5, aliases ["exapnd_k"];
        /// Width of all values as a multiple of `hidden_size`.
        Results expand_v: f64 = 1.0, aliases ["exapnd_v"];
        /// Heads.
        Results num_heads: usize = 4;
        /// Bottleneck of each of the five data-dependent token shifts.
        Results proj_low_rank_dim: usize = 32;
        /// Bottleneck of the decay.
        Results gate_low_rank_dim: usize = 64;
        /// Normalise the embeddings before the first block.
        Results norm_first: bool = true;
        /// Biases in the layer norms.
        Results norm_bias: bool = true;
    }
}
crate::family::impl_keys!(Rwkv6Keys);
