//! Both recurrent families as compositions of tensor operations: the general path of devices that have no kernel for a call.
//!
//! Policy: it serves every option of the families in the inputs' accumulator type, on any device, with gradients from the graph;
//! it is exact before it is fast. What kernels of a device cover does not come here. Everything is done in chunks of
//! [`CHUNK`] tokens; decays inside a chunk are exponentials of sums over just the tokens between two (never differences of
//! cumulated gates), so that every factor is at most 1 and strong gates lose nothing. Time grows linearly with T, memory too: with a decay a
//! channel it takes [`CHUNK`] times the size of k.

mod chunks;
mod decays;
mod solve;

use chunks::Chunks;
pub(crate) use decays::{Decays, Reads, mask};
use flashlin_tensor::{Result, Tensor, Var};
pub(crate) use solve::inverse;

use crate::PackedSeqs;

#[cfg(test)]
mod tests;

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether calls on the CPU of this thread take this path: in its tests.
pub(crate) fn forced() -> bool {
    #[cfg(test)]
    return FORCED.get();
    #[cfg(not(test))]
    false
}

/// Runs `f` with calls of this thread on the path of devices without kernels.
#[cfg(test)]
pub(crate) fn force<T>(f: impl FnOnce() -> T) -> T {
    FORCED.set(true);
    let out = f();
    FORCED.set(false);
    out
}

/// Tokens of a chunk.
const CHUNK: usize = 16;

/// `S <- a S b; u = beta (v - S^T p) or v; S <- S + k u^T; o = q^T S`; all of one accumulator dtype, heads of q, k and
/// p repeated to the HV of v, and the scale in q.
pub(crate) struct Composed<'a> {
    /// Queries, scaled, `[B, T, HV, K]`.
    pub q: Var,
    /// Keys `[B, T, HV, K]`.
    pub k: Var,
    /// Values `[B, T, HV, V]`.
    pub v: Var,
    /// Log-decay of the state's rows, `[B, T, HV, 1]` or `[B, T, HV, K]`.
    pub gate: Option<Var>,
    /// Log-decay of the state's columns `[B, T, HV, V]`.
    pub value_gate: Option<Var>,
    /// u `[HV, K]`: the output reads the state before the token's decay, and the token itself through u.
    pub bonus: Option<Var>,
    /// Absent in the decay family.
    pub erase: Option<Erase>,
    /// `[N, HV, K, V]`.
    pub initial: Option<Var>,
    /// Of the flattened `B T` tokens.
    pub seqs: &'a PackedSeqs,
}

/// How the delta family erases.
pub(crate) struct Erase {
    /// p `[B, T, HV, K]`.
    pub key: Var,
    /// p reads the state before the token's decay.
    pub before: bool,
    /// `[B, T, HV, 1]` or `[B, T, HV, V]`; 1 where absent.
    pub beta: Option<Var>,
}

/// Heads repeated: `[B, T, H, D]` to `[B, T, HV, D]`, value head j reading head `j / (HV / H)`.
pub(crate) fn repeat_heads(x: &Var, hv: usize) -> Result<Var> {
    let [b, t, h, d] = x.tensor().dims_n::<4>("repeat_heads", "x")?;
    if h == hv {
        return Ok(x.clone());
    }
    x.reshape(&[b, t, h, 1, d])?.expand(&[b, t, h, hv / h, d])?.reshape(&[b, t, hv, d])
}

/// A call laid out in chunks: `[n, HV, C, D]`.
struct Laid {
    q: Var,
    k: Var,
    v: Var,
    rows: Decays,
    columns: Decays,
}

