//! The mixer of HGRN2.

use flashlin_ops::decay::DecayArgs;
use flashlin_tensor::Var;

use super::Hgrn2Keys;
use crate::{
    Error, Result,
    config::BaseConfig,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{Activation, Heads, Linear, LowerBound, OutputNorm, Stream, linears, mixer_state, recur},
    state::StateSpec,
};

/// Epsilon of the output norm: the peer's model passes none on.
const NORM_EPS: f64 = 1e-5;

/// HGRN2: S <- diag(f) S + (1 - f) i^T, o = S^T q, with forget gates f above a learnt bound.
pub struct Hgrn2Mixer {
    q: Stream,
    f: Stream,
    i: Stream,
    bound: LowerBound,
    norm: OutputNorm,
    out: Linear,
    heads: usize,
    dims: [usize; 2],
}

impl Hgrn2Mixer {
    /// Builds the mixer of block `layer`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &Hgrn2Keys, layer: usize) -> Result<Self> {
        let d = base.hidden_size;
        let [heads, k] = own.heads(d).ok_or_else(|| Error::config("num_heads", "is missing"))?;
        let conv = own.use_short_conv.then_some(own.conv_size);
        let silu = Some(Activation::Silu);
        Ok(Hgrn2Mixer {
            q: Stream::new(init, "q", [d, heads * k], conv, silu, silu)?,
            f: Stream::new(init, "f", [d, heads * k], conv, None, None)?,
            i: Stream::new(init, "i", [d, d], conv, None, None)?,
            bound: LowerBound::new(init, base, own.use_lower_bound, layer)?,
            norm: OutputNorm::whole(init, base, d, NORM_EPS)?,
            out: Linear::new(&init.sub("o_proj"), d, d, false)?,
            heads,
            dims: [k, d / heads],
        })
    }
}

impl Layer for Hgrn2Mixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let ([q, f, i], []) = linears(x, [self.q.proj(), self.f.proj(), self.i.proj()], [])?;
        let q = self.q.finish(q, ctx)?.heads(self.heads)?;
        let g = self.bound.log_decay(&self.f.finish(f, ctx)?)?;
        let v = self.i.finish(i, ctx)?.heads(self.heads)?;
        let k = g.exp()?.neg()?.affine(1.0, 1.0)?.to_dtype(v.dtype())?.heads(self.heads)?;
        let g = g.heads(self.heads)?;
        let mut args = DecayArgs::new(&q, &k, &v);
        args.gk = Some(&g);
        let o = recur(args, ctx)?;
        self.out.forward(&self.norm.forward(&o, None)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        mixer_state(self.heads, self.dims, self.out.dtype(), [&self.q, &self.f, &self.i])
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("HGRN2(heads {}, k {}, v {})", self.heads, self.dims[0], self.dims[1])
    }
}
