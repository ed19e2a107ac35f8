//! The mixer of Comba.

use std::sync::Arc;

use flashlin_ops::{
    delta::{DeltaArgs, DeltaGate, GateActivation},
    gate::DecayGate,
};
use flashlin_tensor::{Parameter, Var};

use super::CombaKeys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{Activation, Heads, Linear, OutputNorm, STEP_INIT, Stream, linears, mixer_state, recur},
    state::StateSpec,
};

/// A delta rule in a closed loop: y = v - S^T p; S <- e^g S + k (beta y)^T, with the feedback key p = sigmoid(decay) k and the query q - D p.
pub struct CombaMixer {
    q: Stream,
    k: Stream,
    v: Stream,
    a: Linear,
    b: Linear,
    a_log: Arc<Parameter>,
    dt_bias: Arc<Parameter>,
    decay: Option<Arc<Parameter>>,
    d: Option<Arc<Parameter>>,
    norm: OutputNorm,
    out: Linear,
    heads: usize,
    v_heads: usize,
    dims: [usize; 2],
}

impl CombaMixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &CombaKeys) -> Result<Self> {
        let (d, h) = (base.hidden_size, own.num_heads);
        let hv = own.num_v_heads.unwrap_or(h);
        let (dk, dv) = (own.head_dim, width(own.head_dim, own.expand_v));
        let conv = own.use_short_conv.then_some(own.conv_size);
        let silu = Some(Activation::Silu);
        let factor = Dist::Constant(own.correction_factor);
        let decay = || init.param("decay", &[h], Dist::Ones, Role::Gate);
        let correction = || init.param("D", &[h], factor, Role::Gate);
        Ok(CombaMixer {
            decay: own.use_inner_decay.then(decay).transpose()?,
            d: own.use_output_correction.then(correction).transpose()?,
            a_log: init.param("A_log", &[hv], Dist::LogUniform(0.0, 16.0), Role::Gate)?,
            dt_bias: init.param("dt_bias", &[hv], STEP_INIT, Role::Gate)?,
            q: Stream::new(init, "q", [d, h * dk], conv, silu, silu)?,
            k: Stream::new(init, "k", [d, h * dk], conv, silu, silu)?,
            v: Stream::new(init, "v", [d, hv * dv], conv, silu, silu)?,
            a: Linear::new(&init.sub("a_proj"), d, hv, false)?,
            b: Linear::new(&init.sub("b_proj"), d, hv, false)?,
            norm: OutputNorm::gated(init, base, own.use_output_gate, hv * dv, hv, Activation::Sigmoid)?,
            out: Linear::new(&init.sub("o_proj"), hv * dv, d, false)?,
            heads: h,
            v_heads: hv,
            dims: [dk, dv],
        })
    }

    /// One number a head, for `[B, T, H, K]`.
    fn per_head(&self, x: &Var, like: &Var) -> Result<Var> {
        Ok(x.reshape(&[self.heads, 1])?.to_dtype(like.dtype())?)
    }
}

impl Layer for CombaMixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let maps = [self.q.proj(), self.k.proj(), self.v.proj(), &self.a, &self.b];
        let ([q, k, v, a, beta], [gate]) = linears(x, maps, [self.norm.gate_proj()])?;
        let q = self.q.finish(q, ctx)?.heads(self.heads)?;
        let k = self.k.finish(k, ctx)?.heads(self.heads)?;
        let v = self.v.finish(v, ctx)?.heads(self.v_heads)?;
        let p = match &self.decay {
            Some(decay) => k.mul(&self.per_head(&decay.var().sigmoid()?, &k)?)?,
            None => k.clone(),
        };
        let q = match &self.d {
            Some(d) => q.sub(&p.mul(&self.per_head(&d.var(), &p)?)?)?,
            None => q,
        };
        let (a_log, dt_bias) = (self.a_log.var(), self.dt_bias.var());
        let mut args = DeltaArgs::comba(&q, &k, &v, &p, &a, &beta);
        let activation =
            GateActivation { formula: DecayGate::Softplus, a_log: Some(&a_log), dt_bias: Some(&dt_bias) };
        args.gate = DeltaGate::Scalar { g: &a, activation: Some(activation) };
        args.beta_sigmoid = true;
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
        let [k, v] = self.dims;
        format!("Comba(heads {}, v_heads {}, k {k}, v {v})", self.heads, self.v_heads)
    }
}
