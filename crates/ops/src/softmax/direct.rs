//! Few queries against many keys (decoding): keys and values are read once, in place and in their own dtype, which
//! is all that time goes into. Long caches are cut into segments of fixed length that are merged in order.

use std::ops::Range;

use flashlin_tensor::{Result, Tensor, cpu::vectorized};
use rayon::prelude::*;

use super::{
    Inputs, decay_sums,
    forward::{add_decay, finish, mask, soften},
    low,
    plan::{BLOCK, Plan, Span},
};
use crate::{
    rows::{Rows, RowsMut},
    simd::{Real, dot},
};

/// Queries of a sequence up to which this form is taken.
pub(super) const QUERIES: usize = 4;
/// Keys of one task.
const SEGMENT: usize = 1024;

/// Running softmax of the queries that share one key head: `[group * queries]` rows.
struct Partial<R> {
    max: Vec<R>,
    total: Vec<R>,
    o: Vec<R>,
}

/// Output `[B, Tq, HQ, V]` and log-sum-exp `[HQ][B * Tq]`.
pub(super) fn forward<R: Real>(plan: &Plan, inputs: &Inputs) -> Result<(Tensor, Vec<R>)> {
    let q = &inputs.q;
    let mut o = Tensor::empty(&[q.dim(0), q.dim(1), plan.q_heads, plan.v_dim], q.dtype(), &q.device())?;
    let mut lse = vec![low::<R>(); plan.q_heads * plan.q_rows];
    let sums = decay_sums(plan, inputs)?;
    let (qr, kr, vr) = (Rows::new(q)?, Rows::new(&inputs.k)?, Rows::new(&inputs.v)?);
    let task = |(n, h): (usize, usize)| {
        let s = &plan.spans[n];
        let seen = plan.visible(s, 0, s.queries);
        let starts: Vec<usize> = seen.clone().step_by(SEGMENT).collect();
        let part = |&from: &usize| {
            let keys = from..seen.end.min(from + SEGMENT);
            segment::<R>(plan, s, h, keys, (&qr, &kr, &vr), sums.as_deref())
        };
        let parts: Vec<Partial<R>> = starts.par_iter().map(part).collect();
        merge(plan, s, parts)
    };
    let units = (0..plan.spans.len()).flat_map(|n| (0..plan.heads).map(move |h| (n, h)));
    let done: Vec<Partial<R>> = units.collect::<Vec<_>>().into_par_iter().map(task).collect();
    let mut out = RowsMut::of(&mut o)?;
    for (unit, p) in done.iter().enumerate() {
        let (s, h) = (&plan.spans[unit / plan.heads], unit % plan.heads);
        for (r, row) in p.o.chunks_exact(plan.v_dim).enumerate() {
            let (head, token) = (h * plan.group() + r / s.queries, s.q0 + r % s.queries);
            out.write((token * plan.q_heads + head) * plan.v_dim, row);
            lse[head * plan.q_rows + token] = p.max[r];
        }
    }
    Ok((o, lse))
}

fn segment<R: Real>(
    plan: &Plan,
    s: &Span,
    h: usize,
    keys: Range<usize>,
    (q, k, v): (&Rows, &Rows, &Rows),
    sums: Option<&[f64]>,
) -> Partial<R> {
    let (group, nq) = (plan.group(), s.queries);
    let rows = group * nq;
    let mut p =
        Partial { max: vec![low(); rows], total: vec![R::ZERO; rows], o: vec![R::ZERO; rows * plan.v_dim] };
    let queries = load_queries::<R>(plan, s, h, q);
    let mut scores = vec![R::ZERO; rows * BLOCK];
    let mut buf = vec![R::ZERO; plan.k_dim.max(plan.v_dim)];
    for from in keys.clone().step_by(BLOCK) {
        let block = from..keys.end.min(from + BLOCK);
        let at = |j: usize| (s.k0 + j) * plan.heads + h;
        vectorized(
            #[inline(always)]
            || {
                for (c, j) in block.clone().enumerate() {
                    let key = k.row(at(j), &mut buf);
                    for (r, q) in queries.chunks_exact(plan.k_dim).enumerate() {
                        scores[r * BLOCK + c] = dot(q, key);
                    }
                }
            },
        );
        for (g, scores) in scores.chunks_exact_mut(nq * BLOCK).enumerate() {
            if let Some(c) = sums {
                let c = &c[(h * group + g) * plan.key_rows + s.k0..][..s.keys];
                add_decay(s, &(0..nq), &block, c, scores);
            }
            mask(plan, s, &(0..nq), &block, scores);
        }
        vectorized(
            #[inline(always)]
            || {
                for (r, row) in scores.chunks_exact_mut(BLOCK).enumerate() {
                    let factor = soften(row, &mut p.max[r], &mut p.total[r]);
                    p.o[r * plan.v_dim..][..plan.v_dim].iter_mut().for_each(|o| *o *= factor);
                }
                for (c, j) in block.clone().enumerate() {
                    let value = v.row(at(j), &mut buf);
                    for (r, o) in p.o.chunks_exact_mut(plan.v_dim).enumerate() {
                        let w = scores[r * BLOCK + c];
                        o.iter_mut().zip(value).for_each(|(o, &x)| *o += w * x);
                    }
                }
            },
        );
    }
    p
}

/// The scaled queries of a key head's group, `[group][queries][K]`.
fn load_queries<R: Real>(plan: &Plan, s: &Span, h: usize, q: &Rows) -> Vec<R> {
    let mut buf = vec![R::ZERO; plan.k_dim];
    let mut out = Vec::with_capacity(plan.group() * s.queries * plan.k_dim);
    let scale = R::from_f64(plan.scale);
    for g in 0..plan.group() {
        for i in 0..s.queries {
            let row = q.row((s.q0 + i) * plan.q_heads + h * plan.group() + g, &mut buf);
            out.extend(row.iter().map(|&x| x * scale));
        }
    }
    out
}

/// Segments to outputs; the maxima become log-sum-exps.
fn merge<R: Real>(plan: &Plan, s: &Span, parts: Vec<Partial<R>>) -> Partial<R> {
    let rows = plan.group() * s.queries;
    let v = plan.v_dim;
    let mut all = Partial { max: vec![low(); rows], total: vec![R::ZERO; rows], o: vec![R::ZERO; rows * v] };
    for r in 0..rows {
        // A plain comparison, so that a NaN maximum cannot hide: its sum is NaN and shows.
        all.max[r] = parts.iter().fold(low(), |m, p| if p.max[r] > m { p.max[r] } else { m });
        for p in parts.iter().filter(|p| p.total[r] != R::ZERO) {
            let factor = (p.max[r] - all.max[r]).exp();
            all.total[r] += p.total[r] * factor;
            for (o, &x) in all.o[r * v..][..v].iter_mut().zip(&p.o[r * v..]) {
                *o += x * factor;
            }
        }
    }
    finish(&mut all.o, v, &mut all.max, &all.total);
    all
}
