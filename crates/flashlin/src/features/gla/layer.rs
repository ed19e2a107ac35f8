//! The mixer of GLA.

use flashlin_ops::{decay::DecayArgs, gate::log_sigmoid_gate};
use flashlin_tensor::Var;

use super::GlaKeys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{
        Activation, Heads, Linear, LowRank, OutputNorm, Stream, activate, activation, linears, mixer_state,
        recur,
    },
    state::StateSpec,
};

/// Width of the gate's bottleneck and divisor of its log-sigmoid, constants of the architecture.
const GATE_LOW_RANK: usize = 16;
const GATE_NORMALIZER: f64 = 16.0;

/// Gated linear attention: S <- diag(e^g) S + k v^T with g = logsigmoid(W2 W1 x) / 16, o = S^T q.
pub struct GatedLinearAttention {
    q: Stream,
    k: Stream,
    v: Stream,
    gk: LowRank,
    norm: OutputNorm,
    out: Linear,
    feature_map: Option<Activation>,
    clamp_min: Option<f64>,
    heads: usize,
    kv_heads: usize,
    dims: [usize; 2],
}

impl GatedLinearAttention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &GlaKeys) -> Result<Self> {
        let d = base.hidden_size;
        let (kd, vd) = (width(d, own.expand_k), width(d, own.expand_v));
        let kv_heads = own.num_kv_heads.unwrap_or(own.num_heads);
        let groups = own.num_heads / kv_heads;
        let conv = own.use_short_conv.then_some(own.conv_size);
        Ok(GatedLinearAttention {
            q: Stream::new(init, "q", [d, kd], conv, Some(Activation::Silu), None)?,
            k: Stream::new(init, "k", [d, kd / groups], conv, Some(Activation::Silu), None)?,
            v: Stream::new(init, "v", [d, vd / groups], conv, Some(Activation::Silu), None)?,
            gk: LowRank::new(&init.sub("gk_proj"), [d, GATE_LOW_RANK, kd / groups], true)?,
            norm: OutputNorm::swish(init, base, own.use_output_gate, vd, own.num_heads)?,
            out: Linear::new(&init.sub("o_proj"), vd, d, false)?,
            feature_map: own.feature_map.as_deref().map(|m| activation("feature_map", m)).transpose()?,
            clamp_min: own.clamp_min,
            heads: own.num_heads,
            kv_heads,
            dims: [kd / own.num_heads, vd / own.num_heads],
        })
    }
}

impl Layer for GatedLinearAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let groups = self.heads / self.kv_heads;
        let maps = [self.q.proj(), self.k.proj(), self.v.proj(), self.gk.down()];
        let ([q, k, v, gk], [gate]) = linears(x, maps, [self.norm.gate_proj()])?;
        let [q, k, v] = Stream::finish_all([(&self.q, q), (&self.k, k), (&self.v, v)], ctx)?;
        let mut q = q.heads(self.heads)?;
        let mut k = k.heads(self.kv_heads)?;
        let v = v.heads(self.kv_heads)?.repeat_heads(groups)?;
        let gk = self.gk.up().forward(&gk)?.heads(self.kv_heads)?;
        let gk = log_sigmoid_gate(&gk, GATE_NORMALIZER, self.clamp_min)?.repeat_heads(groups)?;
        if let Some(map) = self.feature_map {
            (q, k) = (activate(&q, map)?, activate(&k, map)?);
        }
        let k = k.repeat_heads(groups)?;
        let mut args = DecayArgs::new(&q, &k, &v);
        args.gk = Some(&gk);
        let o = recur(args, ctx)?;
        self.out.forward(&self.norm.forward(&o, gate)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        mixer_state(self.heads, self.dims, self.out.dtype(), [&self.q, &self.k, &self.v])
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!(
            "GatedLinearAttention(heads {}, kv_heads {}, k {}, v {})",
            self.heads, self.kv_heads, self.dims[0], self.dims[1]
        )
    }
}
