//! Config keys of RetNet.

use crate::config::config_keys;

config_keys! {
    /// Keys of RetNet beside the shared ones.
    pub struct RetNetKeys {
        /// Key width as a multiple of `hidden_size`.
        Results expand_k: f64 = 1.0, aliases ["exapnd_k"];
        /// Value width as a multiple of `hidden_size`.
        Results expand_v: f64 = 2.0, aliases ["exapnd_v"];
        /// Heads; head h decays by 1 - 2^(-5-h) a step.
        Results num_heads: usize = 8;
        /// Heads of keys and values. Null: `num_heads`.
        Results num_kv_heads: Option<usize> = None;
        /// Activation on q and k: null, relu, sigmoid, silu, swish, relu2, gelu (exact), gelu_new or gelu_pytorch_tanh.
        Results feature_map: Option<String> = None;
        /// The peer's RetNet never builds the short convolutions that this asks for; its checkpoints have none.
        Hint use_short_conv: bool = false;
        /// As `use_short_conv`.
        Hint conv_size: usize = 4;
        /// Of older versions, without effect but on convolutions, whose weights then had other names.
        Hint share_conv_kernel: bool = false;
        /// Gate the output.
        Results use_output_gate: bool = true;
    }
}
crate::family::impl_keys!(RetNetKeys);
