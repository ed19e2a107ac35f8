//! The mixer of Gated DeltaNet.

use std::sync::Arc;

use flashlin_ops::{
    delta::{DeltaArgs, DeltaGate, GateActivation},
    gate::DecayGate,
};
use flashlin_tensor::{Parameter, Var};

use super::GatedDeltaNetKeys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{
        Activation, Heads, Linear, OutputNorm, STEP_INIT, Stream, gate_activation, linears, mixer_state,
        recur,
    },
    state::StateSpec,
};

/// The gated delta rule: S <- e^g S; S += k (beta (v - S^T k))^T, with g = -e^A softplus(a + dt_bias) per value head.
pub struct GatedDeltaNetMixer {
    q: Stream,
    k: Stream,
    v: Stream,
    a: Linear,
    b: Linear,
    a_log: Arc<Parameter>,
    dt_bias: Arc<Parameter>,
    norm: OutputNorm,
    out: Linear,
    neg_eigval: bool,
    heads: usize,
    v_heads: usize,
    dims: [usize; 2],
}

impl GatedDeltaNetMixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &GatedDeltaNetKeys) -> Result<Self> {
        let (d, h) = (base.hidden_size, own.num_heads);
        let hv = own.num_v_heads.unwrap_or(h);
        let (dk, dv) = (own.head_dim, width(own.head_dim, own.expand_v));
        let conv = own.use_short_conv.then_some(own.conv_size);
        let silu = Some(Activation::Silu);
        let gate = gate_activation("output_gate_activation", &own.output_gate_activation)?;
        Ok(GatedDeltaNetMixer {
            a_log: init.param("A_log", &[hv], Dist::LogUniform(0.0, 16.0), Role::Gate)?,
            dt_bias: init.param("dt_bias", &[hv], STEP_INIT, Role::Gate)?,
            q: Stream::new(init, "q", [d, h * dk], conv, silu, silu)?,
            k: Stream::new(init, "k", [d, h * dk], conv, silu, silu)?,
            v: Stream::new(init, "v", [d, hv * dv], conv, silu, silu)?,
            a: Linear::new(&init.sub("a_proj"), d, hv, false)?,
            b: Linear::new(&init.sub("b_proj"), d, hv, false)?,
            norm: OutputNorm::gated(init, base, own.use_gate, hv * dv, hv, gate)?,
            out: Linear::new(&init.sub("o_proj"), hv * dv, d, false)?,
            neg_eigval: own.allow_neg_eigval,
            heads: h,
            v_heads: hv,
            dims: [dk, dv],
        })
    }
}

impl Layer for GatedDeltaNetMixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let maps = [self.q.proj(), self.k.proj(), self.v.proj(), &self.a, &self.b];
        let ([q, k, v, a, beta], [gate]) = linears(x, maps, [self.norm.gate_proj()])?;
        let [q, k, v] = Stream::finish_all([(&self.q, q), (&self.k, k), (&self.v, v)], ctx)?;
        let q = q.heads(self.heads)?;
        let k = k.heads(self.heads)?;
        let v = v.heads(self.v_heads)?;
        let (a_log, dt_bias) = (self.a_log.var(), self.dt_bias.var());
        let mut args = DeltaArgs::gated_delta_rule(&q, &k, &v, &a, &beta);
        let activation =
            GateActivation { formula: DecayGate::Softplus, a_log: Some(&a_log), dt_bias: Some(&dt_bias) };
        args.gate = DeltaGate::Scalar { g: &a, activation: Some(activation) };
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
        let [k, v] = self.dims;
        format!("GatedDeltaNet(heads {}, v_heads {}, k {k}, v {v})", self.heads, self.v_heads)
    }
}
