//! The blocked forward pass: a block of queries against blocks of keys with a running maximum.

use std::ops::Range;

use flashlin_tensor::{Result, Tensor, cpu::vectorized};
use rayon::prelude::*;

use super::{
    Inputs, decay_sums, low,
    panels::{Operand, block_transposes, groups},
    plan::{BLOCK, Plan, Span, blocks},
};
use crate::{
    rows::{Rows, RowsMut},
    simd::{Arch, Extent, Mat, Real, Store, mm_nn, padded},
};

/// Keys and values of one sequence and head.
struct Panels<R> {
    /// `[blocks][Kp][BLOCK]`
    kt: Vec<R>,
    /// `[keys][Vp]`
    v: Vec<R>,
}

/// What a block of queries needs of its sequence.
struct Head<'a, R> {
    span: &'a Span,
    head: usize,
    panels: &'a Panels<R>,
    decay: Option<&'a [f64]>,
}

/// Output `[B, Tq, HQ, V]` and log-sum-exp `[HQ][B * Tq]`.
pub(super) fn forward<R: Real>(plan: &Plan, inputs: &Inputs) -> Result<(Tensor, Vec<R>)> {
    let q = &inputs.q;
    let mut o = Tensor::empty(&[q.dim(0), q.dim(1), plan.q_heads, plan.v_dim], q.dtype(), &q.device())?;
    let mut lse = vec![low::<R>(); plan.q_heads * plan.q_rows];
    let sums = decay_sums(plan, inputs)?;
    let operand = |t, heads, width| Ok(Operand { rows: Rows::new(t)?, heads, width });
    let (qo, ko, vo): (Operand, Operand, Operand) = (
        operand(q, plan.q_heads, plan.k_dim)?,
        operand(&inputs.k, plan.heads, plan.k_dim)?,
        operand(&inputs.v, plan.heads, plan.v_dim)?,
    );
    // One output block for each block of queries of each sequence; its tokens are contiguous.
    let parts: Vec<(usize, Range<usize>)> =
        plan.spans.iter().enumerate().flat_map(|(n, s)| blocks(s.queries).map(move |b| (n, b))).collect();
    let lens = parts.iter().map(|(_, b)| b.len() * plan.q_heads * plan.v_dim);
    let outs = RowsMut::of(&mut o)?.split(lens);
    let mut parts = parts.into_iter().zip(outs).peekable();
    for group in groups(plan) {
        let units: Vec<(usize, usize)> =
            group.clone().flat_map(|n| (0..plan.heads).map(move |h| (n, h))).collect();
        let make = |&(n, h): &(usize, usize)| {
            let s = &plan.spans[n];
            let rows = s.keys.next_multiple_of(BLOCK);
            let kt = block_transposes(&ko.panel::<R>(h, s.k0, s.keys, rows, 1.0), padded(plan.k_dim));
            Panels { kt, v: vo.panel(h, s.k0, s.keys, rows, 1.0) }
        };
        let panels: Vec<Panels<R>> = units.par_iter().map(make).collect();
        let mut jobs = Vec::new();
        while let Some(job) = parts.next_if(|((n, _), _)| group.contains(n)) {
            jobs.push(job);
        }
        let run = |((n, b), mut out): ((usize, Range<usize>), RowsMut)| {
            let span = &plan.spans[n];
            let first = (n - group.start) * plan.heads;
            let one = |head: usize| {
                let panels = &panels[first + head / plan.group()];
                let decay = sums.as_ref().map(|c| &c[head * plan.key_rows + span.k0..][..span.keys]);
                query_block(plan, &Head { span, head, panels, decay }, &b, &qo)
            };
            let heads: Vec<(Vec<R>, Vec<R>)> = (0..plan.q_heads).into_par_iter().map(one).collect();
            write_heads(plan, b.len(), &heads, &mut out);
            (span.q0 + b.start, heads.into_iter().map(|(_, lse)| lse).collect::<Vec<_>>())
        };
        let done: Vec<(usize, Vec<Vec<R>>)> = jobs.into_par_iter().map(run).collect();
        for (at, heads) in done {
            for (h, part) in heads.iter().enumerate() {
                lse[h * plan.q_rows + at..][..part.len()].copy_from_slice(part);
            }
        }
    }
    Ok((o, lse))
}

fn write_heads<R: Real>(plan: &Plan, rows: usize, heads: &[(Vec<R>, Vec<R>)], out: &mut RowsMut) {
    let (v, vp) = (plan.v_dim, padded(plan.v_dim));
    for t in 0..rows {
        for (h, (o, _)) in heads.iter().enumerate() {
            out.write((t * plan.q_heads + h) * v, &o[t * vp..][..v]);
        }
    }
}

