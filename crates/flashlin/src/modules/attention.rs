//! Softmax attention: the transformer's mixer and the attention layer of hybrids.

use flashlin_ops::softmax::{AttentionArgs, attention};
use flashlin_tensor::Var;

use super::{Cache, Heads, Linear, Norm, Rotary, linears};
use crate::{
    Error, Result,
    config::AttentionSpec,
    init::Init,
    layer::{Layer, LayerCtx},
    state::StateSpec,
};

/// Epsilon of the norms on q and k, a constant of the architecture.
const QK_NORM_EPS: f64 = 1e-5;

/// Sizes and options of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// RMS norm on each head of q and k.
    pub qk_norm: bool,
    /// Tokens a query sees, itself included; None for all before it.
    pub window: Option<usize>,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
}

/// Causal softmax attention with rotary embedding and grouped heads.
pub struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norms: Option<(Norm, Norm)>,
    rotary: Rotary,
    options: AttentionOptions,
    head_dim: usize,
    cache: Cache,
}

impl Attention {
    /// Builds the layer; a head is `hidden / heads` wide.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, hidden: usize, options: &AttentionOptions) -> Result<Self> {
        if options.heads == 0 || !hidden.is_multiple_of(options.heads) || (hidden / options.heads) % 2 == 1 {
            let why =
                format!("is {}: hidden_size {hidden} is not that many heads of an even width", options.heads);
            return Err(Error::config("num_heads", why));
        }
        let head_dim = hidden / options.heads;
        let kv = options.kv_heads * head_dim;
        let bias = options.qkv_bias;
        let norm = |key: &str| Norm::rms(&init.sub(key), head_dim, QK_NORM_EPS, true);
        Ok(Attention {
            q: Linear::new(&init.sub("q_proj"), hidden, hidden, bias)?,
            k: Linear::new(&init.sub("k_proj"), hidden, kv, bias)?,
            v: Linear::new(&init.sub("v_proj"), hidden, kv, bias)?,
            out: Linear::new(&init.sub("o_proj"), hidden, hidden, false)?,
            norms: if options.qk_norm { Some((norm("q_norm")?, norm("k_norm")?)) } else { None },
            rotary: Rotary::new(head_dim, options.rope_theta)?,
            options: *options,
            head_dim,
            cache: Cache::keys_and_values(options.window),
        })
    }

    /// Builds the attention layer of a hybrid model.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn from_spec(init: &Init, hidden: usize, spec: &AttentionSpec) -> Result<Self> {
        let options = AttentionOptions {
            heads: spec.num_heads,
            kv_heads: spec.num_kv_heads,
            qkv_bias: spec.qkv_bias,
            qk_norm: false,
            window: spec.window_size,
            rope_theta: spec.rope_theta,
        };
        Self::new(init, hidden, &options)
    }
}

impl Layer for Attention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let ([q, k, v], []) = linears(x, [&self.q, &self.k, &self.v], [])?;
        let mut q = q.heads(self.options.heads)?;
        let mut k = k.heads(self.options.kv_heads)?;
        let v = v.heads(self.options.kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let (q, k) = self.rotary.forward(&q, &k, ctx)?;
        let o = self.cache.attend(ctx, &q, &[&k, &v], |q, keys| {
            let args =
                AttentionArgs { window: self.options.window, ..keys.args(q, &keys.parts[0], &keys.parts[1]) };
            Ok(attention(&args)?.o)
        })?;
        self.out.forward(&o.merge_heads()?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dims = [self.options.kv_heads, self.head_dim];
        self.cache.state_spec(&[dims, dims], self.out.dtype())
    }

    fn describe(&self) -> String {
        let o = &self.options;
        let window = o.window.map_or(String::new(), |w| format!(", window {w}"));
        format!("Attention(heads {} of {}, kv_heads {}{window})", o.heads, self.head_dim, o.kv_heads)
    }
}
