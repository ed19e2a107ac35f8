//! The mixer of KDA.

use std::sync::Arc;

use flashlin_ops::{
    delta::{DeltaArgs, DeltaGate, GateActivation},
    gate::DecayGate,
};
use flashlin_tensor::{Parameter, Var};

use super::KdaKeys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{
        Activation, Heads, Linear, LowRank, OutputNorm, STEP_INIT, Stream, linears, mixer_state, recur,
    },
    state::StateSpec,
};

/// Kimi delta attention: S <- diag(e^g) S; S += k (beta (v - S^T k))^T with a gate per value head and key channel.
pub struct KimiDeltaAttention {
    q: Stream,
    k: Stream,
    v: Stream,
    f: LowRank,
    b: Linear,
    a_log: Arc<Parameter>,
    dt_bias: Arc<Parameter>,
    norm: OutputNorm,
    out: Linear,
    lower_bound: Option<f64>,
    neg_eigval: bool,
    heads: usize,
    v_heads: usize,
    dims: [usize; 2],
}

impl KimiDeltaAttention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &KdaKeys) -> Result<Self> {
        let (d, h) = (base.hidden_size, own.num_heads);
        let hv = own.num_v_heads.unwrap_or(h);
        let (dk, dv) = (own.head_dim, width(own.head_dim, own.expand_v));
        let conv = own.use_short_conv.then_some(own.conv_size);
        let silu = Some(Activation::Silu);
        let a_init = if own.safe_gate { Dist::Zeros } else { Dist::LogUniform(1.0, 16.0) };
        Ok(KimiDeltaAttention {
            a_log: init.param("A_log", &[hv], a_init, Role::Gate)?,
            dt_bias: init.param("dt_bias", &[hv * dk], STEP_INIT, Role::Gate)?,
            q: Stream::new(init, "q", [d, h * dk], conv, silu, silu)?,
            k: Stream::new(init, "k", [d, h * dk], conv, silu, silu)?,
            v: Stream::new(init, "v", [d, hv * dv], conv, silu, silu)?,
            f: LowRank::new(&init.sub("f_proj"), [d, dv, hv * dk], false)?,
            b: Linear::new(&init.sub("b_proj"), d, hv, false)?,
            norm: OutputNorm::low_rank_sigmoid(init, base, dv, hv)?,
            out: Linear::new(&init.sub("o_proj"), hv * dv, d, false)?,
            lower_bound: own.lower_bound,
            neg_eigval: own.allow_neg_eigval,
            heads: h,
            v_heads: hv,
            dims: [dk, dv],
        })
    }
}

impl Layer for KimiDeltaAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let maps = [self.q.proj(), self.k.proj(), self.v.proj(), self.f.down(), &self.b];
        let ([q, k, v, f, beta], [gate]) = linears(x, maps, [self.norm.gate_proj()])?;
        let [q, k, v] = Stream::finish_all([(&self.q, q), (&self.k, k), (&self.v, v)], ctx)?;
        let q = q.heads(self.heads)?;
        let k = k.heads(self.heads)?;
        let v = v.heads(self.v_heads)?;
        let f = self.f.up().forward(&f)?.heads(self.v_heads)?;
        let (a_log, dt_bias) = (self.a_log.var(), self.dt_bias.var());
        let mut args = DeltaArgs::kda(&q, &k, &v, &f, &beta);
        let formula = self.lower_bound.map_or(DecayGate::Softplus, DecayGate::LowerBound);
        let activation = GateActivation { formula, a_log: Some(&a_log), dt_bias: Some(&dt_bias) };
        args.gate = DeltaGate::Channel { g: &f, activation: Some(activation) };
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
        format!("KimiDeltaAttention(heads {}, v_heads {}, k {k}, v {v})", self.heads, self.v_heads)
    }
}
