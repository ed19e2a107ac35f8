//! The blocked backward pass. A task owns a segment of the keys of one sequence and key head: it keeps their dk and dv,
//! and makes its share of dq; the shares are added in order. Probabilities come from the saved log-sum-exps.

use std::ops::Range;

use flashlin_tensor::{Result, Tensor, cpu::vectorized};
use rayon::prelude::*;

use super::{
    Inputs, decay_sums,
    forward::{add_decay, mask},
    low,
    panels::{Operand, block_transposes, groups},
    plan::{BLOCK, Plan, Span, blocks},
};
use crate::{
    rows::{Rows, RowsMut},
    simd::{Arch, Extent, Mat, Real, Store, dot, mm_nn, mm_tn, padded},
};

/// What forward left, and the gradient of its output.
pub(super) struct Saved<'a, R> {
    pub o: &'a Tensor,
    pub lse: &'a [R],
    pub grad: &'a Tensor,
}

/// Keys of a segment: at most eight a sequence, so that the shares of dq stay few.
fn segment_len(keys: usize) -> usize {
    (keys / 8).next_multiple_of(BLOCK).max(8 * BLOCK)
}

fn segments(keys: usize) -> impl Iterator<Item = Range<usize>> {
    let len = segment_len(keys);
    (0..keys).step_by(len).map(move |i| i..keys.min(i + len))
}

/// Keys and values of one sequence and key head.
struct KeyPanels<R> {
    /// `[keys][Kp]`, and transposed `[blocks][Kp][BLOCK]`
    k: Vec<R>,
    kt: Vec<R>,
    /// `[blocks][Vp][BLOCK]`
    vt: Vec<R>,
}

/// Queries of one sequence and query head.
struct QueryPanels<R> {
    /// `[queries][Kp]`, scaled
    q: Vec<R>,
    /// `[queries][Vp]`
    grad: Vec<R>,
    /// grad . o of every query
    delta: Vec<R>,
}

/// What one task makes.
struct Share<R> {
    /// `[segment][Kp]` and `[segment][Vp]`
    dk: Vec<R>,
    dv: Vec<R>,
    /// `[group][queries][Kp]`
    dq: Vec<R>,
    /// Gradients of the decay sums: of queries `[group][queries]` and of keys `[group][segment]`
    at_query: Vec<R>,
    at_key: Vec<R>,
}

/// The operands as rows.
struct Operands<'a> {
    q: Operand<'a>,
    k: Operand<'a>,
    v: Operand<'a>,
    o: Operand<'a>,
    grad: Operand<'a>,
}

/// Gradients of q, k, v and decay; `wants` says which of the last matter.
pub(super) fn backward<R: Real>(
    plan: &Plan,
    inputs: &Inputs,
    saved: &Saved<R>,
    wants: [bool; 4],
) -> Result<Vec<Option<Tensor>>> {
    let like = |t: &Tensor| Tensor::zeros(t.dims(), t.dtype(), &t.device());
    let (mut dq, mut dk, mut dv) = (like(&inputs.q)?, like(&inputs.k)?, like(&inputs.v)?);
    let mut dc = inputs.decay.as_ref().map(|_| vec![0f64; plan.q_heads * plan.key_rows]);
    let sums = decay_sums(plan, inputs)?;
    let operand = |t, heads, width| Rows::new(t).map(|rows| Operand { rows, heads, width });
    let ops = Operands {
        q: operand(&inputs.q, plan.q_heads, plan.k_dim)?,
        k: operand(&inputs.k, plan.heads, plan.k_dim)?,
        v: operand(&inputs.v, plan.heads, plan.v_dim)?,
        o: operand(saved.o, plan.q_heads, plan.v_dim)?,
        grad: operand(saved.grad, plan.q_heads, plan.v_dim)?,
    };
    let by_query = |s: &Span| (s.q0, s.queries);
    let by_key = |s: &Span| (s.k0, s.keys);
    let mut dq_out = pieces(plan, &mut dq, plan.q_heads * plan.k_dim, by_query)?;
    let mut dk_out = pieces(plan, &mut dk, plan.heads * plan.k_dim, by_key)?;
    let mut dv_out = pieces(plan, &mut dv, plan.heads * plan.v_dim, by_key)?;
    for group in groups(plan) {
        let shares = run_group(plan, &ops, saved, sums.as_deref(), group.clone());
        let of = |n: usize| &shares[n - group.start];
        take_before(&mut dq_out, group.end)
            .into_par_iter()
            .for_each(|mut p| write_dq(plan, of(p.span), &mut p));
        let (kp, vp) = (padded(plan.k_dim), padded(plan.v_dim));
        take_before(&mut dk_out, group.end)
            .into_par_iter()
            .for_each(|mut p| write_keys(plan, of(p.span), &mut p, plan.k_dim, kp, |s| &s.dk));
        take_before(&mut dv_out, group.end)
            .into_par_iter()
            .for_each(|mut p| write_keys(plan, of(p.span), &mut p, plan.v_dim, vp, |s| &s.dv));
        if let Some(dc) = &mut dc {
            for n in group.clone() {
                add_decay_gradients(plan, &plan.spans[n], of(n), dc);
            }
        }
    }
    let dg = match (dc, &inputs.decay) {
        (Some(dc), Some(g)) if wants[3] => Some(decay_gradient(plan, &dc, g)?),
        _ => None,
    };
    Ok(vec![Some(dq), Some(dk), Some(dv), dg])
}

