//! The mixer of LightNet.

use flashlin_ops::decay::DecayArgs;
use flashlin_tensor::Var;

use super::LightNetKeys;
use crate::{
    Error, Result,
    config::BaseConfig,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{
        Activation, Gate, Heads, Linear, LowRank, Norm, OutputNorm, Stream, linears, mixer_state, recur,
        running, running_spec,
    },
    state::StateSpec,
};

/// Epsilon of the output norm: the peer's model passes none on.
const NORM_EPS: f64 = 1e-6;

/// LightNet: linear attention whose keys are a softmax over time as it stands at each token.
pub struct LightNetMixer {
    q: Stream,
    k: Stream,
    v: Stream,
    norm: OutputNorm,
    out: Linear,
    heads: usize,
    dims: [usize; 2],
}

impl LightNetMixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &LightNetKeys) -> Result<Self> {
        let d = base.hidden_size;
        let [heads, k] = own.heads(d).ok_or_else(|| Error::config("num_heads", "is missing"))?;
        let conv = own.use_short_conv.then_some(own.conv_size);
        let silu = Some(Activation::Silu);
        let affine = base.elementwise_affine.unwrap_or(false);
        let gate = LowRank::new(&init.sub("g_proj"), [d, own.gate_low_rank_dim, d], false)?;
        let norm = Norm::rms(&init.sub("g_norm"), d, NORM_EPS, affine)?;
        Ok(LightNetMixer {
            q: Stream::new(init, "q", [d, heads * k], conv, silu, silu)?,
            k: Stream::new(init, "k", [d, heads * k], conv, None, None)?,
            v: Stream::new(init, "v", [d, d], conv, None, None)?,
            norm: OutputNorm::new(norm, Gate::LowRank(gate, Activation::Silu), 1),
            out: Linear::new(&init.sub("o_proj"), d, d, false)?,
            heads,
            dims: [k, d / heads],
        })
    }
}

impl Layer for LightNetMixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let maps = [self.q.proj(), self.k.proj(), self.v.proj()];
        let ([q, k, v], [gate]) = linears(x, maps, [self.norm.gate_proj()])?;
        let q = self.q.finish(q, ctx)?.heads(self.heads)?;
        let k = self.k.finish(k, ctx)?.heads(self.heads)?;
        let v = self.v.finish(v, ctx)?.heads(self.heads)?;
        let (k, g) = running(&k, ctx)?;
        let mut args = DecayArgs::new(&q, &k, &v);
        args.gk = Some(&g);
        let o = recur(args, ctx)?;
        self.out.forward(&self.norm.forward(&o, gate)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dtype = self.out.dtype();
        let sums = running_spec(self.heads * self.dims[0], dtype);
        mixer_state(self.heads, self.dims, dtype, [&self.q, &self.k, &self.v])
            .into_iter()
            .chain([sums])
            .collect()
    }

    fn describe(&self) -> String {
        format!("LightNet(heads {}, k {}, v {})", self.heads, self.dims[0], self.dims[1])
    }
}
