//! Which queries meet which keys.

use std::ops::Range;

use flashlin_tensor::{Error, Result};

use super::{AttentionArgs, OP, unsupported};
use crate::PackedSeqs;

/// Queries and keys of a block.
pub(super) const BLOCK: usize = 64;

/// One sequence: where its queries and keys begin in the flattened `[B * T]` tokens, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub q0: usize,
    pub queries: usize,
    pub k0: usize,
    pub keys: usize,
}

impl Span {
    /// Place of query `i` among the keys, or None before the first.
    pub fn place(&self, i: usize) -> Option<usize> {
        (i + self.keys).checked_sub(self.queries)
    }
}

/// One call without its data.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub spans: Vec<Span>,
    pub q_heads: usize,
    pub heads: usize,
    pub k_dim: usize,
    pub v_dim: usize,
    pub q_rows: usize,
    pub key_rows: usize,
    pub scale: f64,
    pub causal: bool,
    pub window: Option<usize>,
}

impl Plan {
    pub fn new(args: &AttentionArgs) -> Result<Self> {
        let [b, tq, q_heads, k_dim] = args.q.tensor().dims_n::<4>(OP, "q")?;
        let [kb, tk, heads, kd] = args.k.tensor().dims_n::<4>(OP, "k")?;
        let [.., v_dim] = args.v.tensor().dims_n::<4>(OP, "v")?;
        if kd != k_dim || heads == 0 || !q_heads.is_multiple_of(heads) {
            let expected = format!("[B, Tk, H, {k_dim}] with H a divisor of {q_heads}");
            return Err(Error::shape(OP, "k", args.k.dims(), expected));
        }
        if args.v.dims()[..3] != [kb, tk, heads] {
            return Err(Error::shape(OP, "v", args.v.dims(), format!("[{kb}, {tk}, {heads}, V]")));
        }
        if !(1..=256).contains(&k_dim) || !(1..=256).contains(&v_dim) {
            return Err(unsupported(format!("head sizes K = {k_dim}, V = {v_dim}"), "K and V in 1..=256"));
        }
        if args.window.is_some() && !args.causal {
            return Err(unsupported("a window without causal", "causal with a window"));
        }
        if args.window == Some(0) {
            return Err(Error::invalid(OP, "window", "is 0, expected at least 1 (the token itself)"));
        }
        let scale = args.scale.unwrap_or_else(|| 1.0 / (k_dim as f64).sqrt());
        if !scale.is_finite() {
            return Err(Error::invalid(OP, "scale", format!("is {scale}, expected a finite number")));
        }
        let queries = PackedSeqs::resolve(OP, args.seqs, b, tq)?;
        let keys = key_ranges(args, kb, tk)?;
        if keys.len() != queries.len() {
            let why = format!("describe {} sequences, but the queries {}", keys.len(), queries.len());
            return Err(Error::invalid(OP, "keys", why));
        }
        let span = |(q, k): (Range<usize>, Range<usize>)| Span {
            q0: q.start,
            queries: q.len(),
            k0: k.start,
            keys: k.len(),
        };
        Ok(Plan {
            spans: queries.ranges().zip(keys).map(span).collect(),
            q_heads,
            heads,
            k_dim,
            v_dim,
            q_rows: b * tq,
            key_rows: kb * tk,
            scale,
            causal: args.causal,
            window: args.window,
        })
    }

    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.q_heads / self.heads
    }

    /// Keys that at least one of the queries `from..to` of a sequence sees.
    pub fn visible(&self, s: &Span, from: usize, to: usize) -> Range<usize> {
        if to <= from {
            return 0..0;
        }
        if !self.causal {
            return 0..s.keys;
        }
        let end = (to + s.keys).saturating_sub(s.queries).min(s.keys);
        let after_first = (from + s.keys + 1).saturating_sub(s.queries);
        let start = self.window.map_or(0, |w| after_first.saturating_sub(w)).min(end);
        start..end
    }

    /// True when each of the queries `from..to` sees all of `keys`.
    pub fn all_visible(&self, s: &Span, from: usize, to: usize, keys: &Range<usize>) -> bool {
        let (first, last) = (self.visible(s, from, from + 1), self.visible(s, to - 1, to));
        first.end >= keys.end && last.start <= keys.start
    }
}

fn key_ranges(args: &AttentionArgs, batch: usize, len: usize) -> Result<Vec<Range<usize>>> {
    if let Some(lens) = args.kv_lens {
        if args.kv_seqs.is_some() {
            return Err(unsupported("kv_lens together with kv_seqs", "one of them"));
        }
        if lens.len() != batch {
            let why = format!("has {} entries, expected one for each of {batch} cache rows", lens.len());
            return Err(Error::invalid(OP, "kv_lens", why));
        }
        if let Some(n) = lens.iter().position(|&n| n > len) {
            let why = format!("says {} keys in row {n}, but the cache holds {len}", lens[n]);
            return Err(Error::invalid(OP, "kv_lens", why));
        }
        return Ok(lens.iter().enumerate().map(|(n, &l)| n * len..n * len + l).collect());
    }
    let seqs = PackedSeqs::resolve(OP, args.kv_seqs.or(args.seqs), batch, len)?;
    Ok(seqs.ranges().collect())
}

/// Blocks of at most [`BLOCK`] of `n` things.
pub(super) fn blocks(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(BLOCK).map(move |i| i..n.min(i + BLOCK))
}
