//! The mixer of gated slot attention.

use flashlin_ops::{gate::log_sigmoid_gate, slots::SlotArgs};
use flashlin_tensor::Var;

use super::GsaKeys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{
        Activation, FeatureMap, Heads, Linear, OutputNorm, Stream, activate, linears, slot_specs, slots,
    },
    state::StateSpec,
};

/// Epsilon of the output norm: the peer's model passes none on.
const NORM_EPS: f64 = 1e-5;

/// Gated slot attention: keys and values are written into slots that decay, and read by softmax over the slots.
pub struct GatedSlotAttention {
    q: Stream,
    k: Stream,
    v: Stream,
    f: Linear,
    map: FeatureMap,
    norm: OutputNorm,
    out: Linear,
    normalizer: f64,
    heads: usize,
    kv_heads: usize,
    slots: usize,
    dims: [usize; 2],
}

impl GatedSlotAttention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &GsaKeys) -> Result<Self> {
        let d = base.hidden_size;
        let (kd, vd) = (width(d, own.expand_k), width(d, own.expand_v));
        let kv_heads = own.num_kv_heads.unwrap_or(own.num_heads);
        let groups = own.num_heads / kv_heads;
        let conv = own.use_short_conv.then_some(own.conv_size);
        let (silu, k) = (Some(Activation::Silu), kd / own.num_heads);
        let slots = own.num_slots.unwrap_or(k);
        Ok(GatedSlotAttention {
            q: Stream::new(init, "q", [d, kd], conv, silu, None)?,
            k: Stream::new(init, "k", [d, kd / groups], conv, silu, None)?,
            v: Stream::new(init, "v", [d, vd / groups], conv, silu, None)?,
            f: Linear::new(&init.sub("f_proj"), d, kv_heads * slots, false)?,
            map: FeatureMap::new(&init.sub("feature_map"), "feature_map", &own.feature_map, k)?,
            norm: OutputNorm::whole(init, base, vd, NORM_EPS)?,
            out: Linear::new(&init.sub("o_proj"), vd, d, false)?,
            normalizer: own.gate_logit_normalizer,
            heads: own.num_heads,
            kv_heads,
            slots,
            dims: [k, vd / own.num_heads],
        })
    }
}

impl Layer for GatedSlotAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let groups = self.heads / self.kv_heads;
        let maps = [self.q.proj(), self.k.proj(), self.v.proj(), &self.f];
        let ([q, k, v, f], []) = linears(x, maps, [])?;
        let q = self.map.forward(&self.q.finish(q, ctx)?.heads(self.heads)?)?;
        let k = self.map.forward(&self.k.finish(k, ctx)?.heads(self.kv_heads)?)?.repeat_heads(groups)?;
        let v = activate(&self.v.finish(v, ctx)?, Activation::Silu)?;
        let v = v.heads(self.kv_heads)?.repeat_heads(groups)?;
        let f = f.to_dtype(f.dtype().accumulator())?.heads(self.kv_heads)?;
        let g = log_sigmoid_gate(&f, self.normalizer, None)?.repeat_heads(groups)?;
        let s = g.exp()?.neg()?.affine(1.0, 1.0)?.to_dtype(v.dtype())?;
        let args = SlotArgs { scale: Some(1.0), ..SlotArgs::new(&q, &k, &v, &s, &g) };
        let o = activate(&slots(args, ctx)?, Activation::Silu)?;
        self.out.forward(&self.norm.forward(&o, None)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dtype = self.out.dtype();
        let convs = [&self.q, &self.k, &self.v].into_iter().filter_map(Stream::state_spec);
        slot_specs(self.heads, self.dims, self.slots, dtype).into_iter().chain(convs).collect()
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let [k, v] = self.dims;
        format!(
            "GatedSlotAttention(heads {}, kv_heads {}, slots {}, k {k}, v {v})",
            self.heads, self.kv_heads, self.slots
        )
    }
}
