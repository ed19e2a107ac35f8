//! The mixer of HGRN.

use flashlin_ops::{
    activation::swiglu,
    scan::{ScanArgs, linear_scan},
};
use flashlin_tensor::Var;

use super::HgrnKeys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{Activation, Gate, Heads, Linear, LowerBound, Norm, OutputNorm, Stream, linears, vector_spec},
    state::StateSpec,
};

const STATE: &str = "recurrent";

/// HGRN: h <- f h + (1 - f) silu(i), elementwise, with forget gates f above a learnt bound.
pub struct HgrnMixer {
    i: Stream,
    f: Stream,
    bound: LowerBound,
    norm: OutputNorm,
    out: Linear,
    width: usize,
}

impl HgrnMixer {
    /// Builds the mixer of block `layer`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &HgrnKeys, layer: usize) -> Result<Self> {
        let d = base.hidden_size;
        let w = width(d, own.expand_ratio.unwrap_or(1.0));
        let conv = own.use_short_conv.then_some(own.conv_size);
        let affine = base.elementwise_affine.unwrap_or(false);
        let norm = Norm::rms(&init.sub("g_norm"), w, base.norm_eps, affine)?;
        let gate = Linear::new(&init.sub("g_proj"), d, w, false)?;
        Ok(HgrnMixer {
            i: Stream::new(init, "i", [d, w], conv, None, None)?,
            f: Stream::new(init, "f", [d, w], conv, None, None)?,
            bound: LowerBound::new(init, base, own.use_lower_bound, layer)?,
            norm: OutputNorm::new(norm, Gate::Full(gate, Activation::Silu), 1),
            out: Linear::new(&init.sub("o_proj"), w, d, false)?,
            width: w,
        })
    }
}

impl Layer for HgrnMixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let ([i, f], [gate]) = linears(x, [self.i.proj(), self.f.proj()], [self.norm.gate_proj()])?;
        let i = self.i.finish(i, ctx)?;
        let g = self.bound.log_decay(&self.f.finish(f, ctx)?)?;
        let fresh = g.exp()?.neg()?.affine(1.0, 1.0)?.to_dtype(i.dtype())?;
        let i = swiglu(&i, &fresh)?;
        let first = ctx.state.as_deref_mut().map(|s| s.take(STATE)).transpose()?;
        let args = ScanArgs { initial_state: first.as_ref(), seqs: ctx.seqs, ..ScanArgs::new(&i, &g) };
        let out = linear_scan(&args)?;
        if let Some(state) = ctx.state.as_deref_mut() {
            state.set(STATE, out.final_state)?;
        }
        self.out.forward(&self.norm.forward(&out.o.heads(1)?, gate)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let convs = [&self.i, &self.f].into_iter().filter_map(Stream::state_spec);
        std::iter::once(vector_spec(STATE, vec![self.width], self.out.dtype())).chain(convs).collect()
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("HGRN(width {})", self.width)
    }
}
