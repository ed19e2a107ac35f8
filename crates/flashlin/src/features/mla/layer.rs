//! The mixer of multi-head latent attention.

use flashlin_ops::{
    PackedSeqs,
    maps::softmax,
    softmax::{AttentionArgs, attention},
};
use flashlin_tensor::{Tensor, Var};

use super::{MlaKeys, softmax_scale};
use crate::{
    Result,
    config::BaseConfig,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{Cache, Heads, Keys, Linear, Norm, Rotary, linears},
    state::StateSpec,
};

/// Epsilon of the norms of the latents, a constant of the architecture.
const LATENT_EPS: f64 = 1e-5;

/// A projection through a normalised bottleneck; keys `0`, `1` and `2` as in a Python `Sequential`.
struct Latent {
    down: Linear,
    norm: Norm,
    up: Linear,
}

impl Latent {
    fn new(init: &Init, [from, rank, to]: [usize; 3]) -> Result<Self> {
        Ok(Latent {
            down: Linear::new(&init.sub(0), from, rank, false)?,
            norm: Norm::rms(&init.sub(1), rank, LATENT_EPS, true)?,
            up: Linear::new(&init.sub(2), rank, to, false)?,
        })
    }
}

enum Query {
    Full(Linear),
    Latent(Latent),
}

/// Softmax attention whose keys and values are made of one small latent a token, beside a rotary key that all heads share. The state holds these
/// two alone.
pub struct LatentAttention {
    q: Query,
    kv: Latent,
    k_rope: Linear,
    out: Linear,
    rotary: Rotary,
    cache: Cache,
    window: Option<usize>,
    scale: f64,
    heads: usize,
    rank: usize,
    /// Channels of q and k without and with rotary embedding, and of v.
    dims: [usize; 3],
}

impl LatentAttention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &MlaKeys) -> Result<Self> {
        let (d, h, rank) = (base.hidden_size, own.num_heads, own.kv_lora_rank);
        let dims @ [nope, rope, v] = [own.qk_nope_head_dim, own.qk_rope_head_dim, own.v_head_dim];
        let at = init.sub("q_proj");
        Ok(LatentAttention {
            q: match own.q_lora_rank {
                Some(rank) => Query::Latent(Latent::new(&at, [d, rank, h * (nope + rope)])?),
                None => Query::Full(Linear::new(&at, d, h * (nope + rope), false)?),
            },
            kv: Latent::new(&init.sub("kv_proj"), [d, rank, h * (nope + v)])?,
            k_rope: Linear::new(&init.sub("k_rope"), d, rope, false)?,
            out: Linear::new(&init.sub("o_proj"), h * v, d, false)?,
            rotary: Rotary::new(rope, own.rope_theta)?,
            cache: Cache::new(&["latents", "rotary_keys"], own.window_size),
            window: own.window_size,
            scale: softmax_scale(own)?,
            heads: h,
            rank,
            dims,
        })
    }

    /// Attention with keys and values written out for every head.
    fn written_out(&self, q: &Var, keys: &Keys<'_>) -> Result<Var> {
        let [nope, rope, v] = self.dims;
        let (latents, k_rope) = (&keys.parts[0], &keys.parts[1]);
        let [b, t, _, _] = latents.tensor().dims_n::<4>("mla", "latents")?;
        let kv = self.kv.up.forward(&latents.reshape(&[b, t, self.rank])?)?.heads(self.heads)?;
        let kv = kv.split(3, &[nope, v])?;
        let k_rope = k_rope.expand(&[b, t, self.heads, rope])?;
        let k = Var::cat(&[&kv[0], &k_rope], 3)?;
        let args = AttentionArgs { window: self.window, scale: Some(self.scale), ..keys.args(q, &k, &kv[1]) };
        Ok(attention(&args)?.o)
    }

    /// One query a row against the cache's latents as they lie: the map from latents to keys is applied to the query, and that to values to the sum.
    fn absorbed(&self, q: &Var, keys: &Keys<'_>, lens: &[usize]) -> Result<Var> {
        let [nope, rope, v] = self.dims;
        let (n, h, r) = (lens.len(), self.heads, self.rank);
        let (latents, k_rope) = (&keys.parts[0], &keys.parts[1]);
        let cap = latents.dim(1);
        let (wide, dtype) = (q.dtype().accumulator(), q.dtype());
        let up = self.kv.up.weight().var().reshape(&[h, nope + v, r])?.split(1, &[nope, v])?;
        let q = q.reshape(&[n, h, nope + rope])?.split(2, &[nope, rope])?;
        // [H, N, nope] [H, nope, r]
        let q_latent = q[0].transpose(0, 1)?.matmul(&up[0])?.transpose(0, 1)?;
        let rows = |x: &Var, width: usize| x.reshape(&[n, cap, width]);
        let (latents, k_rope) = (rows(latents, r)?, rows(k_rope, rope)?);
        let scores =
            q_latent.matmul(&latents.transpose(1, 2)?)?.add(&q[1].matmul(&k_rope.transpose(1, 2)?)?)?;
        let hidden = self.hidden(lens, cap, &scores)?;
        let p = softmax(&scores.to_dtype(wide)?.affine(self.scale, 0.0)?.add(&hidden.to_dtype(wide)?)?)?;
        let sums = p.to_dtype(dtype)?.matmul(&latents)?;
        let o = sums.transpose(0, 1)?.matmul(&up[1].transpose(1, 2)?)?.transpose(0, 1)?;
        Ok(o.reshape(&[n, 1, h, v])?)
    }

    /// Minus infinity at the entries of each row that its query does not see, `[N, 1, cap]`.
    fn hidden(&self, lens: &[usize], cap: usize, like: &Var) -> Result<Var> {
        let from = |len: usize| self.window.map_or(0, |w| len.saturating_sub(w));
        let one = |len: usize| {
            let seen = from(len)..len;
            (0..cap).map(move |t| if seen.contains(&t) { 0f32 } else { f32::NEG_INFINITY })
        };
        let mask = Tensor::from_vec(lens.iter().flat_map(|&l| one(l)).collect(), &[lens.len(), 1, cap])?;
        Ok(Var::constant(mask.to_dtype(like.dtype().accumulator())?.to_device(&like.device())?))
    }
}

