//! Norms with their parameters.

use std::sync::Arc;

use flashlin_ops::{
    activation::Activation,
    norm::{NormArgs, NormKind, norm, rms_norm_gated, rms_norm_gated_grouped},
};
use flashlin_tensor::{Parameter, Var};

use super::{Heads, Linear, LowRank};
use crate::{
    Error, Result,
    config::BaseConfig,
    init::{Dist, Init, Role},
};

/// A norm over the last dimension: x / sqrt(mean x^2 + eps) w, or (x - mean x) / sqrt(var x + eps) w + b.
pub struct Norm {
    kind: NormKind,
    weight: Option<Arc<Parameter>>,
    bias: Option<Arc<Parameter>>,
    eps: f64,
}

impl Norm {
    /// An RMS norm of `size` channels, with or without a weight.
    ///
    /// # Errors
    /// When memory is short.
    pub fn rms(init: &Init, size: usize, eps: f64, affine: bool) -> Result<Self> {
        let weight =
            if affine { Some(init.param("weight", &[size], Dist::Ones, Role::NoDecay)?) } else { None };
        Ok(Norm { kind: NormKind::Rms, weight, bias: None, eps })
    }

    /// A layer norm of `size` channels with a weight, and with or without a bias.
    ///
    /// # Errors
    /// When memory is short.
    pub fn layer(init: &Init, size: usize, eps: f64, bias: bool) -> Result<Self> {
        let weight = init.param("weight", &[size], Dist::Ones, Role::NoDecay)?;
        let bias = if bias { Some(init.param("bias", &[size], Dist::Zeros, Role::NoDecay)?) } else { None };
        Ok(Norm { kind: NormKind::Layer, weight: Some(weight), bias, eps })
    }

    /// The parameters as variables.
    fn vars(&self) -> [Option<Var>; 2] {
        [&self.weight, &self.bias].map(|p| p.as_ref().map(|p| p.var()))
    }

    /// `[.., size]` to the same shape.
    ///
    /// # Errors
    /// When the last dimension is not `size`.
    pub fn forward(&self, x: &Var) -> Result<Var> {
        let [weight, bias] = self.vars();
        let (weight, bias) = (weight.as_ref(), bias.as_ref());
        Ok(norm(&NormArgs { weight, bias, kind: self.kind, eps: self.eps, ..NormArgs::new(x) })?.y)
    }

    /// norm(x + residual) in the dtype of `x`, and the sum in that of `residual`.
    ///
    /// # Errors
    /// When shapes differ or the last dimension is not `size`.
    pub fn forward_sum(&self, x: &Var, residual: &Var) -> Result<(Var, Var)> {
        let [weight, bias] = self.vars();
        let args = NormArgs {
            weight: weight.as_ref(),
            bias: bias.as_ref(),
            kind: self.kind,
            residual: Some(residual),
            eps: self.eps,
            prenorm: true,
            ..NormArgs::new(x)
        };
        let out = norm(&args)?;
        let sum = out.residual.ok_or_else(|| Error::state("a norm did not return its sum"))?;
        Ok((out.y, sum))
    }

    fn gated(&self, x: &Var, gate: &Var, activation: Activation) -> Result<Var> {
        let weight = self.weight.as_ref().map(|w| w.var());
        Ok(rms_norm_gated(x, gate, weight.as_ref(), activation, self.eps)?)
    }
}

/// RMS norm over equal groups of channels, with a weight per channel.
pub struct GroupRmsNorm {
    weight: Arc<Parameter>,
    groups: usize,
    eps: f64,
}

impl GroupRmsNorm {
    /// A norm of `size` channels in `groups` groups.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(init: &Init, size: usize, groups: usize, eps: f64) -> Result<Self> {
        Ok(GroupRmsNorm { weight: init.param("weight", &[size], Dist::Ones, Role::NoDecay)?, groups, eps })
    }

    /// `[.., size]` to the same shape.
    ///
    /// # Errors
    /// When the last dimension is not `size`.
    pub fn forward(&self, x: &Var) -> Result<Var> {
        let weight = self.weight.var();
        let args = NormArgs { weight: Some(&weight), groups: self.groups, eps: self.eps, ..NormArgs::new(x) };
        Ok(norm(&args)?.y)
    }
}

/// What multiplies a mixer's output.
pub(crate) enum Gate {
    None,
    Full(Linear, Activation),
    LowRank(LowRank, Activation),
}

/// The norm at a mixer's output: per head, gated or not, then heads merged.
pub struct OutputNorm {
    norm: Norm,
    gate: Gate,
    heads: usize,
}

