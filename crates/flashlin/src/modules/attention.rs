//! Softmax attention: the transformer's mixer and the attention layer of hybrids.

use flashlin_ops::{
    PackedSeqs,
    softmax::{AttentionArgs, KvCache, attention},
};
use flashlin_tensor::{DType, Tensor, Var};

use super::{Heads, Linear, RmsNorm, Rotary, linears};
use crate::{
    Error, Result,
    config::AttentionSpec,
    init::Init,
    layer::{Layer, LayerCtx},
    state::{LayerState, StateKind, StateSpec},
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
    norms: Option<(RmsNorm, RmsNorm)>,
    rotary: Rotary,
    options: AttentionOptions,
    head_dim: usize,
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
        let norm = |key: &str| RmsNorm::new(&init.sub(key), head_dim, QK_NORM_EPS, true);
        Ok(Attention {
            q: Linear::new(&init.sub("q_proj"), hidden, hidden, bias)?,
            k: Linear::new(&init.sub("k_proj"), hidden, kv, bias)?,
            v: Linear::new(&init.sub("v_proj"), hidden, kv, bias)?,
            out: Linear::new(&init.sub("o_proj"), hidden, hidden, false)?,
            norms: if options.qk_norm { Some((norm("q_norm")?, norm("k_norm")?)) } else { None },
            rotary: Rotary::new(head_dim, options.rope_theta)?,
            options: *options,
            head_dim,
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

    /// Attention over what the state holds and the new tokens, which the state then holds too.
    fn with_state(
        &self,
        [q, k, v]: [&Var; 3],
        seqs: Option<&PackedSeqs>,
        state: &mut LayerState,
    ) -> Result<Var> {
        let mut cache = take_cache(state)?;
        let tracked = q.is_tracked() || k.is_tracked() || v.is_tracked();
        // While training, new keys and values must stay in the graph; what the state held is a constant.
        let past = if tracked { Some(cache.clone()) } else { None };
        cache.append(k.tensor(), v.tensor(), seqs, self.options.window)?;
        let window = self.options.window;
        let o = match past {
            Some(past) => {
                let new = PackedSeqs::resolve("attention", seqs, k.dim(0), k.dim(1))?;
                let (k, total) = joined(&past.k, &past.lens, k, &new)?;
                let (v, _) = joined(&past.v, &past.lens, v, &new)?;
                let [b, t, h, d] = q.tensor().dims_n::<4>("attention", "q")?;
                let flat = q.reshape(&[1, b * t, h, d])?;
                let args = AttentionArgs {
                    window,
                    seqs: Some(&new),
                    kv_seqs: Some(&total),
                    ..AttentionArgs::new(&flat, &k, &v)
                };
                attention(&args)?.o.reshape(&[b, t, h, d])?
            }
            None => {
                let (k, v) = (Var::constant(cache.k.clone()), Var::constant(cache.v.clone()));
                let args = AttentionArgs {
                    window,
                    seqs,
                    kv_lens: Some(&cache.lens),
                    ..AttentionArgs::new(q, &k, &v)
                };
                attention(&args)?.o
            }
        };
        put_cache(state, cache)?;
        Ok(o)
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
        let seqs = ctx.seqs;
        let o = match ctx.state.as_deref_mut() {
            Some(state) => self.with_state([&q, &k, &v], seqs, state)?,
            None => {
                attention(&AttentionArgs {
                    window: self.options.window,
                    seqs,
                    ..AttentionArgs::new(&q, &k, &v)
                })?
                .o
            }
        };
        self.out.forward(&o.merge_heads()?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dims = vec![0, self.options.kv_heads, self.head_dim];
        let kv = |name| StateSpec {
            name,
            kind: StateKind::KeyValue,
            layout: None,
            dims: dims.clone(),
            dtype: self.out.dtype(),
        };
        let lens =
            StateSpec { name: LENS, kind: StateKind::Counter, layout: None, dims: vec![], dtype: DType::I64 };
        vec![kv(KEYS), kv(VALUES), lens]
    }

    fn describe(&self) -> String {
        let o = &self.options;
        let window = o.window.map_or(String::new(), |w| format!(", window {w}"));
        format!("Attention(heads {} of {}, kv_heads {}{window})", o.heads, self.head_dim, o.kv_heads)
    }
}

const KEYS: &str = "keys";
const VALUES: &str = "values";
const LENS: &str = "kv_len";

/// Takes the cache out of the state, so that it can grow in place.
fn take_cache(state: &mut LayerState) -> Result<KvCache> {
    let (k, v) = (state.take(KEYS)?.into_tensor(), state.take(VALUES)?.into_tensor());
    let lens = state.get(LENS)?.tensor().to_vec::<i64>()?;
    let fits = |&l: &i64| usize::try_from(l).ok().filter(|&l| l <= k.dim(1));
    let lens = lens.iter().map(fits).collect::<Option<Vec<_>>>();
    let lens =
        lens.ok_or_else(|| Error::state(format!("`{LENS}` holds lengths beyond the cache of {}", k.dim(1))))?;
    Ok(KvCache { k, v, lens })
}

fn put_cache(state: &mut LayerState, cache: KvCache) -> Result<()> {
    let lens: Vec<i64> = cache.lens.iter().map(|&l| l as i64).collect();
    let rows = lens.len();
    state.set(KEYS, cache.k.into())?;
    state.set(VALUES, cache.v.into())?;
    state.set(LENS, Tensor::from_vec(lens, &[rows])?.into())
}

/// Each row's cached entries followed by its new ones, packed `[1, total, H, D]`.
fn joined(past: &Tensor, lens: &[usize], new: &Var, seqs: &PackedSeqs) -> Result<(Var, PackedSeqs)> {
    let [_, _, h, d] = past.dims_n::<4>("attention", "cache")?;
    let flat = new.reshape(&[1, seqs.total(), h, d])?;
    let mut parts = Vec::new();
    for (row, (range, &len)) in seqs.ranges().zip(lens).enumerate() {
        parts.push(Var::constant(past.narrow(0, row, 1)?.narrow(1, 0, len)?));
        parts.push(flat.narrow(1, range.start, range.len())?);
    }
    let total: Vec<usize> = seqs.ranges().zip(lens).map(|(r, l)| r.len() + l).collect();
    Ok((Var::cat(&parts.iter().collect::<Vec<_>>(), 1)?, PackedSeqs::from_lens(&total)))
}
