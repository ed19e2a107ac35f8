//! The mixer and the channel mixing of RWKV-6.

use std::sync::Arc;

use flashlin_ops::{decay::DecayArgs, norm::group_norm, rwkv::mix};
use flashlin_tensor::{Parameter, Var};

use super::Rwkv6Keys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::{Dist, Init, Role},
    layer::{Layer, LayerCtx},
    modules::{
        Activation, Heads, Linear, Lora, Middle, TokenShift, activate, activation, ffn_width, recur,
        recurrent_spec,
    },
    state::StateSpec,
};

/// RWKV-6's time mixing: o = S^T r + (r . u k) v; S <- diag(e^w) S + k v^T, every input behind a data-dependent token shift.
pub struct Rwkv6Mixer {
    shift: TokenShift,
    /// Of the map that makes the five shifts.
    mu: Arc<Parameter>,
    down: Linear,
    /// `[hidden, 5 rank]`: for each shift its own map up.
    up: Arc<Parameter>,
    /// `[5, hidden]`, in the order r, w, k, v, g.
    bias: Arc<Parameter>,
    r: Linear,
    w: Lora,
    k: Linear,
    v: Linear,
    g: Linear,
    bonus: Arc<Parameter>,
    norm: [Arc<Parameter>; 2],
    out: Linear,
    eps: f64,
    heads: usize,
    dims: [usize; 2],
    hidden: usize,
}

impl Rwkv6Mixer {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &Rwkv6Keys) -> Result<Self> {
        let (d, h, rank) = (base.hidden_size, own.num_heads, own.proj_low_rank_dim);
        let (kd, vd) = (width(d, own.expand_k), width(d, own.expand_v));
        // Xavier-uniform with gain 2^-2.5.
        let bound = |input: usize, output: usize| 2f64.powf(-2.5) * (6.0 / (input + output) as f64).sqrt();
        let xavier = |input, output| Dist::Uniform(-bound(input, output), bound(input, output));
        let linear = |key: &str, input, output| {
            Linear::with_init(&init.sub(key), input, output, false, xavier(input, output))
        };
        let zeros = |at: &Init, key: &str, dims: &[usize]| at.param(key, dims, Dist::Zeros, Role::NoDecay);
        let norm = init.sub("g_norm");
        let proj = init.sub("x_proj");
        Ok(Rwkv6Mixer {
            shift: TokenShift::new("shift"),
            bias: zeros(init, "x_bias", &[5, d])?,
            bonus: zeros(init, "bonus", &[h, kd / h])?,
            mu: zeros(&proj.sub(0), "mu", &[d])?,
            down: linear("x_proj.0.linear", d, 5 * rank)?,
            up: proj.sub(2).param("weight", &[d, 5 * rank], xavier(5 * rank, d), Role::Weight)?,
            r: linear("r_proj.linear", d, kd)?,
            w: Lora::new(
                &init.sub("w_proj.linear"),
                [d, own.gate_low_rank_dim, kd],
                Middle::Tanh,
                Some(&|_| 0.0),
            )?,
            k: linear("k_proj.linear", d, kd)?,
            v: linear("v_proj.linear", d, vd)?,
            g: linear("g_proj.linear", d, vd)?,
            norm: [
                norm.param("weight", &[vd], Dist::Ones, Role::NoDecay)?,
                norm.param("bias", &[vd], Dist::Zeros, Role::NoDecay)?,
            ],
            out: linear("o_proj", vd, d)?,
            eps: base.norm_eps,
            heads: h,
            dims: [kd / h, vd / h],
            hidden: d,
        })
    }

    /// The five shifts `[B, T, D]`: bias + up_i tanh(down(mix x))_i.
    fn shifts(&self, x: &Var, previous: &Var) -> Result<[Var; 5]> {
        let [b, t, d] = x.tensor().dims_n::<3>("rwkv6", "x")?;
        let [mixed] = mix(x, previous, [&self.mu.var()])?;
        let low = self.down.forward(&mixed)?.tanh()?;
        let rank = low.dim(2) / 5;
        let (low, up, bias) =
            (low.reshape(&[b * t, 5, rank])?, self.up.var().reshape(&[d, 5, rank])?, self.bias.var());
        let one = |i: usize| -> Result<Var> {
            let low = low.narrow(1, i, 1)?.reshape(&[b * t, rank])?;
            let up = up.narrow(1, i, 1)?.reshape(&[d, rank])?;
            let bias = bias.narrow(0, i, 1)?.to_dtype(low.dtype())?;
            Ok(low.linear(&up)?.add(&bias)?.reshape(&[b, t, d])?)
        };
        Ok([one(0)?, one(1)?, one(2)?, one(3)?, one(4)?])
    }
}

