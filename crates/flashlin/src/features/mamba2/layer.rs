//! The mixer of Mamba-2.

use std::sync::Arc;

use flashlin_ops::{
    StateLayout,
    decay::DecayArgs,
    levels::{LogLinearArgs, log_linear_attn},
};
use flashlin_tensor::{Parameter, Var};

use super::Mamba2Keys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{Conv1d, Heads, Linear, MambaNorm, activation, recur, recurrent_spec},
    state::{StateKind, StateSpec},
};

/// Name of the states of a log-linear layer.
const LEVEL_STATES: &str = "levels";

/// State-space duality: S <- e^(dt A) S + B (dt x)^T, y = S^T C + D x, gated by silu(z).
pub struct Mamba2Mixer {
    in_proj: Linear,
    conv: Conv1d,
    a_log: Arc<Parameter>,
    dt_bias: Arc<Parameter>,
    d: Arc<Parameter>,
    norm: Option<MambaNorm>,
    /// `[heads, levels]` in a log-linear layer.
    levels: Option<Arc<Parameter>>,
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
        let [lo, hi] = own.A_init_range;
        Self::build(init, base, own, None, base.num_hidden_layers, |at, heads| {
            at.param("A_log", &[heads], Dist::LogUniform(lo, hi), Role::Gate)
        })
    }

    /// Builds the layer of log-linear Mamba-2: one state for each of `levels` levels.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn log_linear(init: &Init, base: &BaseConfig, own: &Mamba2Keys, levels: usize) -> Result<Self> {
        // Twice the residual branches: its blocks have an MLP.
        Self::build(init, base, own, Some(levels), 2 * base.num_hidden_layers, |at, heads| {
            at.values("A_log", &[heads], Role::Gate, |i| ((i + 1) as f64).ln())
        })
    }

    fn build(
        init: &Init,
        base: &BaseConfig,
        own: &Mamba2Keys,
        levels: Option<usize>,
        branches: usize,
        a_log: impl FnOnce(&Init, usize) -> Result<Arc<Parameter>>,
    ) -> Result<Self> {
        let inner = width(base.hidden_size, own.expand);
        let heads = inner / own.head_dim;
        let conv_dim = inner + 2 * own.n_groups * own.state_size;
        let step = Dist::InverseSoftplusStep { min: own.dt_min, max: own.dt_max, floor: own.dt_init_floor };
        let act = activation("hidden_act", &base.hidden_act)?;
        let conv_init = own.conv_init.map_or(Dist::Normal(init.std()), |c| Dist::Uniform(-c, c));
        // The peer rescales a Kaiming-uniform draw: bound 1 / sqrt(fan_in), over sqrt(layers).
        let out_bound = 1.0 / ((inner * branches) as f64).sqrt();
        let out_init = match own.rescale_prenorm_residual {
            true => Dist::Uniform(-out_bound, out_bound),
            false => Dist::Normal(init.std()),
        };
        let norm =
            || MambaNorm::new(&init.sub("norm"), inner, own.n_groups, base.norm_eps, own.norm_before_gate);
        Ok(Mamba2Mixer {
            dt_bias: init.param("dt_bias", &[heads], step, Role::Gate)?,
            a_log: a_log(init, heads)?,
            levels: levels.map(|n| init.param("L", &[heads, n], Dist::Ones, Role::Gate)).transpose()?,
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
                inner + conv_dim + heads * (1 + levels.unwrap_or(0)),
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
        let more = self.levels.as_ref().map(|l| self.heads * l.dims()[1]);
        let sizes = [self.inner, self.inner + 2 * group_width, self.heads];
        let zxd = projected.split(2, &sizes.into_iter().chain(more).collect::<Vec<_>>())?;
        let (z, dt) = (&zxd[0], self.step(&zxd[2])?);
        let mixed = self.conv.forward(&zxd[1], ctx)?.split(2, &[self.inner, group_width, group_width])?;
        let xs = mixed[0].heads(self.heads)?;
        let (b, c) = (mixed[1].heads(self.groups)?, mixed[2].heads(self.groups)?);

        let g = dt.mul(&self.a_log.var().exp()?.neg()?)?;
        let v = xs.mul(&dt.to_dtype(xs.dtype())?.unsqueeze_last()?)?;
        let y = match (&self.levels, zxd.get(3)) {
            (Some(levels), Some(dl)) => {
                let weights = dl.to_dtype(g.dtype())?.heads(self.heads)?.mul(&levels.var())?.softplus()?;
                by_levels(LogLinearArgs::new(&c, &b, &v, &g, &weights), ctx)?
            }
            _ => {
                let mut args = DecayArgs::new(&c, &b, &v);
                args.g = Some(&g);
                args.scale = Some(1.0);
                recur(args, ctx)?
            }
        };

        let y = y.add(&self.skip(&xs)?)?.merge_heads()?;
        let y = match &self.norm {
            Some(norm) => norm.forward(&y, z)?,
            None => y.mul(&z.silu()?)?,
        };
        self.out.forward(&y)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dtype = self.out.dtype();
        let mut matrix = recurrent_spec(self.heads, [self.state, self.head_dim], dtype);
        if let Some(levels) = &self.levels {
            matrix = StateSpec {
                name: LEVEL_STATES,
                kind: StateKind::Recurrent,
                layout: Some(StateLayout::KV),
                dims: vec![levels.dims()[1], self.heads, self.state, self.head_dim],
                ..matrix
            };
        }
        vec![matrix, self.conv.state_spec(dtype)]
    }

    fn steps_alike(&self) -> bool {
        // Which states a log-linear step merges depends on its position.
        self.levels.is_none()
    }

    fn describe(&self) -> String {
        format!(
            "Mamba2(heads {} of {}, groups {}, state {})",
            self.heads, self.head_dim, self.groups, self.state
        )
    }
}

/// Log-linear attention from the context's state, which it leaves advanced.
fn by_levels(args: LogLinearArgs<'_>, ctx: &mut LayerCtx<'_>) -> Result<Var> {
    let args = LogLinearArgs { seqs: ctx.seqs, mode: ctx.mode, ..args };
    let Some(state) = ctx.state.as_deref_mut() else { return Ok(log_linear_attn(&args)?.o) };
    let before = state.get(LEVEL_STATES)?;
    let out = log_linear_attn(&LogLinearArgs { initial: Some((&before, ctx.seen)), ..args })?;
    state.set(LEVEL_STATES, out.state)?;
    Ok(out.o)
}