impl Composed<'_> {
    /// `o [B, T, HV, V]` and the states after the last tokens `[N, HV, K, V]`.
    pub fn run(&self) -> Result<(Var, Var)> {
        let [_, _, hv, dv] = self.v.tensor().dims_n::<4>("composed", "v")?;
        let dk = self.k.dim(3);
        let first = match &self.initial {
            Some(h0) => h0.clone(),
            None => Tensor::zeros(&[self.seqs.len(), hv, dk, dv], self.v.dtype(), &self.v.device())?.into(),
        };
        if self.seqs.total() == 0 {
            return chunks::without_tokens(&self.inputs(), &self.v, &first);
        }
        let chunks = Chunks::new(self.seqs, CHUNK, &self.v.device())?;
        let reads = match (&self.bonus, &self.erase) {
            (Some(_), _) => Reads { after: false, before: true },
            (None, Some(e)) => Reads { after: true, before: e.before },
            _ => Reads { after: true, before: false },
        };
        let lay = |x: &Var| chunks.lay(x);
        let gate = self.gate.as_ref().map(lay).transpose()?;
        let value_gate = self.value_gate.as_ref().map(lay).transpose()?;
        let laid = Laid {
            q: lay(&self.q)?,
            k: lay(&self.k)?,
            v: lay(&self.v)?,
            rows: Decays::new(gate, chunks.size, reads)?,
            columns: Decays::new(value_gate, chunks.size, reads)?,
        };
        let scores = self.scores(&laid)?;
        let walk = match &self.erase {
            Some(e) => self.delta(&laid, e, &chunks, &first)?,
            None => decay(&laid, &chunks, &first)?,
        };
        let before = self.bonus.is_some();
        let q = laid.rows.times_prefix(&laid.q, before)?;
        let far = laid.columns.times_prefix(&q.matmul(&walk.states)?, before)?;
        let near = laid.columns.weigh(&scores, &walk.written, before)?;
        Ok((chunks.unlay(&far.add(&near)?, self.v.dims())?, walk.last))
    }

    fn inputs(&self) -> Vec<&Var> {
        let erase = self.erase.iter().flat_map(|e| [Some(&e.key), e.beta.as_ref()]).flatten();
        let gates = [&self.gate, &self.value_gate, &self.bonus].into_iter().flatten();
        [&self.q, &self.k, &self.v].into_iter().chain(gates).chain(erase).collect()
    }

    /// `q_i k_j` with the decay between them, j up to i, `[n, HV, C, C]`.
    fn scores(&self, x: &Laid) -> Result<Var> {
        let Some(u) = &self.bonus else { return x.rows.scores(&x.q, &x.k, false) };
        let [_, hv, c, dk] = x.q.tensor().dims_n::<4>("composed", "q")?;
        let own = x.q.mul(&u.reshape(&[1, hv, 1, dk])?)?.mul(&x.k)?.sum(&[3], true)?;
        let diagonal = decays::mask(c, |i, j| i == j, &x.q)?;
        x.rows.scores(&x.q, &x.k, true)?.add(&own.mul(&diagonal)?)
    }

    fn delta(&self, x: &Laid, e: &Erase, chunks: &Chunks, first: &Var) -> Result<Walk> {
        let p = chunks.lay(&e.key)?;
        let beta = e.beta.as_ref().map(|b| chunks.lay(b)).transpose()?;
        // Strictly earlier tokens: the pair (i, i) of the later table is the one before i's decay.
        let strict = decays::mask(chunks.size, |i, j| j < i, &p)?;
        let system = x.rows.scores(&p, &x.k, e.before)?.mul(&strict)?;
        let solve = solve::Solve::new(&system, beta)?;
        let p = x.rows.times_prefix(&p, e.before)?;
        let (k, total) = (x.rows.times_suffix(&x.k)?, x.rows.total()?);
        let mut s = chunks.start(first)?;
        let (mut states, mut written) = (Vec::new(), Vec::new());
        for step in 0..chunks.steps() {
            s.keep(chunks.active(step))?;
            let part = |x: &Var| chunks.part(x, step);
            let y = part(&x.v)?.sub(&part(&p)?.matmul(&s.state)?)?;
            let u = solve.apply(&y, part)?;
            states.push(s.state.clone());
            let new = part(&k)?.transpose(2, 3)?.matmul(&u)?;
            s.state = match &total {
                Some(total) => s.state.mul(&part(total)?.transpose(2, 3)?)?.add(&new)?,
                None => s.state.add(&new)?,
            };
            written.push(u);
        }
        Ok(Walk { states: joined(&states)?, written: joined(&written)?, last: s.end(chunks)? })
    }
}

/// What a pass over the chunks leaves.
struct Walk {
    /// Before each chunk `[n, HV, K, V]`.
    states: Var,
    /// What each token wrote `[n, HV, C, V]`.
    written: Var,
    /// `[N, HV, K, V]`.
    last: Var,
}

fn joined(parts: &[Var]) -> Result<Var> {
    Var::cat(&parts.iter().collect::<Vec<_>>(), 0)
}

fn decay(x: &Laid, chunks: &Chunks, first: &Var) -> Result<Walk> {
    let (k, v) = (x.rows.times_suffix(&x.k)?, x.columns.times_suffix(&x.v)?);
    let new = k.transpose(2, 3)?.matmul(&v)?;
    let (rows, columns) = (x.rows.total()?, x.columns.total()?);
    let mut s = chunks.start(first)?;
    let mut states = Vec::new();
    for step in 0..chunks.steps() {
        s.keep(chunks.active(step))?;
        states.push(s.state.clone());
        let part = |x: &Var| chunks.part(x, step);
        if let Some(rows) = &rows {
            s.state = s.state.mul(&part(rows)?.transpose(2, 3)?)?;
        }
        if let Some(columns) = &columns {
            s.state = s.state.mul(&part(columns)?)?;
        }
        s.state = s.state.add(&part(&new)?)?;
    }
    Ok(Walk { states: joined(&states)?, written: x.v.clone(), last: s.end(chunks)? })
}