/// A block of tokens of one sequence in an output.
struct Piece<'a> {
    span: usize,
    tokens: Range<usize>,
    out: RowsMut<'a>,
}

/// Removes the pieces of sequences before `end` from the front of the list.
fn take_before<'a>(pieces: &mut Vec<Piece<'a>>, end: usize) -> Vec<Piece<'a>> {
    let rest = pieces.split_off(pieces.iter().position(|p| p.span >= end).unwrap_or(pieces.len()));
    std::mem::replace(pieces, rest)
}

/// The output's tokens in blocks, in order; tokens that belong to no sequence (unused cache) are left out.
fn pieces<'a>(
    plan: &Plan,
    t: &'a mut Tensor,
    row: usize,
    of: impl Fn(&Span) -> (usize, usize),
) -> Result<Vec<Piece<'a>>> {
    let (mut lens, mut at, mut names) = (Vec::new(), 0, Vec::new());
    for (n, s) in plan.spans.iter().enumerate() {
        let (first, count) = of(s);
        lens.push((first - at) * row);
        names.push(None);
        for tokens in blocks(count) {
            lens.push(tokens.len() * row);
            names.push(Some((n, tokens)));
        }
        at = first + count;
    }
    let cut = RowsMut::of(t)?.split(lens.into_iter());
    let name = |(name, out): (Option<(usize, Range<usize>)>, _)| {
        name.map(|(span, tokens)| Piece { span, tokens, out })
    };
    Ok(names.into_iter().zip(cut).filter_map(name).collect())
}

/// The shares of a group's sequences: for each sequence `[heads][segments]`.
fn run_group<R: Real>(
    plan: &Plan,
    ops: &Operands,
    saved: &Saved<R>,
    sums: Option<&[f64]>,
    group: Range<usize>,
) -> Vec<Vec<Vec<Share<R>>>> {
    let units = |heads: usize| {
        group.clone().flat_map(move |n| (0..heads).map(move |h| (n, h))).collect::<Vec<(usize, usize)>>()
    };
    let keys: Vec<KeyPanels<R>> =
        units(plan.heads).par_iter().map(|&(n, h)| key_panels(plan, ops, &plan.spans[n], h)).collect();
    let queries: Vec<QueryPanels<R>> =
        units(plan.q_heads).par_iter().map(|&(n, h)| query_panels(plan, ops, &plan.spans[n], h)).collect();
    let one = |n: usize, h: usize, segment: Range<usize>| {
        let (s, local) = (&plan.spans[n], n - group.start);
        let first = local * plan.q_heads + h * plan.group();
        let task = Task {
            plan,
            span: s,
            head: h,
            keys: &keys[local * plan.heads + h],
            queries: &queries[first..first + plan.group()],
            lse: saved.lse,
            sums,
        };
        task.run(segment)
    };
    let head = |n: usize, h: usize| -> Vec<Share<R>> {
        let list: Vec<_> = segments(plan.spans[n].keys).collect();
        list.into_par_iter().map(|segment| one(n, h, segment)).collect()
    };
    let sequence = |n: usize| (0..plan.heads).into_par_iter().map(|h| head(n, h)).collect();
    group.clone().into_par_iter().map(sequence).collect()
}

fn key_panels<R: Real>(plan: &Plan, ops: &Operands, s: &Span, h: usize) -> KeyPanels<R> {
    let rows = s.keys.next_multiple_of(BLOCK);
    let k = ops.k.panel(h, s.k0, s.keys, rows, 1.0);
    let v = ops.v.panel(h, s.k0, s.keys, rows, 1.0);
    KeyPanels {
        kt: block_transposes(&k, padded(plan.k_dim)),
        vt: block_transposes(&v, padded(plan.v_dim)),
        k,
    }
}

