//! Config keys of Mamba.

use serde_json::Value;

use crate::{
    Error, Result,
    config::{BaseConfig, config_keys},
    family::{scaled, width},
    init::{Dist, Init},
    modules::{Activation, MambaOptions, activation},
};

config_keys! {
    /// Keys of Mamba beside the shared ones. (`intermediate_size` is the inner width; null: `expand * hidden_size`.)
    pub struct MambaKeys {
        /// State numbers a channel.
        Results state_size: usize = 16;
        /// Inner width as a multiple of `hidden_size`, where `intermediate_size` is null.
        Results expand: f64 = 2.0;
        /// Width of the convolution.
        Results conv_kernel: usize = 4;
        /// Bias of the convolution.
        Results use_conv_bias: bool = true;
        /// Bias of the input and output projections.
        Results use_bias: bool = false;
        /// Width of the step sizes' bottleneck; "auto": a sixteenth of `hidden_size`, rounded up.
        Results dt_rank: Value = Value::from("auto"), aliases ["time_step_rank"];
        /// Initial weights of the step sizes are this times `dt_rank^-1/2`.
        Results dt_scale: f64 = 1.0, aliases ["time_step_scale"];
        /// Smallest initial step.
        Results dt_min: f64 = 0.001, aliases ["time_step_min"];
        /// Largest initial step.
        Results dt_max: f64 = 0.1, aliases ["time_step_max"];
        /// How the step sizes' weights start: random (uniform) or constant.
        Results dt_init_scheme: String = "random".into(), aliases ["time_step_init_scheme"];
        /// Initial steps are at least this.
        Results dt_init_floor: f64 = 1e-4, aliases ["time_step_floor"];
        /// Keep the residual stream in f32.
        Results residual_in_fp32: bool = false;
        /// Divide initial output projections by the square root of the number of layers.
        Results rescale_prenorm_residual: bool = false;
    }
}
crate::family::impl_keys!(MambaKeys);

impl MambaKeys {
    /// Width of the step sizes' bottleneck.
    fn rank(&self, hidden: usize) -> Result<usize> {
        let rank = match &self.dt_rank {
            Value::String(s) if s == "auto" => Some(hidden.div_ceil(16)),
            v => v.as_u64().and_then(|n| usize::try_from(n).ok()),
        };
        rank.filter(|n| (1..=1 << 20).contains(n)).ok_or_else(|| {
            Error::config("dt_rank", format!("is {}, expected \"auto\" or a positive integer", self.dt_rank))
        })
    }

    /// Inner width.
    fn inner(&self, base: &BaseConfig) -> usize {
        base.intermediate_size.unwrap_or_else(|| width(base.hidden_size, self.expand))
    }

    /// What a mixer is built from.
    pub(crate) fn options(&self, base: &BaseConfig, init: &Init, act: Activation) -> Result<MambaOptions> {
        let (rank, inner) = (self.rank(base.hidden_size)?, self.inner(base));
        let std = (rank as f64).powf(-0.5) * self.dt_scale;
        let (min, max, floor) = (self.dt_min, self.dt_max, self.dt_init_floor);
        let rescaled = Dist::torch_default(inner * base.num_hidden_layers);
        Ok(MambaOptions {
            hidden: base.hidden_size,
            inner,
            state: self.state_size,
            conv: self.conv_kernel,
            rank,
            bias: self.use_bias,
            conv_bias: self.use_conv_bias,
            activation: act,
            step_weight: Dist::Uniform(if self.dt_init_scheme == "constant" { std } else { -std }, std),
            step_bias: Dist::InverseSoftplusStep { min, max, floor },
            out: if self.rescale_prenorm_residual { rescaled } else { Dist::Normal(init.std()) },
        })
    }

    /// Checks what one key alone does not tell.
    pub(crate) fn check(&self, base: &BaseConfig) -> Result<()> {
        self.rank(base.hidden_size)?;
        if base.intermediate_size.is_none() {
            scaled("expand", base.hidden_size, self.expand, 1)?;
        }
        for (key, n, most) in
            [("state_size", self.state_size, 1 << 16), ("conv_kernel", self.conv_kernel, 1 << 10)]
        {
            if n == 0 || n > most {
                return Err(Error::config(key, format!("is {n}, expected 1..={most}")));
            }
        }
        if !["random", "constant"].contains(&self.dt_init_scheme.as_str()) {
            let why = format!("is `{}`; supported: random, constant", self.dt_init_scheme);
            return Err(Error::config("dt_init_scheme", why));
        }
        if !(self.dt_min > 0.0 && self.dt_max >= self.dt_min && self.dt_init_floor > 0.0) {
            let why = "and dt_max, dt_init_floor: expected 0 < dt_min <= dt_max, floor > 0";
            return Err(Error::config("dt_min", why));
        }
        activation("hidden_act", &base.hidden_act).map(|_| ())
    }
}
