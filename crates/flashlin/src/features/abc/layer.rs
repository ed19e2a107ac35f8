//! The mixer of ABC.

use flashlin_ops::slots::SlotArgs;
use flashlin_tensor::Var;

use super::AbcKeys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{
        Activation, Gate, Heads, Linear, Norm, OutputNorm, Rotary, Stream, linears, running, running_spec,
        slot_specs, slots,
    },
    state::StateSpec,
};

/// Attention with bounded memory control: slots are running averages of keys and values, read by softmax over the slots.
pub struct AbcAttention {
    q: Stream,
    k: Stream,
    v: Stream,
    s: Linear,
    rotary: Option<Rotary>,
    norm: OutputNorm,
    out: Linear,
    clamp: [f64; 2],
    heads: usize,
    slots: usize,
    dims: [usize; 2],
}

impl AbcAttention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &AbcKeys) -> Result<Self> {
        let (d, heads) = (base.hidden_size, own.num_heads);
        let (kd, vd) = (width(d, own.expand_k), width(d, own.expand_v));
        let (k, v) = (kd / heads, vd / heads);
        let conv = own.use_short_conv.then_some(own.conv_size);
        let (silu, slots) = (Some(Activation::Silu), own.num_slots.unwrap_or(k));
        let affine = base.elementwise_affine.unwrap_or(false);
        let gate = Linear::new(&init.sub("g_proj"), d, vd, false)?;
        let norm = Norm::rms(&init.sub("g_norm"), v, base.norm_eps, affine)?;
        Ok(AbcAttention {
            q: Stream::new(init, "q", [d, kd], conv, silu, None)?,
            k: Stream::new(init, "k", [d, kd], conv, silu, None)?,
            v: Stream::new(init, "v", [d, vd], conv, silu, None)?,
            s: Linear::new(&init.sub("s_proj"), d, heads * slots, false)?,
            rotary: if own.use_rope { Some(Rotary::new(k, 10_000.0)?) } else { None },
            norm: OutputNorm::new(norm, Gate::Full(gate, Activation::Silu), heads),
            out: Linear::new(&init.sub("o_proj"), vd, d, false)?,
            clamp: [own.clamp_min.unwrap_or(f64::MIN), own.clamp_max.unwrap_or(f64::MAX)],
            heads,
            slots,
            dims: [k, v],
        })
    }
}

impl Layer for AbcAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let maps = [self.q.proj(), self.k.proj(), self.v.proj(), &self.s];
        let ([q, k, v, s], [gate]) = linears(x, maps, [self.norm.gate_proj()])?;
        let mut q = self.q.finish(q, ctx)?.heads(self.heads)?;
        let mut k = self.k.finish(k, ctx)?.heads(self.heads)?;
        let v = self.v.finish(v, ctx)?.heads(self.heads)?;
        if let Some(rotary) = &self.rotary {
            (q, k) = rotary.forward(&q, &k, ctx)?;
        }
        let [lo, hi] = self.clamp;
        let (s, g) = running(&s.clamp(lo, hi)?.heads(self.heads)?, ctx)?;
        let o = slots(SlotArgs::new(&q, &k, &v, &s, &g), ctx)?;
        self.out.forward(&self.norm.forward(&o, gate)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dtype = self.out.dtype();
        let convs = [&self.q, &self.k, &self.v].into_iter().filter_map(Stream::state_spec);
        let sums = running_spec(self.heads * self.slots, dtype);
        slot_specs(self.heads, self.dims, self.slots, dtype).into_iter().chain([sums]).chain(convs).collect()
    }

    fn describe(&self) -> String {
        let [k, v] = self.dims;
        format!("ABC(heads {}, slots {}, k {k}, v {v})", self.heads, self.slots)
    }
}
