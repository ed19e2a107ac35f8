//! What the configurations of all families share.

use serde_json::Value;

use super::{AttentionSpec, Map, attn, config_keys};
use crate::{Error, Result};

config_keys! {
    /// Keys that every family understands (a family may lack some, see its key list).
    pub struct BaseConfig {
        /// Entries of the vocabulary.
        Results vocab_size: usize = 32000;
        /// Width of the residual stream.
        Results hidden_size: usize = 2048;
        /// MLP width as a multiple of `hidden_size` (times 2/3, rounded up to 256) where `intermediate_size` is null.
        Results hidden_ratio: Option<f64> = Some(4.0);
        /// MLP width.
        Results intermediate_size: Option<usize> = None;
        /// Number of blocks.
        Results num_hidden_layers: usize = 24;
        /// Activation of the MLP and of the output gate; the gated MLP supports `swish` (also spelt `silu`).
        Results hidden_act: String = "swish".into();
        /// Added to the mean square in norms.
        Results norm_eps: f64 = 1e-6, aliases ["rms_norm_eps", "layer_norm_epsilon"];
        /// Whether the mixer's output norm has a weight (null: it has none).
        Results elementwise_affine: Option<bool> = Some(true);
        /// Use the embedding as output projection.
        Results tie_word_embeddings: bool = false;
        /// Standard deviation of initial weights.
        Results initializer_range: f64 = 0.02;
        /// Add the L2-warp gradient (penalty on the largest logit) to the loss.
        Results use_l2warp: bool = false;
        /// Softmax attention at some layers: null, a dict or a list of dicts with `layers`, `num_heads`, `num_kv_heads`, `qkv_bias`, `window_size`, `rope_theta`.
        Results attn: Value = Value::Null;
        /// Token that begins a text.
        Results bos_token_id: Option<u32> = Some(1);
        /// Token or tokens that end one.
        Results eos_token_id: Value = Value::from(2);
        /// Token that pads batches. Its embedding learns nothing where the token is read (but for mamba2).
        Results pad_token_id: Option<i64> = None;
        /// Which kernels the peer runs; here the number of tokens decides, with equal results.
        Hint attn_mode: String = "chunk".into();
        /// Length the model was meant for; nothing here is limited by it.
        Hint max_position_embeddings: Option<usize> = Some(2048);
        /// Whether the peer keeps a cache when generating.
        Hint use_cache: bool = true;
        /// Fused norms in the peer (in gla and retnet it also decides the name of the output norm's key).
        Hint fuse_norm: bool = true;
        /// Fused MLP activation in the peer.
        Hint fuse_swiglu: bool = true;
        /// Fused cross entropy in the peer.
        Hint fuse_cross_entropy: bool = true;
        /// Fused linear cross entropy in the peer; here it is used whenever logits are not asked for.
        Hint fuse_linear_cross_entropy: bool = false;
        /// Attention residuals over depth: not supported.
        Error attnres_block_size: Option<usize> = None;
    }
}

impl BaseConfig {
    /// Softmax attention layers.
    ///
    /// # Errors
    /// When `attn` is malformed.
    pub fn attention(&self) -> Result<Vec<AttentionSpec>> {
        attn::parse(Some(&self.attn), self.num_hidden_layers)
    }

    /// Attention at this layer, if it is a hybrid one.
    ///
    /// # Errors
    /// When `attn` is malformed.
    pub fn attention_at(&self, layer: usize) -> Result<Option<AttentionSpec>> {
        Ok(self.attention()?.into_iter().find(|s| s.layers.contains(&layer)))
    }

    /// Tokens that end a text.
    pub fn eos_token_ids(&self) -> Vec<u32> {
        match &self.eos_token_id {
            Value::Array(ids) => ids.iter().filter_map(|v| v.as_u64()).map(|v| v as u32).collect(),
            one => one.as_u64().map(|v| v as u32).into_iter().collect(),
        }
    }

    /// Width of the gated MLP.
    pub fn mlp_size(&self) -> usize {
        self.intermediate_size.unwrap_or_else(|| {
            let ratio = self.hidden_ratio.unwrap_or(4.0);
            let raw = (self.hidden_size as f64 * ratio * 2.0 / 3.0) as usize;
            raw.div_ceil(256).saturating_mul(256)
        })
    }

    /// Refuses special tokens that the vocabulary does not have.
    fn check_ids(&self, defaults: &BaseConfig) -> Result<()> {
        // The defaults of BOS and EOS mean nothing in a vocabulary without them.
        let rows = (self.vocab_size as i64).max(3);
        let usual: Vec<i64> =
            defaults.eos_token_ids().into_iter().chain(defaults.bos_token_id).map(i64::from).collect();
        let missing = |id: &i64| *id >= rows && !usual.contains(id);
        let bad = |key: &str, id: i64| {
            let n = self.vocab_size;
            Err(Error::config(key, format!("is {id}, but the vocabulary has {n} tokens (vocab_size)")))
        };
        if let Some(id) = self.bos_token_id.map(i64::from).filter(missing) {
            return bad("bos_token_id", id);
        }
        if let Some(id) = self.eos_token_ids().into_iter().map(i64::from).find(missing) {
            return bad("eos_token_id", id);
        }
        // As in Python, -1 is the last one.
        match self.pad_token_id {
            Some(id) if !(-rows..rows).contains(&id) => bad("pad_token_id", id),
            _ => Ok(()),
        }
    }

    /// Refuses sizes that cannot be; `defaults` are those of the family.
    pub(super) fn check(&self, defaults: &BaseConfig) -> Result<()> {
        const WIDEST: usize = 1 << 31;
        const DEEPEST: usize = 1 << 12;
        for (key, n, limit) in [
            ("vocab_size", self.vocab_size, WIDEST),
            ("hidden_size", self.hidden_size, WIDEST),
            ("num_hidden_layers", self.num_hidden_layers, DEEPEST),
            ("intermediate_size", self.mlp_size(), WIDEST),
        ] {
            if n == 0 || n > limit {
                return Err(Error::config(key, format!("is {n}, expected 1..={limit}")));
            }
        }
        for (key, x) in [("norm_eps", self.norm_eps), ("initializer_range", self.initializer_range)] {
            if !x.is_finite() || x < 0.0 {
                return Err(Error::config(key, format!("is {x}, expected a number >= 0")));
            }
        }
        if self.fuse_cross_entropy && self.fuse_linear_cross_entropy {
            let why = "and fuse_cross_entropy cannot both be true";
            return Err(Error::config("fuse_linear_cross_entropy", why));
        }
        let ids_ok = match &self.eos_token_id {
            Value::Null => true,
            Value::Array(ids) => ids.iter().all(|v| v.as_u64().is_some_and(|n| n < 1 << 32)),
            one => one.as_u64().is_some_and(|n| n < 1 << 32),
        };
        if !ids_ok {
            let why = format!("is {}, expected a token id, a list of them, or null", self.eos_token_id);
            return Err(Error::config("eos_token_id", why));
        }
        self.check_ids(defaults)?;
        for spec in self.attention()? {
            if !self.hidden_size.is_multiple_of(spec.num_heads) {
                let why = format!(
                    "has num_heads {}, which does not divide hidden_size {}",
                    spec.num_heads, self.hidden_size
                );
                return Err(Error::config("attn", why));
            }
        }
        Ok(())
    }

    /// Reads the base keys after a family's own defaults.
    pub(crate) fn with_defaults(defaults: &Map, raw: &Map) -> Result<Self> {
        Self::default().read(defaults)?.read(raw)
    }
}
