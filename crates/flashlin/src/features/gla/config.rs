//! Config keys of GLA.

use crate::config::config_keys;

config_keys! {
    /// Keys of gated linear attention beside the shared ones.
    pub struct GlaKeys {
        /// Key width as a multiple of `hidden_size`.
        Results expand_k: f64 = 0.5, aliases ["exapnd_k"];
        /// Value width as a multiple of `hidden_size`.
        Results expand_v: f64 = 1.0, aliases ["exapnd_v"];
        /// Heads.
        Results num_heads: usize = 4;
        /// Heads of keys, values and gates; each serves `num_heads / num_kv_heads` query heads. Null: `num_heads`.
        Results num_kv_heads: Option<usize> = None;
        /// Activation on q and k: null, relu, sigmoid, logsigmoid, silu, swish, sqrelu or gelu.
        Results feature_map: Option<String> = None;
        /// Short convolutions on q, k and v.
        Results use_short_conv: bool = false;
        /// Width of the short convolutions.
        Results conv_size: usize = 4;
        /// Of older versions, without effect but on convolutions, whose weights then had other names.
        Hint share_conv_kernel: bool = false;
        /// Gate the output.
        Results use_output_gate: bool = true;
        /// Lower limit of the log decay.
        Results clamp_min: Option<f64> = None;
        /// Reserved by the peer; its layer always gates keys.
        Hint use_gk: bool = true;
        /// Reserved by the peer; its layer never gates values.
        Hint use_gv: bool = false;
    }
}
crate::family::impl_keys!(GlaKeys);