impl OutputNorm {
    /// From its parts: `norm` is over the channels of one of `heads` equal parts.
    pub(crate) fn new(norm: Norm, gate: Gate, heads: usize) -> Self {
        OutputNorm { norm, gate, heads }
    }

    /// The norm `g_norm` over all channels at once, without a gate.
    pub(crate) fn whole(init: &Init, base: &BaseConfig, width: usize, eps: f64) -> Result<Self> {
        let affine = base.elementwise_affine.unwrap_or(false);
        Ok(OutputNorm::new(Norm::rms(&init.sub("g_norm"), width, eps, affine)?, Gate::None, 1))
    }

    /// GLA and RetNet: a swish gate. The peer's fused and unfused forms name the norm differently.
    pub(crate) fn swish(
        init: &Init,
        base: &BaseConfig,
        gated: bool,
        width: usize,
        heads: usize,
    ) -> Result<Self> {
        let affine = base.elementwise_affine.unwrap_or(false);
        let fused = gated && base.fuse_norm && base.hidden_act == "swish";
        let name = if fused { "g_norm_swish_gate" } else { "g_norm" };
        let gate = match gated {
            true => Gate::Full(
                Linear::new(&init.sub("g_proj"), base.hidden_size, width, false)?,
                Activation::Silu,
            ),
            false => Gate::None,
        };
        let norm = Norm::rms(&init.sub(name), width / heads, base.norm_eps, affine)?;
        Ok(OutputNorm { norm, gate, heads })
    }

    /// The delta family: `o_norm`, with a gate projected from the input.
    pub(crate) fn gated(
        init: &Init,
        base: &BaseConfig,
        gated: bool,
        width: usize,
        heads: usize,
        activation: Activation,
    ) -> Result<Self> {
        let gate = match gated {
            true => Gate::Full(Linear::new(&init.sub("g_proj"), base.hidden_size, width, false)?, activation),
            false => Gate::None,
        };
        let norm = Norm::rms(&init.sub("o_norm"), width / heads, base.norm_eps, true)?;
        Ok(OutputNorm { norm, gate, heads })
    }

    /// KDA: a sigmoid gate through a bottleneck as wide as a value head, with bias.
    pub(crate) fn low_rank_sigmoid(
        init: &Init,
        base: &BaseConfig,
        head: usize,
        heads: usize,
    ) -> Result<Self> {
        let proj = LowRank::new(&init.sub("g_proj"), [base.hidden_size, head, heads * head], true)?;
        let norm = Norm::rms(&init.sub("o_norm"), head, base.norm_eps, true)?;
        Ok(OutputNorm { norm, gate: Gate::LowRank(proj, Activation::Sigmoid), heads })
    }

    /// The map of the layer's input that [`OutputNorm::forward`] wants the result of, where there is a gate.
    pub fn gate_proj(&self) -> Option<&Linear> {
        match &self.gate {
            Gate::None => None,
            Gate::Full(proj, _) => Some(proj),
            Gate::LowRank(proj, _) => Some(proj.down()),
        }
    }

    /// `o` `[B, T, H, V]` and what [`OutputNorm::gate_proj`] made of the layer's input to `[B, T, H V]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the projected gate is missing.
    pub fn forward(&self, o: &Var, gate: Option<Var>) -> Result<Var> {
        let o = &if o.dims().get(2) == Some(&self.heads) {
            o.clone()
        } else {
            o.merge_heads()?.heads(self.heads)?
        };
        let missing = || Error::state("the output gate was not projected");
        let (gate, activation) = match &self.gate {
            Gate::None => return self.norm.forward(o)?.merge_heads(),
            Gate::Full(_, act) => (gate.ok_or_else(missing)?, *act),
            Gate::LowRank(proj, act) => (proj.up().forward(&gate.ok_or_else(missing)?)?, *act),
        };
        self.norm.gated(o, &gate.heads(self.heads)?, activation)?.merge_heads()
    }
}

/// Mamba-2's gated norm over groups of channels.
pub struct MambaNorm {
    weight: Arc<Parameter>,
    group: usize,
    eps: f64,
    before_gate: bool,
}

impl MambaNorm {
    /// A norm of `size` channels in `groups` groups.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(init: &Init, size: usize, groups: usize, eps: f64, before_gate: bool) -> Result<Self> {
        let weight = init.param("weight", &[size], Dist::Ones, Role::NoDecay)?;
        Ok(MambaNorm { weight, group: size / groups, eps, before_gate })
    }

    /// norm(x silu(z)), or norm(x) silu(z) where the norm comes before the gate.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Var, z: &Var) -> Result<Var> {
        let weight = self.weight.var();
        Ok(rms_norm_gated_grouped(x, Some(z), Some(&weight), Some(self.group), self.before_gate, self.eps)?)
    }
}