fn query_panels<R: Real>(plan: &Plan, ops: &Operands, s: &Span, h: usize) -> QueryPanels<R> {
    let grad: Vec<R> = ops.grad.panel(h, s.q0, s.queries, s.queries, 1.0);
    let o: Vec<R> = ops.o.panel(h, s.q0, s.queries, s.queries, 1.0);
    let vp = padded(plan.v_dim);
    let delta = grad.chunks_exact(vp).zip(o.chunks_exact(vp)).map(|(g, o)| dot(g, o)).collect();
    QueryPanels { q: ops.q.panel(h, s.q0, s.queries, s.queries, plan.scale), grad, delta }
}

/// One segment of keys of one head.
struct Task<'a, R> {
    plan: &'a Plan,
    span: &'a Span,
    head: usize,
    keys: &'a KeyPanels<R>,
    queries: &'a [QueryPanels<R>],
    lse: &'a [R],
    sums: Option<&'a [f64]>,
}

/// Scratch of a task: probabilities and score gradients of a block.
struct Scratch<R> {
    p: Vec<R>,
    ds: Vec<R>,
}

impl<R: Real> Task<'_, R> {
    fn run(&self, segment: Range<usize>) -> Share<R> {
        let (plan, s) = (self.plan, self.span);
        let (kp, vp) = (padded(plan.k_dim), padded(plan.v_dim));
        let rows = segment.len().next_multiple_of(BLOCK);
        let with_decay = if self.sums.is_some() { plan.group() } else { 0 };
        let mut share = Share {
            dk: vec![R::ZERO; rows * kp],
            dv: vec![R::ZERO; rows * vp],
            dq: vec![R::ZERO; plan.group() * s.queries * kp],
            at_query: vec![R::ZERO; with_decay * s.queries],
            at_key: vec![R::ZERO; with_decay * segment.len()],
        };
        let mut scratch = Scratch { p: vec![R::ZERO; BLOCK * BLOCK], ds: vec![R::ZERO; BLOCK * BLOCK] };
        for keys in blocks(segment.len()).map(|b| b.start + segment.start..b.end + segment.start) {
            for g in 0..plan.group() {
                for b in blocks(s.queries) {
                    let seen = plan.visible(s, b.start, b.end);
                    if seen.start < keys.end && seen.end > keys.start {
                        self.scores(g, &b, &keys, &mut scratch);
                        self.products(g, &b, &keys, segment.start, &scratch, &mut share);
                    }
                }
            }
        }
        share
    }

    /// Probabilities and gradients of the scores of one block.
    fn scores(&self, g: usize, b: &Range<usize>, keys: &Range<usize>, scratch: &mut Scratch<R>) {
        let (plan, s, q) = (self.plan, self.span, &self.queries[g]);
        let (kp, vp, rows) = (padded(plan.k_dim), padded(plan.v_dim), b.len());
        let j = keys.start / BLOCK;
        let (p, ds) = (&mut scratch.p[..rows * BLOCK], &mut scratch.ds[..rows * BLOCK]);
        let kt = Mat::new(&self.keys.kt[j * BLOCK * kp..][..BLOCK * kp], BLOCK);
        let vt = Mat::new(&self.keys.vt[j * BLOCK * vp..][..BLOCK * vp], BLOCK);
        let arch = Arch::new();
        let query = Mat::new(&q.q[b.start * kp..], kp);
        let size = (rows, BLOCK, plan.k_dim);
        mm_nn(arch, size, query, kt, (&mut *p, BLOCK), Store::Set, Extent::Full);
        let grad = Mat::new(&q.grad[b.start * vp..], vp);
        let size = (rows, BLOCK, plan.v_dim);
        mm_nn(arch, size, grad, vt, (&mut *ds, BLOCK), Store::Set, Extent::Full);
        let head = self.head * plan.group() + g;
        if let Some(c) = self.sums {
            add_decay(s, b, keys, &c[head * plan.key_rows + s.k0..][..s.keys], p);
        }
        mask(plan, s, b, keys, p);
        let lse = &self.lse[head * plan.q_rows + s.q0..];
        vectorized(
            #[inline(always)]
            || {
                let rows = p.chunks_exact_mut(BLOCK).zip(ds.chunks_exact_mut(BLOCK));
                for (i, (p, ds)) in b.clone().zip(rows) {
                    if lse[i] == low() {
                        p.fill(R::ZERO);
                        ds.fill(R::ZERO);
                        continue;
                    }
                    for (p, ds) in p.iter_mut().zip(ds) {
                        *p = (*p - lse[i]).exp();
                        *ds = *p * (*ds - q.delta[i]);
                    }
                }
            },
        );
    }

    /// Adds one block's part of every gradient.
    fn products(
        &self,
        g: usize,
        b: &Range<usize>,
        keys: &Range<usize>,
        start: usize,
        scratch: &Scratch<R>,
        share: &mut Share<R>,
    ) {
        let (plan, s, q) = (self.plan, self.span, &self.queries[g]);
        let (kp, vp, rows) = (padded(plan.k_dim), padded(plan.v_dim), b.len());
        let (p, ds) = (&scratch.p[..rows * BLOCK], &scratch.ds[..rows * BLOCK]);
        let at = keys.start - start;
        let arch = Arch::new();
        let (p_mat, ds_mat) = (Mat::new(p, BLOCK), Mat::new(ds, BLOCK));
        let (grad, dv) = (Mat::new(&q.grad[b.start * vp..], vp), (&mut share.dv[at * vp..], vp));
        mm_tn(arch, (keys.len(), vp, rows), p_mat, grad, dv, Store::Add, Extent::Full);
        let (query, dk) = (Mat::new(&q.q[b.start * kp..], kp), (&mut share.dk[at * kp..], kp));
        mm_tn(arch, (keys.len(), kp, rows), ds_mat, query, dk, Store::Add, Extent::Full);
        let (k, dq) = (&self.keys.k[keys.start * kp..], &mut share.dq[(g * s.queries + b.start) * kp..]);
        mm_nn(arch, (rows, kp, keys.len()), ds_mat, Mat::new(k, kp), (dq, kp), Store::Add, Extent::Full);
        if self.sums.is_some() {
            let len = share.at_key.len() / plan.group();
            let at_key = &mut share.at_key[g * len + at..];
            for (r, ds) in ds.chunks_exact(BLOCK).enumerate() {
                let ds = &ds[..keys.len()];
                share.at_query[g * s.queries + b.start + r] += ds.iter().fold(R::ZERO, |a, &x| a + x);
                at_key.iter_mut().zip(ds).for_each(|(a, &x)| *a += x);
            }
        }
    }
}

