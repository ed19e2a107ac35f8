//! Config keys of mixture of memories.

use crate::config::config_keys;

config_keys! {
    /// Keys of mixture of memories beside the shared ones.
    pub struct MomKeys {
        /// Heads.
        Results num_heads: usize = 4;
        /// Width of a head of q and k.
        Results head_dim: usize = 256;
        /// Value width of a head as a multiple of `head_dim`.
        Results expand_v: f64 = 1.0;
        /// Short convolutions on q, k and v.
        Results use_short_conv: bool = true;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
        /// Gate the output.
        Results use_output_gate: bool = true;
        /// Memories that tokens are routed to.
        Results num_memories: usize = 4;
        /// Memories that a token enters.
        Results topk: usize = 2;
        /// One more memory that every token enters.
        Results shared_mem: bool = true;
        /// One projection of k, v and the gates for all memories.
        Results single_kv_proj: bool = false;
        /// Factor of the load-balancing loss that is added to the loss.
        Results aux_loss_scale: f64 = 0.01;
        /// What the memories are; supported: gated_deltanet.
        Results mom_backend: String = "gated_deltanet".into();
        /// Reserved by the peer; no token is dropped.
        Hint capacity: f64 = 1.0;
        /// Reserved by the peer; the balance is taken over all layers together.
        Hint use_layer_wise_balance: bool = true;
    }
}
crate::family::impl_keys!(MomKeys);
