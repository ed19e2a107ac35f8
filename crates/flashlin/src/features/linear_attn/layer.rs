//! The mixer of linear attention.

use std::sync::Arc;

use flashlin_ops::decay::DecayArgs;
use flashlin_tensor::Var;

use super::LinearAttnKeys;
use crate::{
    Result,
    config::BaseConfig,
    family::width,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{
        FeatureMap, Gate, Heads, Linear, Norm, OutputNorm, linears, recur, recur_normalized, recurrent_spec,
    },
    state::StateSpec,
};

/// Added to sums that divide: of features, and of attention weights.
const FEATURE_EPS: f64 = 1e-4;
const WEIGHT_EPS: f64 = 1e-10;

/// Linear attention: S <- S + phi(k) v^T, o = S^T phi(q).
pub struct LinearAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    maps: [Arc<FeatureMap>; 2],
    norms: [bool; 2],
    normalize: bool,
    norm: OutputNorm,
    out: Linear,
    heads: usize,
    kv_heads: usize,
    /// Features and value channels of a head.
    dims: [usize; 2],
}

impl LinearAttention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &LinearAttnKeys) -> Result<Self> {
        let d = base.hidden_size;
        let (kd, vd, heads) = (width(d, own.expand_k), width(d, own.expand_v), own.num_heads);
        let kv_heads = own.num_kv_heads.unwrap_or(heads);
        let groups = heads / kv_heads;
        let map = |at: &str| {
            FeatureMap::new(&init.sub(at), "feature_map", &own.feature_map, kd / heads).map(Arc::new)
        };
        let first = map("feature_map_q")?;
        let second = match own.tie_feature_map_qk {
            true => {
                init.tie("feature_map_k", "feature_map_q");
                first.clone()
            }
            false => map("feature_map_k")?,
        };
        let affine = base.elementwise_affine.unwrap_or(false);
        let norm = Norm::rms(&init.sub("norm"), vd / heads, base.norm_eps, affine)?;
        Ok(LinearAttention {
            q: Linear::new(&init.sub("q_proj"), d, kd, false)?,
            k: Linear::new(&init.sub("k_proj"), d, kd / groups, false)?,
            v: Linear::new(&init.sub("v_proj"), d, vd / groups, false)?,
            dims: [first.width(kd / heads), vd / heads],
            maps: [first, second],
            norms: [own.norm_q, own.norm_k],
            normalize: own.norm_feature_map,
            norm: OutputNorm::new(norm, Gate::None, heads),
            out: Linear::new(&init.sub("o_proj"), vd, d, false)?,
            heads,
            kv_heads,
        })
    }

    /// Features of q (0) or k (1).
    fn features(&self, x: &Var, of: usize) -> Result<Var> {
        let y = self.maps[of].forward(x)?;
        if !self.norms[of] {
            return Ok(y);
        }
        Ok(y.div(&y.sum(&[3], true)?.affine(1.0, FEATURE_EPS)?)?)
    }
}

impl Layer for LinearAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let groups = self.heads / self.kv_heads;
        let ([q, k, v], []) = linears(x, [&self.q, &self.k, &self.v], [])?;
        let q = self.features(&q.heads(self.heads)?, 0)?;
        let k = self.features(&k.heads(self.kv_heads)?, 1)?.repeat_heads(groups)?;
        let v = v.heads(self.kv_heads)?.repeat_heads(groups)?;
        let o = match self.normalize {
            true => recur_normalized([&q, &k, &v], None, WEIGHT_EPS, ctx)?,
            false => recur(DecayArgs::new(&q, &k, &v), ctx)?,
        };
        self.out.forward(&self.norm.forward(&o, None)?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let [k, v] = self.dims;
        vec![recurrent_spec(self.heads, [k, v + usize::from(self.normalize)], self.out.dtype())]
    }

    fn steps_alike(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let [k, v] = self.dims;
        format!("LinearAttention(heads {}, kv_heads {}, features {k}, v {v})", self.heads, self.kv_heads)
    }
}
