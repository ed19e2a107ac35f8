//! The mixer of native sparse attention.

use flashlin_ops::sparse::{NsaArgs, NsaStats, nsa};
use flashlin_tensor::Var;

use super::NsaKeys;
use crate::{
    Result,
    config::BaseConfig,
    init::Init,
    layer::{Layer, LayerCtx},
    modules::{Cache, Heads, Linear, Rotary, linears},
    state::StateSpec,
};

/// Softmax attention over block means, selected blocks and a window, each behind a sigmoid gate.
pub struct NativeSparseAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    gate: Linear,
    out: Linear,
    rotary: Rotary,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    block_count: usize,
    window: Option<usize>,
    cache: Cache,
}

impl NativeSparseAttention {
    /// Builds the layer.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(init: &Init, base: &BaseConfig, own: &NsaKeys) -> Result<Self> {
        let (d, heads) = (base.hidden_size, own.num_heads);
        let kv_heads = own.num_kv_heads.unwrap_or(heads);
        let linear = |key: &str, input, output, bias| Linear::new(&init.sub(key), input, output, bias);
        let (width, kv) = (heads * own.head_dim, kv_heads * own.head_dim);
        Ok(NativeSparseAttention {
            q: linear("q_proj", d, width, own.qkv_bias)?,
            k: linear("k_proj", d, kv, own.qkv_bias)?,
            v: linear("v_proj", d, kv, own.qkv_bias)?,
            gate: linear("g_proj", d, 3 * heads, false)?,
            out: linear("o_proj", width, d, false)?,
            rotary: Rotary::new(own.head_dim, own.rope_theta)?,
            heads,
            kv_heads,
            head_dim: own.head_dim,
            block_size: own.block_size,
            block_count: own.block_counts,
            window: own.window_size.filter(|w| *w > 0),
            cache: Cache::keys_and_values(None),
        })
    }

    /// As [`Layer::forward`], with what the attention looked at.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn forward_with_stats(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<(Var, NsaStats)> {
        let (y, stats) = self.run(x, ctx, true)?;
        Ok((y, stats.unwrap_or_default()))
    }

    fn run(&self, x: &Var, ctx: &mut LayerCtx<'_>, stats: bool) -> Result<(Var, Option<NsaStats>)> {
        let ([q, k, v, gates], []) = linears(x, [&self.q, &self.k, &self.v, &self.gate], [])?;
        let (q, k, v) = (q.heads(self.heads)?, k.heads(self.kv_heads)?, v.heads(self.kv_heads)?);
        let (q, k) = self.rotary.forward(&q, &k, ctx)?;
        let [b, t, h, _] = q.tensor().dims_n::<4>("nsa", "q")?;
        let gates = gates.sigmoid()?.heads(h)?;
        let gate = |i: usize| -> Result<Var> { Ok(gates.narrow(3, i, 1)?.reshape(&[b, t, h])?) };
        let gates = [gate(0)?, gate(1)?, gate(2)?];
        let mut seen = None;
        let o = self.cache.attend(ctx, &q, &[&k, &v], |q, keys| {
            // Queries come packed where gradients flow through what a state continues.
            let gates = [&gates[0], &gates[1], &gates[2]].map(|g| g.reshape(&q.dims()[..3]));
            let [compressed, selected, near] = gates;
            let gates = [compressed?, selected?, near?];
            let args = NsaArgs {
                block_size: self.block_size,
                block_count: self.block_count,
                window: self.window,
                seqs: keys.seqs,
                kv_seqs: keys.kv_seqs,
                kv_lens: keys.kv_lens,
                stats,
                ..NsaArgs::new(q, &keys.parts[0], &keys.parts[1], gates.each_ref())
            };
            let out = nsa(&args)?;
            seen = out.stats;
            Ok(out.o)
        })?;
        Ok((self.out.forward(&o.merge_heads()?)?, seen))
    }
}

impl Layer for NativeSparseAttention {
    fn forward(&self, x: &Var, ctx: &mut LayerCtx<'_>) -> Result<Var> {
        Ok(self.run(x, ctx, false)?.0)
    }

    fn state_spec(&self) -> Vec<StateSpec> {
        let dims = [self.kv_heads, self.head_dim];
        self.cache.state_spec(&[dims, dims], self.out.dtype())
    }

    fn describe(&self) -> String {
        let window = self.window.map_or(String::new(), |w| format!(", window {w}"));
        format!(
            "NativeSparseAttention(heads {} of {}, kv_heads {}, {} blocks of {}{window})",
            self.heads, self.head_dim, self.kv_heads, self.block_count, self.block_size
        )
    }
}
