//! Config keys of RWKV-7.

use serde_json::Value;

use crate::{
    Error, Result,
    config::{BaseConfig, config_keys},
};

config_keys! {
    /// Keys of RWKV-7 beside the shared ones.
    pub struct Rwkv7Keys {
        /// Width of a key head. Null: `hidden_size / num_heads`.
        Results head_dim: Option<usize> = Some(64);
        /// Heads; `hidden_size / head_dim`, checked where both are given.
        Results num_heads: Option<usize> = None;
        /// Bottleneck of the decay. Null: from the width.
        Results decay_low_rank_dim: Option<usize> = Some(64);
        /// Bottleneck of the output gate. Null: from the width.
        Results gate_low_rank_dim: Option<usize> = Some(128);
        /// Bottleneck of the in-context learning rate. Null: from the width.
        Results a_low_rank_dim: Option<usize> = Some(64);
        /// Bottleneck of the value residual. Null: from the width.
        Results v_low_rank_dim: Option<usize> = Some(16);
        /// Width of all values: null for `hidden_size`, a number, or a list with one number a layer, all equal.
        Results value_dim: Value = Value::Null;
        /// Normalise the embeddings before the first block.
        Results norm_first: bool = true;
        /// Biases in the layer norms.
        Results norm_bias: bool = true;
    }
}
crate::family::impl_keys!(Rwkv7Keys);

/// Sizes that follow from the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub heads: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub decay_rank: usize,
    pub gate_rank: usize,
    pub a_rank: usize,
    pub v_rank: usize,
}

impl Rwkv7Keys {
    pub(super) fn sizes(&self, base: &BaseConfig) -> Result<Sizes> {
        let d = base.hidden_size;
        let given = |n: Option<usize>| n.filter(|&n| n > 0 && d.is_multiple_of(n));
        let (heads, head_dim) = match (self.head_dim, self.num_heads) {
            (None, heads) => match given(heads) {
                Some(h) => (h, d / h),
                None => {
                    return Err(Error::config(
                        "num_heads",
                        format!("does not divide hidden_size {d}; without head_dim it must"),
                    ));
                }
            },
            (Some(k), heads) => match (given(Some(k)), heads) {
                (None, _) => {
                    return Err(Error::config(
                        "head_dim",
                        format!("is {k}, which does not divide hidden_size {d}"),
                    ));
                }
                (Some(k), Some(h)) if h != d / k => {
                    let why = format!("is {h}, but hidden_size / head_dim = {}", d / k);
                    return Err(Error::config("num_heads", why));
                }
                (Some(k), _) => (d / k, k),
            },
        };
        // The peer's rule: multiples of 32, wider for wide heads.
        let auto = |factor: f64| ((factor * (d as f64).sqrt() / 32.0).round() as usize * 32).max(32);
        let wide = head_dim as f64 / 64.0;
        Ok(Sizes {
            heads,
            head_dim,
            value_dim: self.values(base, heads)?,
            decay_rank: rank("decay_low_rank_dim", self.decay_low_rank_dim, auto(2.5 * wide))?,
            gate_rank: rank("gate_low_rank_dim", self.gate_low_rank_dim, auto(5.0))?,
            a_rank: rank("a_low_rank_dim", self.a_low_rank_dim, auto(2.5 * wide))?,
            v_rank: rank("v_low_rank_dim", self.v_low_rank_dim, auto(1.7 * wide))?,
        })
    }

    fn values(&self, base: &BaseConfig, heads: usize) -> Result<usize> {
        let d = base.hidden_size;
        let bad = |why: String| Err(Error::config("value_dim", why));
        let one =
            |v: &Value| v.as_u64().map(|n| n as usize).filter(|n| *n > 0 && n % d == 0 && *n <= 1 << 31);
        let width = match &self.value_dim {
            Value::Null => d,
            Value::Array(list) => {
                if list.len() != base.num_hidden_layers {
                    return bad(format!("has {} entries for {} layers", list.len(), base.num_hidden_layers));
                }
                let widths: Vec<_> = list.iter().map(one).collect();
                match widths.first() {
                    Some(Some(first)) if widths.iter().all(|w| *w == Some(*first)) => *first,
                    _ => {
                        return bad(format!(
                            "is {}: every layer adds to its values those of the first, so all must be one multiple of hidden_size {d}",
                            self.value_dim
                        ));
                    }
                }
            }
            v => match one(v) {
                Some(n) => n,
                None => return bad(format!("is {v}, expected a multiple of hidden_size {d}")),
            },
        };
        if width % heads != 0 {
            return bad(format!("gives {width} channels, which {heads} heads do not divide"));
        }
        Ok(width)
    }
}

fn rank(key: &'static str, given: Option<usize>, auto: usize) -> Result<usize> {
    match given.unwrap_or(auto) {
        n if (1..=1 << 20).contains(&n) => Ok(n),
        n => Err(Error::config(key, format!("is {n}, expected a positive width"))),
    }
}
