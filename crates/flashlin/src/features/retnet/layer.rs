//! The mixer of RetNet.

use flashlin_ops::decay::{DecayArgs, retention_gamma};
use flashlin_tensor::{Tensor, Var, cuda};

use super::{RetNetKeys, feature_map};
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{Activation, Heads, Linear, OutputNorm, Rotary, Stream, activate, linears, mixer_state, recur},
    state::StateSpec,
};

/// Retention: S <- (1 - 2^(-5-h)) S + k v^T on rotated q and k, o = S^T q.
pub struct MultiScaleRetention {
    q: Stream,
    k: Stream,
    v: Stream,
    rotary: Rotary,
    norm: OutputNorm,
    out: Linear,
    feature_map: Option<Activation>,
    heads: usize,
    kv_heads: usize,
    dims: [usize; 2],
}

impl MultiScaleRetention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &RetNetKeys) -> Result<Self> {
        let d = base.hidden_size;
        let (kd, vd) = (width(d, own.expand_k), width(d, own.expand_v));
        let kv_heads = own.num_kv_heads.unwrap_or(own.num_heads);
        let groups = own.num_heads / kv_heads;
        let conv = own.use_short_conv.then_some(own.conv_size);
        Ok(MultiScaleRetention {
            q: Stream::new(init, "q", [d, kd], conv, Some(Activation::Silu), None)?,
            k: Stream::new(init, "k", [d, kd / groups], conv, Some(Activation::Silu), None)?,
            v: Stream::new(init, "v", [d, vd / groups], conv, Some(Activation::Silu), None)?,
            rotary: Rotary::new(kd / own.num_heads, 10_000.0)?,
            norm: OutputNorm::swish(init, base, own.use_output_gate, vd, own.num_heads)?,
            out: Linear::new(&init.sub("o_proj"), vd, d, false)?,
            feature_map: own.feature_map.as_deref().map(feature_map).transpose()?,
            heads: own.num_heads,
            kv_heads,
            dims: [kd / own.num_heads, vd / own.num_heads],
        })
    }
}

impl Layer for MultiScaleRetention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let groups = self.heads / self.kv_heads;
        let maps = [self.q.proj(), self.k.proj(), self.v.proj()];
        let ([q, k, v], [gate]) = linears(x, maps, [self.norm.gate_proj()])?;
        let [q, k, v] = Stream::finish_all([(&self.q, q), (&self.k, k), (&self.v, v)], ctx)?;
        let mut q = q.heads(self.heads)?;
        let mut k = k.heads(self.kv_heads)?;
        let v = v.heads(self.kv_heads)?.repeat_heads(groups)?;
        if let Some(map) = self.feature_map {
            (q, k) = (activate(&q, map)?, activate(&k, map)?);
        }
        let (q, k) = self.rotary.forward(&q, &k, ctx)?;
        let k = k.repeat_heads(groups)?;
        let gamma = Tensor::from_vec(retention_gamma(self.heads), &[self.heads])?;
        let gamma = gamma.to_dtype(x.dtype().accumulator())?;
        let decay = Var::constant(cuda::kept(&gamma, &x.device())?);
        let mut args = DecayArgs::new(&q, &k, &v);
        args.g_gamma = Some(&decay);
        let o = recur(args, ctx)?;
        self.out.forward(&self.norm.forward(&o, gate)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        mixer_state(self.heads, self.dims, self.out.dtype(), [&self.q, &self.k, &self.v])
    }

    fn describe(&self) -> String {
        let [k, v] = self.dims;
        format!("MultiScaleRetention(heads {}, kv_heads {}, k {k}, v {v})", self.heads, self.kv_heads)
    }
}
