//! The mixer and the channel mixing of RWKV-7.

use std::sync::Arc;

use flashlin_ops::{
    delta::{DplrArgs, Settings},
    norm::{group_norm, l2_norm},
    rwkv::{Correction, key_update, mix, output_correction},
};
use flashlin_tensor::{Parameter, Tensor, Var};

use super::{Rwkv7Keys, config::Sizes};
use crate::{
    Result,
    config::BaseConfig,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{
        Activation, Heads, Linear, Lora, Middle, TokenShift, activate, activation, ffn_width, recur,
        recurrent_spec,
    },
    state::StateSpec,
};

/// The strongest log-decay: e^-0.5.
const STRONGEST: f64 = -0.606_530_659_712_633_4;
/// Under which name layers find the values of the first.
const FIRST_VALUES: &str = "v_first";

/// RWKV-7's time mixing: S <- diag(e^w) S - kk (S^T kk) a + k v^T with token shift, value residual, bonus and gate.
pub struct Rwkv7Mixer {
    shift: TokenShift,
    /// Of r, w, k, v, a, g.
    mu: [Arc<Parameter>; 6],
    k_k: Arc<Parameter>,
    k_a: Arc<Parameter>,
    r_k: Arc<Parameter>,
    r: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    w_lora: Lora,
    v_lora: Option<Lora>,
    a_lora: Lora,
    g_lora: Lora,
    norm: [Arc<Parameter>; 2],
    eps: f64,
    unit_eps: f64,
    sizes: Sizes,
}

impl Rwkv7Mixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &Rwkv7Keys, layer: usize) -> Result<Self> {
        let s = own.sizes(base)?;
        let (d, kd, layers) = (base.hidden_size, base.hidden_size, base.num_hidden_layers);
        let depth = layer as f64 / layers.saturating_sub(1).max(1) as f64;
        let rest = 1.0 - layer as f64 / layers as f64;
        let ramp = |n: usize| n as f64 / d.saturating_sub(1).max(1) as f64;
        let half = (s.head_dim - 1) as f64 / 2.0;
        let zigzag = |n: usize| {
            let z = if half > 0.0 { ((n % s.head_dim) as f64 - half) / half } else { 0.0 };
            z * z.abs()
        };
        let shift = |key: &str, power: f64| {
            let value = move |n: usize| 1.0 - (n as f64 / d as f64).powf(power * rest);
            init.values(key, &[1, 1, d], Role::NoDecay, value)
        };
        let decay = |n: usize| -6.0 + 6.0 * ramp(n).powf(1.0 + depth.powf(0.3)) + 0.5 + 2.5 * zigzag(n);
        let rate = |n: usize| -0.19 + 0.3 * zigzag(n) + 0.4 * (ramp(n) - 0.5);
        let residual = |n: usize| 0.73 - 0.4 * (ramp(n % d) - 0.5);
        let lora = |key: &str, dims, middle, bias| Lora::new(&init.sub(key), dims, middle, bias);
        let linear =
            |key: &str, input, output, dist| Linear::with_init(&init.sub(key), input, output, false, dist);
        let v_lora = || lora("v_lora", [d, s.v_rank, s.value_dim], Middle::Plain, Some(&residual));
        let scale = ((layer + 1) as f64 / layers as f64).powf(0.7);
        let norm = init.sub("g_norm");
        Ok(Rwkv7Mixer {
            shift: TokenShift::new("shift"),
            mu: [
                shift("x_r", 0.2)?,
                shift("x_w", 0.9)?,
                shift("x_k", 0.7)?,
                shift("x_v", 0.7)?,
                shift("x_a", 0.9)?,
                shift("x_g", 0.2)?,
            ],
            k_k: init.values("k_k", &[kd], Role::NoDecay, |n| 0.71 - 0.1 * (ramp(n) - 0.5))?,
            k_a: init.param("k_a", &[kd], Dist::Constant(1.02), Role::NoDecay)?,
            r_k: init.param("r_k", &[s.heads, s.head_dim], Dist::Constant(-0.04), Role::NoDecay)?,
            r: linear("r_proj", d, kd, Dist::Orthogonal(1.0))?,
            k: linear("k_proj", d, kd, Dist::Orthogonal(0.1))?,
            v: linear("v_proj", d, s.value_dim, Dist::Orthogonal(1.0))?,
            out: linear("o_proj", s.value_dim, d, Dist::Zeros)?,
            w_lora: lora("w_lora", [d, s.decay_rank, kd], Middle::Tanh, Some(&decay))?,
            v_lora: if layer > 0 { Some(v_lora()?) } else { None },
            a_lora: lora("a_lora", [d, s.a_rank, kd], Middle::Plain, Some(&rate))?,
            g_lora: lora("g_lora", [d, s.gate_rank, s.value_dim], Middle::Sigmoid, None)?,
            norm: [
                norm.param("weight", &[s.value_dim], Dist::Constant(scale), Role::NoDecay)?,
                norm.param("bias", &[s.value_dim], Dist::Zeros, Role::NoDecay)?,
            ],
            eps: s.head_dim as f64 * base.norm_eps,
            // The peer's fused norm adds under the root; its other one divides by at least 1e-12.
            unit_eps: if base.fuse_norm { 1e-6 } else { 1e-24 },
            sizes: s,
        })
    }

    /// The layer's own values, drawn towards those of the first layer. Without any (softmax attention stands first) they are drawn towards zero.
    fn values(&self, v: Var, xv: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let Some(lora) = &self.v_lora else {
            ctx.carried.insert(FIRST_VALUES, v.clone());
            return Ok(v);
        };
        let first = match ctx.carried.get(FIRST_VALUES) {
            Some(first) => first.clone(),
            None => Tensor::zeros(v.dims(), v.dtype(), &v.device())?.into(),
        };
        let weight = activate(&lora.forward(xv)?, Activation::Sigmoid)?;
        Ok(v.add(&first.sub(&v)?.mul(&weight)?)?)
    }
}