/// True where every row has exactly one query.
fn single(q: &Var, seqs: Option<&PackedSeqs>, rows: usize) -> bool {
    match seqs {
        None => q.dim(1) == 1 && q.dim(0) == rows && rows > 0,
        Some(s) => rows > 0 && s.ranges().all(|r| r.len() == 1),
    }
}

impl Layer for LatentAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        let [nope, rope, v] = self.dims;
        let first = match &self.q {
            Query::Full(q) => q,
            Query::Latent(q) => &q.down,
        };
        let ([q, c, k_rope], []) = linears(x, [first, &self.kv.down, &self.k_rope], [])?;
        let q = match &self.q {
            Query::Full(_) => q,
            Query::Latent(latent) => latent.up.forward(&latent.norm.forward(&q)?)?,
        };
        let q = q.heads(self.heads)?.split(3, &[nope, rope])?;
        let c = self.kv.norm.forward(&c)?.heads(1)?;
        let (q_rope, k_rope) = self.rotary.forward(&q[1], &k_rope.heads(1)?, ctx)?;
        let q = Var::cat(&[&q[0], &q_rope], 3)?;
        let o = self.cache.attend(ctx, &q, &[&c, &k_rope], |q, keys| match keys.kv_lens {
            Some(lens) if single(q, keys.seqs, lens.len()) => self.absorbed(q, keys, lens),
            _ => self.written_out(q, keys),
        })?;
        let [b, t, _] = x.tensor().dims_n::<3>("mla", "x")?;
        self.out.forward(&o.reshape(&[b, t, self.heads * v])?)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        self.cache.state_spec(&[[1, self.rank], [1, self.dims[1]]], self.out.dtype())
    }

    fn describe(&self) -> String {
        let [nope, rope, v] = self.dims;
        let window = self.window.map_or(String::new(), |w| format!(", window {w}"));
        format!(
            "LatentAttention(heads {} of {nope} + {rope}, v {v}, latent {}{window})",
            self.heads, self.rank
        )
    }
}