/// Output `[rows][Vp]` and log-sum-exp of one block of queries of one head.
fn query_block<R: Real>(plan: &Plan, at: &Head<R>, b: &Range<usize>, q: &Operand) -> (Vec<R>, Vec<R>) {
    let (kp, vp, rows, s) = (padded(plan.k_dim), padded(plan.v_dim), b.len(), at.span);
    let q = q.panel::<R>(at.head, s.q0 + b.start, rows, rows, plan.scale);
    let mut scores = vec![R::ZERO; rows * BLOCK];
    let mut o = vec![R::ZERO; rows * vp];
    let (mut max, mut total) = (vec![low::<R>(); rows], vec![R::ZERO; rows]);
    let (arch, seen) = (Arch::new(), plan.visible(s, b.start, b.end));
    for j in seen.start / BLOCK..seen.end.div_ceil(BLOCK) {
        let keys = j * BLOCK..(j * BLOCK + BLOCK).min(s.keys);
        let kt = Mat::new(&at.panels.kt[j * BLOCK * kp..][..BLOCK * kp], BLOCK);
        let (size, out) = ((rows, BLOCK, plan.k_dim), (&mut scores[..], BLOCK));
        mm_nn(arch, size, Mat::new(&q, kp), kt, out, Store::Set, Extent::Full);
        if let Some(c) = at.decay {
            add_decay(s, b, &keys, c, &mut scores);
        }
        mask(plan, s, b, &keys, &mut scores);
        vectorized(
            #[inline(always)]
            || {
                for (r, row) in scores.chunks_exact_mut(BLOCK).enumerate() {
                    let factor = soften(row, &mut max[r], &mut total[r]);
                    if factor != R::ONE {
                        o[r * vp..][..vp].iter_mut().for_each(|o| *o *= factor);
                    }
                }
            },
        );
        let (p, v) = (Mat::new(&scores, BLOCK), Mat::new(&at.panels.v[keys.start * vp..], vp));
        mm_nn(arch, (rows, vp, keys.len()), p, v, (&mut o, vp), Store::Add, Extent::Full);
    }
    finish(&mut o, vp, &mut max, &total);
    (o, max)
}

/// Divides outputs by their sums; the maxima become log-sum-exps. Rows that saw nothing stay 0 and minus infinity.
pub(super) fn finish<R: Real>(o: &mut [R], ld: usize, max: &mut [R], total: &[R]) {
    for (r, (max, &total)) in max.iter_mut().zip(total).enumerate() {
        if total != R::ZERO {
            let inverse = R::ONE / total;
            o[r * ld..][..ld].iter_mut().for_each(|o| *o *= inverse);
            *max += total.ln();
        }
    }
}

/// Adds c_{i'} - c_j to a block of scores, both relative to the block's first query so that little is cancelled.
pub(super) fn add_decay<R: Real>(
    s: &Span,
    b: &Range<usize>,
    keys: &Range<usize>,
    c: &[f64],
    scores: &mut [R],
) {
    let Some(base) = b.clone().find_map(|i| s.place(i)).and_then(|p| c.get(p)) else { return };
    let mut ck = [R::ZERO; BLOCK];
    for (o, &c) in ck.iter_mut().zip(&c[keys.clone()]) {
        *o = R::from_f64(c - base);
    }
    for (i, row) in b.clone().zip(scores.chunks_exact_mut(BLOCK)) {
        let Some(cq) = s.place(i).and_then(|p| c.get(p)) else { continue };
        let cq = R::from_f64(cq - base);
        row.iter_mut().zip(&ck).for_each(|(s, &ck)| *s += cq - ck);
    }
}

/// Minus infinity where a query does not see a key.
pub(super) fn mask<R: Real>(plan: &Plan, s: &Span, b: &Range<usize>, keys: &Range<usize>, scores: &mut [R]) {
    if keys.len() == BLOCK && plan.all_visible(s, b.start, b.end, keys) {
        return;
    }
    for (i, row) in b.clone().zip(scores.chunks_exact_mut(BLOCK)) {
        let seen = plan.visible(s, i, i + 1);
        let (from, to) = (seen.start.max(keys.start), seen.end.min(keys.end));
        if from >= to {
            row.fill(low());
            continue;
        }
        row[..from - keys.start].fill(low());
        row[to - keys.start..].fill(low());
    }
}

/// Scores to exp(score - running maximum), with the row's maximum and sum brought up to date; returns the factor for
/// what was summed before. The row's length is a multiple of 16.
#[inline(always)]
pub(super) fn soften<R: Real>(row: &mut [R], max: &mut R, total: &mut R) -> R {
    let mut lanes = [*max; 16];
    for g in row.chunks_exact(16) {
        for i in 0..16 {
            lanes[i] = if g[i] > lanes[i] { g[i] } else { lanes[i] };
        }
    }
    let new = lanes.into_iter().fold(*max, |a, b| if b > a { b } else { a });
    // Nothing seen so far; a NaN is seen, and shows below.
    if new == low() && row.iter().all(|s| *s == low()) {
        row.fill(R::ZERO);
        return R::ONE;
    }
    let mut sums = [R::ZERO; 16];
    for g in row.chunks_exact_mut(16) {
        for i in 0..16 {
            g[i] = (g[i] - new).exp();
            sums[i] += g[i];
        }
    }
    let factor = (*max - new).exp();
    *total = *total * factor + sums.into_iter().fold(R::ZERO, |a, b| a + b);
    *max = new;
    factor
}