impl Layer for Rwkv7Mixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let s = self.sizes;
        let previous = self.shift.forward(x, ctx)?;
        let mu = self.mu.each_ref().map(|p| p.var());
        let [xr, xw, xk, xv, xa, xg] = mix(x, &previous, mu.each_ref())?;
        let sigmoid = |x: &Var| activate(x, Activation::Sigmoid);
        let logit = self.w_lora.forward(&xw)?;
        let w = sigmoid(&logit.to_dtype(logit.dtype().accumulator())?)?.affine(STRONGEST, 0.0)?;
        let r = self.r.forward(&xr)?.heads(s.heads)?;
        let k = self.k.forward(&xk)?;
        let v = self.values(self.v.forward(&xv)?, &xv, ctx)?.heads(s.heads)?;
        let a = sigmoid(&self.a_lora.forward(&xa)?)?;
        let g = self.g_lora.forward(&xg)?;
        let erase = k.mul(&self.k_k.var().to_dtype(k.dtype())?)?.heads(s.heads)?;
        let erase = l2_norm(&erase, self.unit_eps)?;
        let k = key_update(&k, &a, &self.k_a.var())?.heads(s.heads)?;
        let (a, b, w) = (erase.neg()?, erase.mul(&a.heads(s.heads)?)?, w.heads(s.heads)?);
        let settings = Settings { scale: Some(1.0), ..Settings::default() };
        let o = recur(DplrArgs { g: Some(&w), settings, ..DplrArgs::new(&r, &k, &v, &a, &b) }, ctx)?;
        let [weight, bias] = self.norm.each_ref().map(|p| p.var());
        let o = group_norm(&o.merge_heads()?, Some(&weight), Some(&bias), s.heads, false, self.eps)?;
        let r_k = self.r_k.var();
        let o = output_correction(&Correction { o: &o, r: &r, k: &k, r_k: &r_k, v: &v, g: &g })?;
        self.out.forward(&o)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let (s, dtype) = (self.sizes, self.out.dtype());
        let dims = [s.head_dim, s.value_dim / s.heads];
        vec![recurrent_spec(s.heads, dims, dtype), self.shift.state_spec(s.heads * s.head_dim, dtype)]
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let s = self.sizes;
        format!("Rwkv7(heads {}, k {}, v {})", s.heads, s.head_dim, s.value_dim / s.heads)
    }
}

/// RWKV-7's channel mixing: W_v act(W_k (x + (x_{t-1} - x) mu)).
pub struct Rwkv7Ffn {
    shift: TokenShift,
    mu: Arc<Parameter>,
    key: Linear,
    value: Linear,
    activation: Activation,
}

impl Rwkv7Ffn {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, layer: usize) -> Result<Self> {
        let (d, width) = (base.hidden_size, ffn_width(base, 4.0));
        let power = (1.0 - layer as f64 / base.num_hidden_layers as f64).powi(4);
        let mu = |n: usize| 1.0 - (n as f64 / d as f64).powf(power);
        Ok(Rwkv7Ffn {
            shift: TokenShift::new("ffn_shift"),
            mu: init.values("x_k", &[d], Role::NoDecay, mu)?,
            key: Linear::with_init(&init.sub("key"), d, width, false, Dist::Orthogonal(1.0))?,
            value: Linear::with_init(&init.sub("value"), width, d, false, Dist::Zeros)?,
            activation: activation("hidden_act", &base.hidden_act)?,
        })
    }
}

impl Layer for Rwkv7Ffn {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let previous = self.shift.forward(x, ctx)?;
        let [mixed] = mix(x, &previous, [&self.mu.var()])?;
        self.value.forward(&activate(&self.key.forward(&mixed)?, self.activation)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        vec![self.shift.state_spec(self.mu.dims()[0], self.key.dtype())]
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("Rwkv7Ffn(width {})", self.key.weight().dims()[0])
    }
}
