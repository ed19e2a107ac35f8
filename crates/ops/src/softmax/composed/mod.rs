//! Attention composed of tensor operations, in blocks of queries against all the keys that they see: what runs on a GPU where no fused kernel does.
//!
//! Policy: everything is computed in f32 (f64 for f64 q), products are exact, and arrays of scores hold at most [`SCORES`] numbers, so that
//! memory grows with the keys, not with their square. It runs on any device; the CPU has better (`forward.rs`) and runs this in tests.

mod backward;
mod decay;

use std::ops::Range;

pub(super) use backward::backward;
use decay::Sums;
use flashlin_tensor::{DType, Device, Result, Tensor, cuda::kept};

use super::{
    Inputs,
    plan::{Plan, Span},
};

/// Scores of one block.
const SCORES: usize = 1 << 25;
/// Added to the score of a hidden key: its probability is 0 to the bit.
const HIDDEN: f64 = 1e30;

/// What a forward pass leaves, and the attention maps where they were asked for.
pub(super) struct Forward {
    /// `[B, Tq, HQ, V]` in the dtype of q
    pub o: Tensor,
    /// Log-sum-exp `[H, G, B * Tq, 1]` in the compute type; 0 where a query sees nothing
    pub lse: Tensor,
    /// `[B, HQ, Tq, Tk]` in the compute type
    pub maps: Option<Tensor>,
}

/// The operands as flat tokens `[tokens, heads, width]`.
struct Operands<'a> {
    plan: &'a Plan,
    device: Device,
    /// What is computed in.
    dtype: DType,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Option<Tensor>,
}

/// A block of queries of one sequence: which they are, which keys at least one of them sees, and the two as matrices.
struct Block {
    /// Queries, counted in their sequence.
    rows: Range<usize>,
    /// Keys, counted in their sequence.
    keys: Range<usize>,
    /// `[H, G * rows, K]`, scaled
    q: Tensor,
    /// `[H, keys, K]`
    k: Tensor,
    /// `[H, keys, V]`
    v: Tensor,
}

impl<'a> Operands<'a> {
    fn new(plan: &'a Plan, inputs: &Inputs) -> Result<Self> {
        let dtype = if inputs.q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let flat = |t: &Tensor, rows, heads, width| t.reshape(&[rows, heads, width]);
        let sums = |g: &Tensor| flat(g, plan.key_rows, plan.q_heads, 1)?.squeeze(2)?.to_dtype(dtype);
        Ok(Operands {
            plan,
            device: inputs.q.device(),
            dtype,
            q: flat(&inputs.q, plan.q_rows, plan.q_heads, plan.k_dim)?,
            k: flat(&inputs.k, plan.key_rows, plan.heads, plan.k_dim)?,
            v: flat(&inputs.v, plan.key_rows, plan.heads, plan.v_dim)?,
            decay: inputs.decay.as_ref().map(sums).transpose()?,
        })
    }

    /// Rows of a flat `[tokens, HQ, D]` tensor as `[H, G * rows, D]` in the compute type.
    fn query_side(&self, x: &Tensor, first: usize, rows: usize) -> Result<Tensor> {
        let (plan, width) = (self.plan, x.dim(2));
        let x = x.narrow(0, first, rows)?.reshape(&[rows, plan.heads, plan.group(), width])?;
        let x = x.permute(&[1, 2, 0, 3])?.to_dtype(self.dtype)?;
        x.reshape(&[plan.heads, plan.group() * rows, width])
    }

    /// Rows of a flat `[tokens, H, D]` tensor as `[H, rows, D]` in the compute type.
    fn key_side(&self, x: &Tensor, first: usize, rows: usize) -> Result<Tensor> {
        x.narrow(0, first, rows)?.permute(&[1, 0, 2])?.to_dtype(self.dtype)
    }

    fn block(&self, s: &Span, rows: Range<usize>) -> Result<Block> {
        let keys = self.plan.visible(s, rows.start, rows.end);
        Ok(Block {
            q: self.query_side(&self.q, s.q0 + rows.start, rows.len())?.affine(self.plan.scale, 0.0)?,
            k: self.key_side(&self.k, s.k0 + keys.start, keys.len())?,
            v: self.key_side(&self.v, s.k0 + keys.start, keys.len())?,
            rows,
            keys,
        })
    }

