//! Config keys of Mamba-2.

use serde_json::Value;

use crate::config::config_keys;

config_keys! {
    /// Keys of Mamba-2 beside the shared ones.
    pub struct Mamba2Keys {
        /// Heads; always `expand * hidden_size / head_dim`, checked where given.
        Results num_heads: Option<usize> = None;
        /// Width of a head (of x).
        Results head_dim: usize = 64;
        /// Width of B and C: the state's other dimension.
        Results state_size: usize = 128;
        /// Inner width as a multiple of `hidden_size`.
        Results expand: f64 = 2.0;
        /// Groups of heads that share B and C.
        Results n_groups: usize = 1;
        /// Width of the convolution.
        Results conv_kernel: usize = 4;
        /// Bias of the convolution.
        Results use_conv_bias: bool = true;
        /// Bias of the input and output projections.
        Results use_bias: bool = false;
        /// Initial convolution weights are uniform in +-this. Null: normal as other weights.
        Results conv_init: Option<f64> = None;
        /// Range of -A at the start.
        Results A_init_range: [f64; 2] = [1.0, 16.0];
        /// D per channel instead of per head.
        Results D_has_hdim: bool = false;
        /// Gated RMS norm before the output projection; otherwise the gate multiplies alone.
        Results rmsnorm: bool = true, aliases ["rms_norm"];
        /// Normalise before the gate instead of after.
        Results norm_before_gate: bool = false;
        /// Smallest initial step.
        Results dt_min: f64 = 0.001, aliases ["time_step_min"];
        /// Largest initial step.
        Results dt_max: f64 = 0.1, aliases ["time_step_max"];
        /// Initial steps are at least this.
        Results dt_init_floor: f64 = 1e-4, aliases ["time_step_floor"];
        /// Limits of the step size.
        Results dt_limit: [f64; 2] = [0.0, f64::MAX], aliases ["time_step_limit"];
        /// Keep the residual stream in f32.
        Results residual_in_fp32: bool = true;
        /// Divide initial output projections by the square root of the number of layers.
        Results rescale_prenorm_residual: bool = true;
        /// The peer's chunk; here results do not depend on it.
        Hint chunk_size: usize = 256;
        /// Of older versions; never read.
        Hint time_step_rank: Value = Value::Null;
    }
}
crate::family::impl_keys!(Mamba2Keys);
