//! Sliding-window attention whose heads share one key: the second branch of a `rodimus_plus` block.

use flashlin_ops::softmax::{AttentionArgs, attention};
use flashlin_tensor::Var;

use super::config::SharedKeySpec;
use crate::{
    Result,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{Cache, Heads, Linear, Norm, Rotary, linears},
    state::StateSpec,
};

/// Epsilon of the norms on q and k, a constant of the architecture.
const QK_NORM_EPS: f64 = 1e-5;

/// Softmax attention over a window: queries and values by head, one rotary key for all heads.
pub struct SharedKeyAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norms: Option<[Norm; 2]>,
    rotary: Rotary,
    cache: Cache,
    spec: SharedKeySpec,
    head_dim: usize,
}

impl SharedKeyAttention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, hidden: usize, spec: &SharedKeySpec) -> Result<Self> {
        let head_dim = hidden / spec.heads.max(1);
        let linear = |key: &str, width, bias| Linear::new(&init.sub(key), hidden, width, bias);
        let norm = |key: &str| Norm::rms(&init.sub(key), head_dim, QK_NORM_EPS, true);
        Ok(SharedKeyAttention {
            q: linear("q_proj", hidden, spec.qkv_bias)?,
            k: linear("k_proj", head_dim, spec.qkv_bias)?,
            v: linear("v_proj", hidden, spec.qkv_bias)?,
            out: linear("o_proj", hidden, false)?,
            norms: if spec.qk_norm { Some([norm("q_norm")?, norm("k_norm")?]) } else { None },
            rotary: Rotary::new(head_dim, spec.rope_theta)?,
            cache: Cache::new(&["shared_keys", "shared_values"], Some(spec.window)),
            spec: *spec,
            head_dim,
        })
    }
}

impl Layer for SharedKeyAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let ([q, k, v], []) = linears(x, [&self.q, &self.k, &self.v], [])?;
        let (mut q, mut k, v) = (q.heads(self.spec.heads)?, k.heads(1)?, v.heads(self.spec.heads)?);
        if let Some([q_norm, k_norm]) = &self.norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let (q, k) = self.rotary.forward(&q, &k, ctx)?;
        let o = self.cache.attend(ctx, &q, &[&k, &v], |q, keys| {
            let k = keys.parts[0].repeat_heads(self.spec.heads)?;
            let window = Some(self.spec.window);
            Ok(attention(&AttentionArgs { window, ..keys.args(q, &k, &keys.parts[1]) })?.o)
        })?;
        self.out.forward(&o.merge_heads()?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let d = self.head_dim;
        self.cache.state_spec(&[[1, d], [self.spec.heads, d]], self.out.dtype())
    }

    fn describe(&self) -> String {
        format!(
            "SharedKeyAttention(heads {} of {}, window {})",
            self.spec.heads, self.head_dim, self.spec.window
        )
    }
}
