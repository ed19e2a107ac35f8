//! The mixer of Gated DeltaProduct.

use std::sync::Arc;

use flashlin_ops::{
    delta::DeltaProductArgs,
    gate::{DecayGate, DecayGateArgs, decay_gate},
};
use flashlin_tensor::{Parameter, Var};

use super::GatedDeltaProductKeys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{Activation, Heads, Linear, OutputNorm, STEP_INIT, Stream, linears, mixer_state, recur},
    state::StateSpec,
};

/// n steps of the delta rule a token, behind one decay: S <- e^g S; n times S += k_i (beta_i (v_i - S^T k_i))^T.
pub struct GatedDeltaProductMixer {
    q: Stream,
    k: Stream,
    v: Stream,
    b: Linear,
    forget: Option<Forget>,
    norm: OutputNorm,
    out: Linear,
    neg_eigval: bool,
    steps: usize,
    heads: usize,
    v_heads: usize,
    dims: [usize; 2],
}

/// The decay's parameters: g = -e^A softplus(a + dt_bias).
struct Forget {
    a: Linear,
    a_log: Arc<Parameter>,
    dt_bias: Arc<Parameter>,
}

impl GatedDeltaProductMixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &GatedDeltaProductKeys) -> Result<Self> {
        let (d, h, n) = (base.hidden_size, own.num_heads, own.num_householder);
        let hv = own.num_v_heads.unwrap_or(h);
        let (dk, dv) = (own.head_dim, width(own.head_dim, own.expand_v));
        let conv = own.use_short_conv.then_some(own.conv_size);
        let silu = Some(Activation::Silu);
        let forget = || -> Result<Forget> {
            Ok(Forget {
                a_log: init.param("A_log", &[hv], Dist::LogUniform(0.0, 16.0), Role::Gate)?,
                dt_bias: init.param("dt_bias", &[hv], STEP_INIT, Role::Gate)?,
                a: Linear::new(&init.sub("a_proj"), d, hv, false)?,
            })
        };
        Ok(GatedDeltaProductMixer {
            forget: own.use_forget_gate.then(forget).transpose()?,
            q: Stream::new(init, "q", [d, h * dk], conv, silu, silu)?,
            k: Stream::new(init, "k", [d, h * dk * n], conv, silu, silu)?,
            v: Stream::new(init, "v", [d, hv * dv * n], conv, silu, silu)?,
            b: Linear::new(&init.sub("b_proj"), d, hv * n, false)?,
            norm: OutputNorm::gated(init, base, own.use_output_gate, hv * dv, hv, Activation::Silu)?,
            out: Linear::new(&init.sub("o_proj"), hv * dv, d, false)?,
            neg_eigval: own.allow_neg_eigval,
            steps: n,
            heads: h,
            v_heads: hv,
            dims: [dk, dv],
        })
    }

    /// The n of each token one after another: `[B, T, n w]` to `[B, T n, w]`.
    fn steps(&self, x: &Var) -> Result<Var> {
        let [b, t, w] = x.tensor().dims_n::<3>("gated_deltaproduct", "x")?;
        Ok(x.reshape(&[b, t * self.steps, w / self.steps])?)
    }
}

impl Layer for GatedDeltaProductMixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let maps = [self.q.proj(), self.k.proj(), self.v.proj(), &self.b];
        let a = self.forget.as_ref().map(|f| &f.a);
        let ([q, k, v, beta], [gate, a]) = linears(x, maps, [self.norm.gate_proj(), a])?;
        let q = self.q.finish(q, ctx)?.heads(self.heads)?;
        let k = self.steps(&self.k.finish(k, ctx)?)?.heads(self.heads)?;
        let v = self.steps(&self.v.finish(v, ctx)?)?.heads(self.v_heads)?;
        let beta = self.steps(&beta)?;
        let g = match (&self.forget, &a) {
            (Some(f), Some(a)) => {
                let (a_log, dt_bias) = (f.a_log.var(), f.dt_bias.var());
                let x = &a.to_dtype(a.dtype().accumulator())?;
                let formula = DecayGate::Softplus;
                let (a_log, dt_bias) = (Some(&a_log), Some(&dt_bias));
                Some(decay_gate(DecayGateArgs { x, per_channel: false, formula, a_log, dt_bias })?)
            }
            _ => None,
        };
        let mut args = DeltaProductArgs::new(&q, &k, &v, &beta, self.steps);
        args.g = g.as_ref();
        args.beta_sigmoid = true;
        args.allow_neg_eigval = self.neg_eigval;
        args.qk_l2norm = true;
        let o = recur(args, ctx)?;
        self.out.forward(&self.norm.forward(&o, gate)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        mixer_state(self.v_heads, self.dims, self.out.dtype(), [&self.q, &self.k, &self.v])
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let ([k, v], n) = (self.dims, self.steps);
        format!("GatedDeltaProduct(heads {}, v_heads {}, k {k}, v {v}, steps {n})", self.heads, self.v_heads)
    }
}
