//! The mixer of Mamba-2.

use std::sync::Arc;

use flashlin_ops::decay::DecayArgs;
use flashlin_tensor::{Parameter, Var};

use super::Mamba2Keys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{Conv1d, Heads, Linear, MambaNorm, activation, recur, recurrent_spec},
    state::StateSpec,
};

/// State-space duality: S <- e^(dt A) S + B (dt x)^T, y = S^T C + D x, gated by silu(z).
pub struct Mamba2Mixer {
    in_proj: Linear,
    conv: Conv1d,
    a_log: Arc<Parameter>,
    dt_bias: Arc<Parameter>,
    d: Arc<Parameter>,
    norm: Option<MambaNorm>,
    out: Linear,
    dt_limit: [f64; 2],
    inner: usize,
    heads: usize,
    head_dim: usize,
    groups: usize,
    state: usize,
}

impl Mamba2Mixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &Mamba2Keys) -> Result<Self> {
        let inner = width(base.hidden_size, own.expand);
        let heads = inner / own.head_dim;
        let conv_dim = inner + 2 * own.n_groups * own.state_size;
        let step = Dist::InverseSoftplusStep { min: own.dt_min, max: own.dt_max, floor: own.dt_init_floor };
        let [lo, hi] = own.A_init_range;
        let act = activation("hidden_act", &base.hidden_act)?;
        let conv_init = own.conv_init.map_or(Dist::Normal(init.std()), |c| Dist::Uniform(-c, c));
        // The peer rescales a Kaiming-uniform draw: bound 1 / sqrt(fan_in), over sqrt(layers).
        let out_bound = 1.0 / ((inner * base.num_hidden_layers) as f64).sqrt();
        let out_init = match own.rescale_prenorm_residual {
            true => Dist::Uniform(-out_bound, out_bound),
            false => Dist::Normal(init.std()),
        };
        let norm =
            || MambaNorm::new(&init.sub("norm"), inner, own.n_groups, base.norm_eps, own.norm_before_gate);
        Ok(Mamba2Mixer {
            dt_bias: init.param("dt_bias", &[heads], step, Role::Gate)?,
            a_log: init.param("A_log", &[heads], Dist::LogUniform(lo, hi), Role::Gate)?,
            d: init.param("D", &[if own.D_has_hdim { inner } else { heads }], Dist::Ones, Role::Gate)?,
            conv: Conv1d::new(
                &init.sub("conv1d"),
                conv_dim,
                own.conv_kernel,
                own.use_conv_bias,
                conv_init,
                Some(act),
                "conv",
            )?,
            in_proj: Linear::new(
                &init.sub("in_proj"),
                base.hidden_size,
                inner + conv_dim + heads,
                own.use_bias,
            )?,
            norm: if own.rmsnorm { Some(norm()?) } else { None },
            out: Linear::with_init(&init.sub("out_proj"), inner, base.hidden_size, own.use_bias, out_init)?,
            dt_limit: own.dt_limit,
            inner,
            heads,
            head_dim: own.head_dim,
            groups: own.n_groups,
            state: own.state_size,
        })
    }

    /// The step size, softplus(dt + bias) within its limits, `[B, T, heads]` in f32.
    fn step(&self, dt: &Var) -> Result<Var> {
        let bias = self.dt_bias.var();
        let dt = dt.to_dtype(bias.dtype())?.add(&bias)?.softplus()?;
        let [lo, hi] = self.dt_limit;
        Ok(if lo > 0.0 || hi < f64::MAX { dt.clamp(lo, hi)? } else { dt })
    }

    /// D x, with D per head or per channel.
    fn skip(&self, x: &Var) -> Result<Var> {
        let d = self.d.var();
        let per_channel = d.dim(0) == self.inner && self.head_dim != 1;
        let d = d.reshape(&[self.heads, if per_channel { self.head_dim } else { 1 }])?;
        Ok(x.mul(&d.to_dtype(x.dtype())?)?)
    }
}

impl Layer for Mamba2Mixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let group_width = self.groups * self.state;
        let projected = self.in_proj.forward(x)?;
        let zxd = projected.split(2, &[self.inner, self.inner + 2 * group_width, self.heads])?;
        let (z, dt) = (&zxd[0], self.step(&zxd[2])?);
        let mixed = self.conv.forward(&zxd[1], ctx)?.split(2, &[self.inner, group_width, group_width])?;
        let xs = mixed[0].heads(self.heads)?;
        let (b, c) = (mixed[1].heads(self.groups)?, mixed[2].heads(self.groups)?);

        let g = dt.mul(&self.a_log.var().exp()?.neg()?)?;
        let v = xs.mul(&dt.to_dtype(xs.dtype())?.unsqueeze_last()?)?;
        let mut args = DecayArgs::new(&c, &b, &v);
        args.g = Some(&g);
        args.scale = Some(1.0);
        let y = recur(args, ctx)?;

        let y = y.add(&self.skip(&xs)?)?.merge_heads()?;
        let y = match &self.norm {
            Some(norm) => norm.forward(&y, z)?,
            None => y.mul(&z.silu()?)?,
        };
        self.out.forward(&y)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dtype = self.out.dtype();
        vec![recurrent_spec(self.heads, [self.state, self.head_dim], dtype), self.conv.state_spec(dtype)]
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!(
            "Mamba2(heads {} of {}, groups {}, state {})",
            self.heads, self.head_dim, self.groups, self.state
        )
    }
}