impl Layer for Rwkv6Mixer {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let previous = self.shift.forward(x, ctx)?;
        let shifts = self.shifts(x, &previous)?;
        let [r, w, k, v, g] = mix(x, &previous, shifts.each_ref())?;
        let r = self.r.forward(&r)?.heads(self.heads)?;
        let w = self.w.forward(&w)?;
        let w = w.to_dtype(w.dtype().accumulator())?.exp()?.neg()?.heads(self.heads)?;
        let k = self.k.forward(&k)?.heads(self.heads)?;
        let v = self.v.forward(&v)?.heads(self.heads)?;
        let g = activate(&self.g.forward(&g)?, Activation::Silu)?;
        let bonus = self.bonus.var();
        let args =
            DecayArgs { gk: Some(&w), bonus: Some(&bonus), scale: Some(1.0), ..DecayArgs::new(&r, &k, &v) };
        let o = recur(args, ctx)?.merge_heads()?;
        let [weight, bias] = self.norm.each_ref().map(|p| p.var());
        let o = group_norm(&o, Some(&weight), Some(&bias), self.heads, false, self.eps)?;
        self.out.forward(&o.mul(&g)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dtype = self.out.dtype();
        vec![recurrent_spec(self.heads, self.dims, dtype), self.shift.state_spec(self.hidden, dtype)]
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let [k, v] = self.dims;
        format!("Rwkv6(heads {}, k {k}, v {v})", self.heads)
    }
}

/// RWKV-6's channel mixing: sigmoid(W_r x_r) * W_v act(W_k x_k), with a token shift each.
pub struct Rwkv6Ffn {
    shift: TokenShift,
    mu: [Arc<Parameter>; 2],
    key: Linear,
    value: Linear,
    receptance: Linear,
    activation: Activation,
}

impl Rwkv6Ffn {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig) -> Result<Self> {
        let (d, width) = (base.hidden_size, ffn_width(base, 3.5));
        let mu = |key: &str| init.sub(key).param("mu", &[d], Dist::Zeros, Role::NoDecay);
        let linear = |key: &str, input, output| Linear::new(&init.sub(key), input, output, false);
        Ok(Rwkv6Ffn {
            shift: TokenShift::new("ffn_shift"),
            mu: [mu("key")?, mu("receptance")?],
            key: linear("key.linear", d, width)?,
            value: linear("value", width, d)?,
            receptance: linear("receptance.linear", d, d)?,
            activation: activation("hidden_act", &base.hidden_act)?,
        })
    }
}

impl Layer for Rwkv6Ffn {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let previous = self.shift.forward(x, ctx)?;
        let mu = self.mu.each_ref().map(|p| p.var());
        let [key, receptance] = mix(x, &previous, mu.each_ref())?;
        let value = self.value.forward(&activate(&self.key.forward(&key)?, self.activation)?)?;
        Ok(activate(&self.receptance.forward(&receptance)?, Activation::Sigmoid)?.mul(&value)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        vec![self.shift.state_spec(self.mu[0].dims()[0], self.key.dtype())]
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("Rwkv6Ffn(width {})", self.key.weight().dims()[0])
    }
}