/// dq = scale * sum of the segments' shares.
fn write_dq<R: Real>(plan: &Plan, heads: &[Vec<Share<R>>], piece: &mut Piece) {
    let (kp, s) = (padded(plan.k_dim), &plan.spans[piece.span]);
    let scale = R::from_f64(plan.scale);
    let mut row = vec![R::ZERO; plan.k_dim];
    for (t, token) in piece.tokens.clone().enumerate() {
        for h in 0..plan.q_heads {
            row.fill(R::ZERO);
            for share in &heads[h / plan.group()] {
                let from = &share.dq[(h % plan.group() * s.queries + token) * kp..][..plan.k_dim];
                row.iter_mut().zip(from).for_each(|(r, &x)| *r += x);
            }
            row.iter_mut().for_each(|r| *r *= scale);
            piece.out.write((t * plan.q_heads + h) * plan.k_dim, &row);
        }
    }
}

fn write_keys<R: Real>(
    plan: &Plan,
    heads: &[Vec<Share<R>>],
    piece: &mut Piece,
    width: usize,
    ld: usize,
    of: impl Fn(&Share<R>) -> &[R],
) {
    let len = segment_len(plan.spans[piece.span].keys);
    for (t, token) in piece.tokens.clone().enumerate() {
        for (h, shares) in heads.iter().enumerate() {
            let rows = of(&shares[token / len]);
            piece.out.write((t * plan.heads + h) * width, &rows[token % len * ld..][..width]);
        }
    }
}

/// Adds a sequence's gradients of the decay sums to `dc` `[HQ][keys]`.
fn add_decay_gradients<R: Real>(plan: &Plan, s: &Span, heads: &[Vec<Share<R>>], dc: &mut [f64]) {
    for h in 0..plan.q_heads {
        let g = h % plan.group();
        let dc = &mut dc[h * plan.key_rows + s.k0..][..s.keys];
        let mut from = 0;
        for share in &heads[h / plan.group()] {
            for i in 0..s.queries {
                if let Some(d) = s.place(i).and_then(|p| dc.get_mut(p)) {
                    *d += share.at_query[g * s.queries + i].to_f64();
                }
            }
            let len = share.at_key.len() / plan.group();
            for (d, x) in dc[from..].iter_mut().zip(&share.at_key[g * len..][..len]) {
                *d -= x.to_f64();
            }
            from += len;
        }
    }
}

/// dg_t = sum over s >= t of the gradient of the running sum at s.
fn decay_gradient(plan: &Plan, dc: &[f64], like: &Tensor) -> Result<Tensor> {
    let mut dg = vec![0f64; dc.len()];
    for s in &plan.spans {
        for h in 0..plan.q_heads {
            let mut sum = 0.0;
            for t in (s.k0..s.k0 + s.keys).rev() {
                sum += dc[h * plan.key_rows + t];
                dg[t * plan.q_heads + h] = sum;
            }
        }
    }
    Tensor::from_vec(dg, like.dims())?.to_dtype(like.dtype())
}
