//! The mixer of the forgetting transformer.

use flashlin_ops::{
    gate::log_sigmoid_gate,
    softmax::{AttentionArgs, attention},
};
use flashlin_tensor::Var;

use super::ForgettingKeys;
use crate::{
    Result,
    config::BaseConfig,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{Cache, GroupRmsNorm, Heads, Linear, linears},
    state::StateSpec,
};

/// Epsilon of the norms on q and k, a constant of the architecture.
const QK_NORM_EPS: f64 = 1e-5;

/// Softmax attention whose scores decay by a forget gate of every token between key and query.
pub struct ForgettingAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    f: Linear,
    gate: Option<Linear>,
    out: Linear,
    norms: Option<[GroupRmsNorm; 2]>,
    cache: Cache,
    window: Option<usize>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl ForgettingAttention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &ForgettingKeys) -> Result<Self> {
        let (d, heads) = (base.hidden_size, own.num_heads);
        let (head_dim, kv_heads) = (d / heads, own.num_kv_heads.unwrap_or(heads));
        let kv = kv_heads * head_dim;
        let linear = |key: &str, width, bias| Linear::new(&init.sub(key), d, width, bias);
        let norm =
            |key: &str, groups| GroupRmsNorm::new(&init.sub(key), groups * head_dim, groups, QK_NORM_EPS);
        Ok(ForgettingAttention {
            q: linear("q_proj", d, own.qkv_bias)?,
            k: linear("k_proj", kv, own.qkv_bias)?,
            v: linear("v_proj", kv, own.qkv_bias)?,
            f: linear("f_proj", heads, true)?,
            gate: if own.use_output_gate { Some(linear("g_proj", d, false)?) } else { None },
            out: linear("o_proj", d, false)?,
            norms: match own.qk_norm {
                true => Some([norm("q_norm", heads)?, norm("k_norm", kv_heads)?]),
                false => None,
            },
            cache: Cache::new(&["keys", "values", "decays"], own.window_size),
            window: own.window_size,
            heads,
            kv_heads,
            head_dim,
        })
    }
}

impl Layer for ForgettingAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let maps = [&self.q, &self.k, &self.v, &self.f];
        let ([mut q, mut k, v, f], [gate]) = linears(x, maps, [self.gate.as_ref()])?;
        if let Some([q_norm, k_norm]) = &self.norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let (q, k, v) = (q.heads(self.heads)?, k.heads(self.kv_heads)?, v.heads(self.kv_heads)?);
        let g = log_sigmoid_gate(&f.to_dtype(f.dtype().accumulator())?, 1.0, None)?.heads(1)?;
        let o = self.cache.attend(ctx, &q, &[&k, &v, &g], |q, keys| {
            let [k, v, g] = [0, 1, 2].map(|i| &keys.parts[i]);
            let g = g.reshape(&[g.dim(0), g.dim(1), self.heads])?;
            let args = AttentionArgs { window: self.window, decay: Some(&g), ..keys.args(q, k, v) };
            Ok(attention(&args)?.o)
        })?;
        let mut o = o.merge_heads()?;
        if let Some(gate) = gate {
            o = o.mul(&gate.sigmoid()?)?;
        }
        self.out.forward(&o)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let kv = [self.kv_heads, self.head_dim];
        let mut specs = self.cache.state_spec(&[kv, kv, [1, self.heads]], self.out.dtype());
        // Sums of many decays: half precision would add up its errors.
        specs[2].dtype = self.out.dtype().accumulator();
        specs
    }

    fn describe(&self) -> String {
        let window = self.window.map_or(String::new(), |w| format!(", window {w}"));
        format!(
            "ForgettingAttention(heads {} of {}, kv_heads {}{window})",
            self.heads, self.head_dim, self.kv_heads
        )
    }
}
