//! The mixer of PaTH attention.

use flashlin_ops::{
    activation::logsigmoid,
    norm::l2_norm,
    path::{PathArgs, PathCache, path_attn},
};
use flashlin_tensor::{DType, Tensor, Var};

use super::PathAttnKeys;
use crate::{
    Error, Result,
    config::BaseConfig,
    init::{Dist, Init},
    layer::{Layer, LayerCtx},
    modules::{Activation, Conv1d, Heads, Linear, LowRank, linears},
    state::{LayerState, StateKind, StateSpec},
};

/// Width of the convolution on directions, and of their bottleneck: constants of the architecture.
const CONV: usize = 3;
const BOTTLENECK: usize = 32;
/// Added under the root when directions are brought to unit length.
const UNIT_EPS: f64 = 1e-6;

const KEYS: &str = "keys";
const VALUES: &str = "values";
const DECAYS: &str = "decays";
const LENS: &str = "kv_len";

enum Directions {
    Full(Linear),
    LowRank(LowRank),
}

/// Softmax attention over scores q_i^T H_i .. H_{j+1} k_j with H = I - beta w w^T.
pub struct PathAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    w: Directions,
    conv: Option<Conv1d>,
    beta: Linear,
    forget: Option<Linear>,
    out: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl PathAttention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &PathAttnKeys) -> Result<Self> {
        let (d, heads) = (base.hidden_size, own.num_heads);
        let kv_heads = own.num_kv_heads.unwrap_or(heads);
        let head_dim = d / heads;
        let kv = kv_heads * head_dim;
        let linear = |key: &str, output, bias| Linear::new(&init.sub(key), d, output, bias);
        let at = init.sub("w_proj");
        let silu = Some(Activation::Silu);
        let conv =
            || Conv1d::new(&init.sub("w_conv1d"), kv, CONV, false, Dist::Normal(init.std()), silu, "conv_w");
        Ok(PathAttention {
            q: linear("q_proj", d, false)?,
            k: linear("k_proj", kv, false)?,
            v: linear("v_proj", kv, false)?,
            w: match own.use_low_rank_w {
                true => Directions::LowRank(LowRank::new(&at, [d, BOTTLENECK, kv], false)?),
                false => Directions::Full(Linear::new(&at, d, kv, false)?),
            },
            conv: own.use_w_shortconv.then(conv).transpose()?,
            beta: linear("bt_proj", kv_heads, true)?,
            forget: own.use_forget_gate.then(|| linear("g_proj", heads, true)).transpose()?,
            out: linear("o_proj", d, false)?,
            heads,
            kv_heads,
            head_dim,
        })
    }

    fn cache(&self, state: &mut LayerState) -> Result<PathCache> {
        let k = state.take(KEYS)?.into_tensor();
        let lens = state.get(LENS)?.tensor().to_vec::<i64>()?;
        let fits = |&l: &i64| usize::try_from(l).ok().filter(|&l| l <= k.dim(1));
        let lens = lens.iter().map(fits).collect::<Option<Vec<_>>>();
        let lens = lens.ok_or_else(|| Error::state(format!("`{LENS}` holds lengths beyond the cache")))?;
        let decay = match self.forget {
            Some(_) => state.take(DECAYS)?.into_tensor(),
            None => Tensor::zeros(&[k.dim(0), k.dim(1), 0], k.dtype(), &k.device())?,
        };
        Ok(PathCache { v: state.take(VALUES)?.into_tensor(), k, decay, lens })
    }

    fn keep(&self, state: &mut LayerState, cache: PathCache) -> Result<()> {
        let lens: Vec<i64> = cache.lens.iter().map(|&l| l as i64).collect();
        let rows = lens.len();
        state.set(KEYS, cache.k.into())?;
        state.set(VALUES, cache.v.into())?;
        if self.forget.is_some() {
            state.set(DECAYS, cache.decay.into())?;
        }
        state.set(LENS, Tensor::from_vec(lens, &[rows])?.into())
    }
}

impl Layer for PathAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let down = match &self.w {
            Directions::Full(w) => w,
            Directions::LowRank(w) => w.down(),
        };
        let maps = [&self.q, &self.k, &self.v, down, &self.beta];
        let ([q, k, v, w, beta], [g]) = linears(x, maps, [self.forget.as_ref()])?;
        let w = match &self.w {
            Directions::Full(_) => w,
            Directions::LowRank(low) => low.up().forward(&w)?,
        };
        let w = match &self.conv {
            Some(conv) => conv.forward(&w, ctx)?,
            None => w,
        };
        let precise = |x: &Var| x.to_dtype(x.dtype().accumulator());
        let w = l2_norm(&precise(&w.heads(self.kv_heads)?)?, UNIT_EPS)?;
        let beta = precise(&beta)?.sigmoid()?.affine(2.0, 0.0)?;
        let g = g.map(|g| -> Result<Var> { Ok(logsigmoid(&precise(&g)?, 1.0)?) }).transpose()?;
        let (q, k, v) = (q.heads(self.heads)?, k.heads(self.kv_heads)?, v.heads(self.kv_heads)?);
        let args = PathArgs { g: g.as_ref(), seqs: ctx.seqs, ..PathArgs::new(&q, &k, &v, &w, &beta) };
        let o = match ctx.state.as_deref_mut() {
            None => path_attn(&args)?.o,
            Some(state) => {
                let past = self.cache(state)?;
                let out = path_attn(&PathArgs { past: Some(&past), output_cache: true, ..args })?;
                let cache = out.cache.ok_or_else(|| Error::state("the attention gave no cache"))?;
                self.keep(state, cache)?;
                out.o
            }
        };
        self.out.forward(&o.merge_heads()?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dtype = self.out.dtype();
        let grows = |name, dims: &[usize], dtype| StateSpec {
            name,
            kind: StateKind::KeyValue,
            layout: None,
            dims: [&[0], dims].concat(),
            dtype,
        };
        let kv = [self.kv_heads, self.head_dim];
        let mut all = vec![grows(KEYS, &kv, dtype.accumulator()), grows(VALUES, &kv, dtype)];
        if self.forget.is_some() {
            all.push(grows(DECAYS, &[self.heads], dtype.accumulator()));
        }
        all.push(StateSpec {
            name: LENS,
            kind: StateKind::Counter,
            layout: None,
            dims: vec![],
            dtype: DType::I64,
        });
        all.extend(self.conv.as_ref().map(|c| c.state_spec(dtype)));
        all
    }

    fn describe(&self) -> String {
        let gate = if self.forget.is_some() { ", forget gates" } else { "" };
        format!("PathAttention(heads {} of {}, kv_heads {}{gate})", self.heads, self.head_dim, self.kv_heads)
    }
}
