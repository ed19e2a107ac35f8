//! Softmax attention over what a state keeps of earlier tokens: keys and values, or whatever a layer makes them of.
//!
//! Policy: without a state, or where gradients flow, the layer sees whole sequences; in decoding it sees the padded rows of the cache as they lie,
//! so that nothing of the past is copied.

use flashlin_ops::{
    PackedSeqs,
    softmax::{AttentionArgs, append_tokens},
};
use flashlin_tensor::{DType, Tensor, Var};

use crate::{
    Error, Result,
    layer::LayerCtx,
    state::{LayerState, StateKind, StateSpec},
};

const LENS: &str = "kv_len";

/// What a layer keeps of each token: named tensors `[N, cap, H, D]`, and how many entries count.
pub struct Cache {
    names: &'static [&'static str],
    window: Option<usize>,
}

/// What queries meet.
pub struct Keys<'a> {
    /// The kept tensors with the new tokens: `[B, T, H, D]`, packed `[1, T, H, D]`, or the cache's padded rows `[N, cap, H, D]`.
    pub parts: Vec<Var>,
    /// Boundaries of the queries.
    pub seqs: Option<&'a PackedSeqs>,
    /// Boundaries of packed keys, where they are not those of the queries.
    pub kv_seqs: Option<&'a PackedSeqs>,
    /// Entries that count in each padded row.
    pub kv_lens: Option<&'a [usize]>,
}

impl<'a> Keys<'a> {
    /// Arguments of attention over keys and values made of the parts.
    pub fn args<'v>(&self, q: &'v Var, k: &'v Var, v: &'v Var) -> AttentionArgs<'v>
    where
        'a: 'v,
    {
        let Keys { seqs, kv_seqs, kv_lens, .. } = *self;
        AttentionArgs { seqs, kv_seqs, kv_lens, ..AttentionArgs::new(q, k, v) }
    }
}

impl Cache {
    /// A cache of these tensors; `window` is that of the attention.
    pub fn new(names: &'static [&'static str], window: Option<usize>) -> Self {
        Cache { names, window }
    }

    /// The usual one.
    pub fn keys_and_values(window: Option<usize>) -> Self {
        Cache::new(&["keys", "values"], window)
    }

    /// Its state: for each tensor its heads and their width.
    pub fn state_spec(&self, dims: &[[usize; 2]], dtype: DType) -> Vec<StateSpec> {
        let one = |(&name, &[h, d]): (&&'static str, &[usize; 2])| StateSpec {
            name,
            kind: StateKind::KeyValue,
            layout: None,
            dims: vec![0, h, d],
            dtype,
        };
        let lens =
            StateSpec { name: LENS, kind: StateKind::Counter, layout: None, dims: vec![], dtype: DType::I64 };
        self.names.iter().zip(dims).map(one).chain([lens]).collect()
    }

    /// Runs `attention` on queries `[B, T, HQ, D]` and what the state holds followed by the new tokens' `parts`, which the state then holds too.
    ///
    /// # Errors
    /// Those of `attention`, and a state that does not fit.
    pub fn attend(
        &self,
        ctx: &mut LayerCtx<'_>,
        q: &Var,
        parts: &[&Var],
        attention: impl FnOnce(&Var, &Keys<'_>) -> Result<Var>,
    ) -> Result<Var> {
        let seqs = ctx.seqs;
        let plain = |parts| Keys { parts, seqs, kv_seqs: None, kv_lens: None };
        let Some(state) = ctx.state.as_deref_mut() else {
            return attention(q, &plain(parts.iter().map(|&p| p.clone()).collect()));
        };
        let tracked =
            flashlin_tensor::grad_enabled() && (q.is_tracked() || parts.iter().any(|p| p.is_tracked()));
        let (mut rows, mut lens) = self.take(state)?;
        // While training, what is new must stay in the graph; what the state held is a constant.
        let past = if tracked { Some((rows.clone(), lens.clone())) } else { None };
        let new: Vec<&Tensor> = parts.iter().map(|p| p.tensor()).collect();
        append_tokens(&mut rows.iter_mut().collect::<Vec<_>>(), &mut lens, &new, seqs, self.window)?;
        let o = match past {
            Some((past, held)) => {
                let [b, t, h, d] = q.tensor().dims_n::<4>("attention", "q")?;
                let new = PackedSeqs::resolve("attention", seqs, b, t)?;
                let total: Vec<usize> = new.ranges().zip(&held).map(|(r, l)| r.len() + l).collect();
                let total = PackedSeqs::from_lens(&total);
                let all = past.iter().zip(parts).map(|(past, part)| joined(past, &held, part, &new));
                let parts = all.collect::<Result<Vec<_>>>()?;
                let keys = Keys { parts, seqs: Some(&new), kv_seqs: Some(&total), kv_lens: None };
                let o = attention(&q.reshape(&[1, b * t, h, d])?, &keys)?;
                let [.., h, d] = o.tensor().dims_n::<4>("attention", "o")?;
                o.reshape(&[b, t, h, d])?
            }
            None => {
                let parts = rows.iter().map(|r| Var::constant(r.clone())).collect();
                attention(q, &Keys { kv_lens: Some(&lens), ..plain(parts) })?
            }
        };
        self.put(state, rows, &lens)?;
        Ok(o)
    }

    /// Takes the cache out of the state, so that it can grow in place.
    fn take(&self, state: &mut LayerState) -> Result<(Vec<Tensor>, Vec<usize>)> {
        let rows: Vec<Tensor> =
            self.names.iter().map(|name| Ok(state.take(name)?.into_tensor())).collect::<Result<_>>()?;
        let cap = rows.first().map_or(0, |r| r.dim(1));
        let lens = state.get(LENS)?.tensor().to_vec::<i64>()?;
        let fits = |&l: &i64| usize::try_from(l).ok().filter(|&l| l <= cap);
        let lens = lens.iter().map(fits).collect::<Option<Vec<_>>>();
        let lens = lens.filter(|_| rows.iter().all(|r| r.dim(1) == cap));
        let lens =
            lens.ok_or_else(|| Error::state(format!("`{LENS}` holds lengths beyond the cache of {cap}")))?;
        Ok((rows, lens))
    }

    fn put(&self, state: &mut LayerState, rows: Vec<Tensor>, lens: &[usize]) -> Result<()> {
        for (name, row) in self.names.iter().zip(rows) {
            state.set(name, row.into())?;
        }
        let lens: Vec<i64> = lens.iter().map(|&l| l as i64).collect();
        let rows = lens.len();
        state.set(LENS, Tensor::from_vec(lens, &[rows])?.into())
    }
}

/// Each row's cached entries followed by its new ones, packed `[1, total, H, D]`.
fn joined(past: &Tensor, lens: &[usize], new: &Var, seqs: &PackedSeqs) -> Result<Var> {
    let [_, _, h, d] = past.dims_n::<4>("attention", "cache")?;
    let flat = new.reshape(&[1, seqs.total(), h, d])?;
    let mut parts = Vec::new();
    for (row, (range, &len)) in seqs.ranges().zip(lens).enumerate() {
        parts.push(Var::constant(past.narrow(0, row, 1)?.narrow(1, 0, len)?));
        parts.push(flat.narrow(1, range.start, range.len())?);
    }
    Ok(Var::cat(&parts.iter().collect::<Vec<_>>(), 1)?)
}
