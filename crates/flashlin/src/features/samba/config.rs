//! Config keys of Samba.

use serde_json::Value;

use crate::{config::config_keys, features::mamba::MambaKeys};

config_keys! {
    /// Keys of Samba beside the shared ones. (`intermediate_size` is the mixers' inner width; null: `expand * hidden_size`.)
    pub struct SambaKeys {
        /// State numbers a channel.
        Results state_size: usize = 16;
        /// Inner width as a multiple of `hidden_size`, where `intermediate_size` is null.
        Results expand: f64 = 2.0;
        /// Width of the convolution.
        Results conv_kernel: usize = 4;
        /// Bias of the input and output projections.
        Results use_bias: bool = false;
        /// Width of the step sizes' bottleneck; "auto": a sixteenth of `hidden_size`, rounded up.
        Results time_step_rank: Value = Value::from("auto"), aliases ["dt_rank"];
        /// Initial weights of the step sizes are this times `time_step_rank^-1/2`.
        Results time_step_scale: f64 = 1.0, aliases ["dt_scale"];
        /// Smallest initial step.
        Results time_step_min: f64 = 0.001, aliases ["dt_min"];
        /// Largest initial step.
        Results time_step_max: f64 = 0.1, aliases ["dt_max"];
        /// How the step sizes' weights start: random (uniform) or constant.
        Results time_step_init_scheme: String = "random".into(), aliases ["dt_init_scheme"];
        /// Initial steps are at least this.
        Results time_step_floor: f64 = 1e-4, aliases ["dt_init_floor"];
        /// Divide initial output projections by the square root of the number of layers.
        Results rescale_prenorm_residual: bool = false;
        /// Reserved by the peer; its blocks' convolutions always have biases.
        Hint use_conv_bias: bool = true;
        /// Reserved by the peer; its blocks do not read it.
        Hint residual_in_fp32: bool = false;
    }
}
crate::family::impl_keys!(SambaKeys);

impl SambaKeys {
    /// The same as keys of a Mamba mixer.
    pub(crate) fn mixer(&self) -> MambaKeys {
        MambaKeys {
            state_size: self.state_size,
            expand: self.expand,
            conv_kernel: self.conv_kernel,
            use_conv_bias: true,
            use_bias: self.use_bias,
            dt_rank: self.time_step_rank.clone(),
            dt_scale: self.time_step_scale,
            dt_min: self.time_step_min,
            dt_max: self.time_step_max,
            dt_init_scheme: self.time_step_init_scheme.clone(),
            dt_init_floor: self.time_step_floor,
            residual_in_fp32: false,
            rescale_prenorm_residual: self.rescale_prenorm_residual,
        }
    }
}
