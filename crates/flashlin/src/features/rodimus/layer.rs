//! The mixer of Rodimus.

use std::sync::Arc;

use flashlin_ops::decay::DecayArgs;
use flashlin_tensor::{Parameter, Var};

use super::RodimusKeys;
use crate::{
    Result,
    config::BaseConfig,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{Activation, Conv1d, Heads, Linear, MambaNorm, STEP_INIT, linears, recur, recurrent_spec},
    state::StateSpec,
};

/// Gain of the gates' Glorot-uniform weights.
const GATE_GAIN: f64 = 0.176_776_695_296_636_9; // 2^-2.5
/// Smallest strength of a gate, so that its logarithm is finite.
const LEAST: f64 = 1.2e-38;

/// A gate's projection: weights in the model's dtype, biases added in f32.
struct GateLinear {
    weight: Linear,
    bias: Arc<Parameter>,
}

impl GateLinear {
    fn new(init: &Init, [input, output]: [usize; 2], bias: Dist) -> Result<Self> {
        let glorot = Dist::xavier(input, output, GATE_GAIN);
        Ok(GateLinear {
            weight: Linear::with_init(init, input, output, false, glorot)?,
            bias: init.param("bias", &[output], bias, Role::Gate)?,
        })
    }

    fn finish(&self, y: &Var) -> Result<Var> {
        let bias = self.bias.var();
        Ok(y.to_dtype(bias.dtype())?.add(&bias)?)
    }
}

/// Rodimus: one wide head of gated linear attention, whose decay and write strength come from the same gate, tempered.
pub struct RodimusMixer {
    gate: Linear,
    up: Linear,
    conv: Option<Conv1d>,
    q: Linear,
    k: Linear,
    strength: GateLinear,
    temper: GateLinear,
    input_gate: (Linear, Linear),
    residual: Arc<Parameter>,
    norm: MambaNorm,
    down: Linear,
    k_eps: f64,
    inner: usize,
    /// Value heads that share q, k and gates.
    heads: usize,
    state: usize,
}

/// Equal parts that the value channels are cut into: narrow enough for kernels.
fn value_heads(inner: usize) -> usize {
    (1..=inner).find(|h| inner.is_multiple_of(*h) && inner / h <= 256).unwrap_or(1)
}

impl RodimusMixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &RodimusKeys) -> Result<Self> {
        let (d, state) = (base.hidden_size, own.expand_ratio);
        let inner = (2 * d).next_multiple_of(8);
        let rank = own.rank(d)?;
        let linear = |key: &str, from, to| Linear::new(&init.sub(key), from, to, false);
        let glorot = |from, to| Dist::xavier(from, to, GATE_GAIN);
        let at = init.sub("i_gate_proj");
        let normal = Dist::Normal(init.std());
        let conv = || {
            let at = init.sub("short_conv");
            Conv1d::new(&at, inner, own.conv_size, true, normal, Some(Activation::Silu), "conv")
        };
        let role = if own.residual_in_fp32 { Role::Gate } else { Role::NoDecay };
        let temper = Dist::LogitUniform(1.0 / 16.0, 0.9);
        Ok(RodimusMixer {
            gate: linear("gate_proj", d, inner)?,
            up: linear("up_proj", d, inner)?,
            conv: if own.use_short_conv { Some(conv()?) } else { None },
            q: linear("q_proj", inner, state)?,
            k: linear("k_proj", inner, state)?,
            strength: GateLinear::new(&init.sub("g_gate_proj"), [inner, state], STEP_INIT)?,
            temper: GateLinear::new(&init.sub("tau_gate_proj"), [inner, state], temper)?,
            input_gate: (
                Linear::with_init(&at.sub(0), inner, rank, false, glorot(inner, rank))?,
                Linear::with_init(&at.sub(1), rank, inner, true, glorot(rank, inner))?,
            ),
            residual: init.param("residual_weight", &[inner], Dist::Ones, role)?,
            norm: MambaNorm::new(&init.sub("activation_norm"), inner, 1, base.norm_eps, false)?,
            down: linear("down_proj", inner, d)?,
            k_eps: own.k_norm_eps.unwrap_or(1e-12),
            inner,
            heads: value_heads(inner),
            state,
        })
    }

    /// k over its length, in f32.
    fn unit(&self, k: &Var) -> Result<Var> {
        let k = k.to_dtype(k.dtype().accumulator())?;
        // The square of the least length under the root: its slope at 0 is finite.
        let square = k.mul(&k)?.sum(&[2], true)?;
        let least = (self.k_eps * self.k_eps).max(LEAST);
        Ok(k.div(&square.clamp(least, f64::MAX)?.sqrt()?)?)
    }
}

impl Layer for RodimusMixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let ([gate, h], []) = linears(x, [&self.gate, &self.up], [])?;
        let shifted = match &self.conv {
            Some(conv) => conv.forward(&h, ctx)?,
            None => h.clone(),
        };
        let maps = [&self.q, &self.k, &self.strength.weight, &self.temper.weight];
        let ([q, k, strength, temper], []) = linears(&shifted, maps, [])?;
        let input = self.input_gate.1.forward(&self.input_gate.0.forward(&h)?)?.sigmoid()?;
        let v = input.mul(&h)?;
        let strength = self.strength.finish(&strength)?.softplus()?;
        let temper = self.temper.finish(&temper)?.sigmoid()?;
        // strength^temper
        let write = strength.clamp(LEAST, f64::MAX)?.log()?.mul(&temper)?.exp()?;
        let decay = strength.mul(&temper)?.neg()?;
        let k = self.unit(&k)?.mul(&write)?.to_dtype(v.dtype())?;
        let (q, k, g) = (q.heads(1)?, k.heads(1)?, decay.heads(1)?);
        let v = v.heads(self.heads)?;
        let mut args = DecayArgs::new(&q, &k, &v);
        args.gk = Some(&g);
        let o = recur(args, ctx)?.merge_heads()?;
        let weight = self.residual.var();
        let skip = shifted.to_dtype(weight.dtype())?.mul(&weight)?;
        let o = o.to_dtype(weight.dtype())?.add(&skip)?.to_dtype(o.dtype())?;
        self.down.forward(&self.norm.forward(&o, &gate)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dtype = self.down.dtype();
        let matrix = recurrent_spec(self.heads, [self.state, self.inner / self.heads], dtype);
        std::iter::once(matrix).chain(self.conv.as_ref().map(|c| c.state_spec(dtype))).collect()
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("Rodimus(inner {}, state {})", self.inner, self.state)
    }
}
