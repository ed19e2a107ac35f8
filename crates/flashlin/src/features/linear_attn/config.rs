//! Config keys of linear attention.

use crate::config::config_keys;

config_keys! {
    /// Keys of linear attention beside the shared ones.
    pub struct LinearAttnKeys {
        /// Key width as a multiple of `hidden_size`.
        Results expand_k: f64 = 1.0, aliases ["exapnd_k"];
        /// Value width as a multiple of `hidden_size`.
        Results expand_v: f64 = 1.0, aliases ["exapnd_v"];
        /// Heads.
        Results num_heads: usize = 4;
        /// Heads of keys and values; each serves `num_heads / num_kv_heads` query heads. Null: `num_heads`.
        Results num_kv_heads: Option<usize> = None;
        /// Map of q and k: hedgehog, t2r, elementwise_product, dpfp, elu, relu or identity.
        Results feature_map: String = "elementwise_product".into();
        /// One map with parameters for q and k (hedgehog, t2r, elementwise_product).
        Results tie_feature_map_qk: bool = false;
        /// Divide the features of q by their sum plus 1e-4.
        Results norm_q: bool = false;
        /// Divide the features of k by their sum plus 1e-4.
        Results norm_k: bool = false;
        /// Divide the output by the sum of the attention weights.
        Results norm_feature_map: bool = false;
    }
}
crate::family::impl_keys!(LinearAttnKeys);
