//! Short convolutions with their parameters and state, and the projections that they follow.

use std::sync::Arc;

use flashlin_ops::{
    activation::{Activation, activate},
    conv::{ConvArgs, short_conv, short_convs_on},
};
use flashlin_tensor::{DType, Parameter, Var};

use super::Linear;
use crate::{
    Error, Result,
    init::{Dist, Init, Role},
    layer::LayerCtx,
    state::{StateKind, StateSpec},
};

/// A causal depthwise convolution over the last `width` tokens.
pub struct Conv1d {
    weight: Arc<Parameter>,
    bias: Option<Arc<Parameter>>,
    activation: Option<Activation>,
    state: &'static str,
}

impl Conv1d {
    /// `channels` channels, `width` taps; `state` names its state within the layer.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(
        init: &Init,
        channels: usize,
        width: usize,
        bias: bool,
        dist: Dist,
        activation: Option<Activation>,
        state: &'static str,
    ) -> Result<Self> {
        let dists = [Some(dist), bias.then_some(Dist::Zeros)];
        Self::with_init(init, [channels, width], dists, activation, state)
    }

    /// As [`Conv1d::new`] with distributions of the weights and of the biases (None: no biases).
    ///
    /// # Errors
    /// When memory is short.
    pub fn with_init(
        init: &Init,
        [channels, width]: [usize; 2],
        [weight, bias]: [Option<Dist>; 2],
        activation: Option<Activation>,
        state: &'static str,
    ) -> Result<Self> {
        if width == 0 {
            return Err(Error::config("conv_size", "is 0, expected a positive integer"));
        }
        let weight = weight.unwrap_or(Dist::Normal(init.std()));
        let weight = init.param("weight", &[channels, 1, width], weight, Role::Weight)?;
        let bias = bias.map(|dist| init.param("bias", &[channels], dist, Role::NoDecay)).transpose()?;
        Ok(Conv1d { weight, bias, activation, state })
    }

    /// The tensor of its state: the last inputs.
    pub fn state_spec(&self, dtype: DType) -> StateSpec {
        let dims = self.weight.dims();
        StateSpec {
            name: self.state,
            kind: StateKind::Conv,
            layout: None,
            dims: vec![dims[0], dims[2]],
            dtype,
        }
    }

    /// `[B, T, channels]` to the same shape.
    ///
    /// # Errors
    /// When the number of channels differs.
    pub fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let [y] = convolve([(self, x)], ctx)?;
        Ok(y)
    }

    /// The activation, where the operator did not fuse it.
    fn activated(&self, y: Var) -> Result<Var> {
        match self.activation {
            Some(act) if act != Activation::Silu => Ok(activate(&y, act)?),
            _ => Ok(y),
        }
    }
}

/// Several convolutions of the same tokens; a decode step takes them together.
fn convolve<const N: usize>(all: [(&Conv1d, &Var); N], ctx: &mut LayerCtx<'_>) -> Result<[Var; N]> {
    let params = all.map(|(conv, _)| (conv.weight.var(), conv.bias.as_ref().map(|b| b.var())));
    let args: Vec<ConvArgs> = all
        .iter()
        .zip(&params)
        .map(|((conv, x), (weight, bias))| ConvArgs {
            bias: bias.as_ref(),
            // The operator fuses silu; others follow it.
            activation: conv.activation.filter(|a| *a == Activation::Silu),
            seqs: ctx.seqs,
            ..ConvArgs::new(x, weight)
        })
        .collect();
    let ys = match ctx.state.as_deref_mut() {
        None => args.iter().map(|a| Ok(short_conv(a)?.y)).collect::<Result<Vec<_>>>()?,
        Some(state) => {
            let mut last = all.iter().map(|(conv, _)| state.take(conv.state)).collect::<Result<Vec<_>>>()?;
            let ys = short_convs_on(&args, &mut last)?;
            all.iter().zip(last).try_for_each(|((conv, _), last)| state.set(conv.state, last))?;
            ys
        }
    };
    exactly(all.iter().zip(ys).map(|((conv, _), y)| conv.activated(y)).collect::<Result<Vec<_>>>()?)
}

fn exactly<const N: usize>(ys: Vec<Var>) -> Result<[Var; N]> {
    ys.try_into().map_err(|_| Error::state("a convolution gave no output"))
}

/// A projection with an optional short convolution: where q, k and v come from.
pub struct Stream {
    proj: Linear,
    conv: Option<Conv1d>,
    /// Applied where there is no convolution.
    activation: Option<Activation>,
}

impl Stream {
    /// `name` is q, k, v, f or i: keys `{name}_proj` and `{name}_conv1d`. `dims` are input and output; `conv_size` turns the
    /// convolution on, with `conv_act` after it; `plain_act` applies without one.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(
        init: &Init,
        name: &'static str,
        dims: [usize; 2],
        conv_size: Option<usize>,
        conv_act: Option<Activation>,
        plain_act: Option<Activation>,
    ) -> Result<Self> {
        let state = match name {
            "q" => "conv_q",
            "k" => "conv_k",
            "f" => "conv_f",
            "i" => "conv_i",
            _ => "conv_v",
        };
        let proj = Linear::new(&init.sub(format!("{name}_proj")), dims[0], dims[1], false)?;
        let at = init.sub(format!("{name}_conv1d"));
        let dist = Dist::Normal(init.std());
        let conv =
            conv_size.map(|w| Conv1d::new(&at, dims[1], w, false, dist, conv_act, state)).transpose()?;
        Ok(Stream { proj, conv, activation: plain_act })
    }

    /// The projection.
    pub fn proj(&self) -> &Linear {
        &self.proj
    }

    /// What follows the projection: `y` `[B, T, out]` to the same shape.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn finish(&self, y: Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let [y] = Self::finish_all([(self, y)], ctx)?;
        Ok(y)
    }

    /// What follows the projections of several streams: each `y` `[B, T, out]` to the same shape.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn finish_all<const N: usize>(
        streams: [(&Stream, Var); N],
        ctx: &mut LayerCtx<'_>,
    ) -> Result<[Var; N]> {
        let convs = streams.each_ref().map(|(s, y)| s.conv.as_ref().map(|conv| (conv, y)));
        if let Ok(all) = <[_; N]>::try_from(convs.into_iter().flatten().collect::<Vec<_>>()) {
            return convolve(all, ctx);
        }
        let one = |(s, y): (&Stream, Var)| match (&s.conv, s.activation) {
            (Some(conv), _) => conv.forward(&y, ctx),
            (None, Some(act)) => Ok(activate(&y, act)?),
            (None, None) => Ok(y),
        };
        exactly(streams.into_iter().map(one).collect::<Result<Vec<_>>>()?)
    }

    /// The convolution's state, if there is one.
    pub fn state_spec(&self) -> Option<StateSpec> {
        Some(self.conv.as_ref()?.state_spec(self.proj.dtype()))
    }
}