    /// Scores `[H, G, rows, keys]`; hidden ones are about -[`HIDDEN`].
    fn scores(&self, s: &Span, b: &Block, sums: Option<&Sums>) -> Result<Tensor> {
        let (plan, rows, keys) = (self.plan, b.rows.len(), b.keys.len());
        let dims = [plan.heads, plan.group(), rows, keys];
        let mut scores = b.q.matmul(&b.k.transpose(1, 2)?)?.reshape(&dims)?;
        if let Some(sums) = sums {
            scores = scores.add(&sums.differences(s, &b.rows, &b.keys)?)?;
        }
        if plan.causal && !plan.all_visible(s, b.rows.start, b.rows.end, &b.keys) {
            scores = scores.add(&self.mask(s, b)?)?;
        }
        Ok(scores)
    }

    /// 0 where a query sees a key, else -[`HIDDEN`]: `[rows, keys]`, from whole numbers that f32 holds exactly.
    fn mask(&self, s: &Span, b: &Block) -> Result<Tensor> {
        let line = |start: i64, n: usize, dims: &[usize]| {
            kept(&Tensor::arange(start, n)?.to_dtype(self.dtype)?, &self.device)?.reshape(dims)
        };
        let place = (b.rows.start + s.keys) as i64 - s.queries as i64;
        let rows = line(place - b.keys.start as i64, b.rows.len(), &[b.rows.len(), 1])?;
        let away = rows.sub(&line(0, b.keys.len(), &[b.keys.len()])?)?;
        let mask = away.clamp(-1.0, 0.0)?;
        let mask = match self.plan.window {
            Some(w) => mask.add(&away.affine(-1.0, (w - 1) as f64)?.clamp(-1.0, 0.0)?)?,
            None => mask,
        };
        mask.affine(HIDDEN, 0.0)
    }

    /// Blocks of queries that see at least one key each.
    fn row_blocks(&self, s: &Span) -> Vec<Range<usize>> {
        if s.keys == 0 {
            return Vec::new();
        }
        let first = if self.plan.causal { s.queries.saturating_sub(s.keys) } else { 0 };
        let seen = self.plan.window.unwrap_or(s.keys).min(s.keys);
        let most = if self.decay.is_some() { decay::BLOCK } else { usize::MAX };
        let step = (SCORES / (self.plan.q_heads * seen)).clamp(1, most);
        // A window's block sees as many keys again as it has rows.
        let step = if self.plan.window.is_some() { step.min(seen.max(64)) } else { step };
        (first..s.queries).step_by(step).map(|i| i..s.queries.min(i.saturating_add(step))).collect()
    }

    fn sums(&self, s: &Span) -> Result<Option<Sums>> {
        let of = |g: &Tensor| Sums::new(&g.narrow(0, s.k0, s.keys)?, self.plan.heads);
        self.decay.as_ref().filter(|_| s.keys > 0).map(of).transpose()
    }
}

/// Outputs; no query sees nothing but those that lie before the first key, which stay 0.
pub(super) fn forward(plan: &Plan, inputs: &Inputs, maps: bool) -> Result<Forward> {
    let x = Operands::new(plan, inputs)?;
    let (b, tq, tk) = (inputs.q.dim(0), inputs.q.dim(1), inputs.k.dim(1));
    let mut o = Tensor::zeros(&[plan.q_rows, plan.q_heads, plan.v_dim], inputs.q.dtype(), &x.device)?;
    let mut lse = Tensor::zeros(&[plan.heads, plan.group(), plan.q_rows, 1], x.dtype, &x.device)?;
    let empty = || Tensor::zeros(&[b, plan.q_heads, tq, tk], x.dtype, &x.device);
    let mut all = maps.then(empty).transpose()?;
    for s in &plan.spans {
        let sums = x.sums(s)?;
        for rows in x.row_blocks(s) {
            let b = x.block(s, rows)?;
            let scores = x.scores(s, &b, sums.as_ref())?;
            let top = scores.max_last()?.0.unsqueeze(3)?;
            let p = scores.sub(&top)?.exp()?;
            drop(scores);
            let total = p.sum(&[3], true)?;
            let p = p.div(&total)?;
            let n = b.rows.len();
            let flat = p.reshape(&[plan.heads, plan.group() * n, b.keys.len()])?;
            let out = flat.matmul(&b.v)?.reshape(&[plan.q_heads, n, plan.v_dim])?;
            let at = s.q0 + b.rows.start;
            o.write(&[at, 0, 0], &out.transpose(0, 1)?)?;
            lse.write(&[0, 0, at, 0], &top.add(&total.log()?)?)?;
            if let Some(all) = &mut all {
                let p = p.reshape(&[1, plan.q_heads, n, b.keys.len()])?;
                all.write(&[at / tq, 0, at % tq, s.k0 % tk + b.keys.start], &p)?;
            }
        }
    }
    Ok(Forward { o: o.reshape(&[b, tq, plan.q_heads, plan.v_dim])?, lse, maps: all })
}
