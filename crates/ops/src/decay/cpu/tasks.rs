//! Cuts a call into tasks by (sequence, value head), hands each its rows of the outputs, and adds up what several
//! tasks contribute to, in a fixed order.

use super::args::{Args, GradsMut, Needs, Source};
use super::chunk::{self, GradRows};
use super::recurrent;
use crate::simd::{Arch, Real, padded};
use rayon::prelude::*;

/// Which algorithm runs; the results agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Path {
    /// Dense products over chunks of tokens.
    Chunk,
    /// Token by token.
    Recurrent,
}

/// Elements of the states that a chunked forward pass saves for the backward pass: one before every chunk.
pub fn saved_len<R: Real>(a: &Args<R>) -> usize {
    a.seqs.iter().map(|s| saved_by_task(a, s.len) * a.value_heads).sum()
}

fn saved_by_task<R: Real>(a: &Args<R>, len: usize) -> usize {
    len.div_ceil(a.chunk) * a.key_dim * padded(a.value_dim)
}

/// Writes `o [tokens, HV, V]` and, unless `last` is empty, the final states in the layout of `a`. The chunked path also
/// writes [`saved_len`] elements to `save`, unless that is empty.
pub fn forward<R: Real>(path: Path, a: &Args<R>, o: &mut [R], last: &mut [R], save: &mut [R]) {
    let arch = Arch::new();
    let tasks = a.seqs.len() * a.value_heads;
    let rows = split_rows(o, a, a.value_dim);
    let states = split_states(last, tasks, a.state_len());
    let mut rest = save;
    let saves: Vec<&mut [R]> =
        (0..tasks).map(|i| take(&mut rest, saved_by_task(a, a.seqs[i / a.value_heads].len))).collect();
    rows.into_par_iter().zip(states).zip(saves).enumerate().for_each(|(i, ((mut rows, last), save))| {
        let at = (i / a.value_heads, i % a.value_heads);
        match path {
            Path::Chunk => chunk::forward(arch, a, at, &mut rows, last, save),
            Path::Recurrent => recurrent::forward(arch, a, at, &mut rows, last),
        }
    });
}

/// Gradients by all wanted inputs, from those by `o` (`[B, T, HV, V]`) and by the final states. `saved` is what the
/// chunked [`forward`] saved (the recurrent path reads none).
pub fn backward<R: Real>(
    path: Path,
    a: &Args<R>,
    d_o: &Source,
    d_last: Option<&[R]>,
    saved: &[R],
    grads: GradsMut<R>,
) {
    let arch = Arch::new();
    let (tokens, hv) = (a.tokens(), a.value_heads);
    let tasks = a.seqs.len() * hv;
    let needs = Needs {
        key_gate: !(grads.g.is_empty() && grads.g_gamma.is_empty() && grads.gk.is_empty()),
        value_gate: !grads.gv.is_empty(),
    };
    let key_part = tokens * hv * a.key_dim;
    let (mut q_part, mut k_part) =
        (parts(a.heads, a, grads.q, key_part), parts(a.heads, a, grads.k, key_part));
    let mut gk_part = parts(a.gk_heads, a, grads.gk, key_part);
    // By task, then token or channel: a task's slice is contiguous.
    let mut g = vec![R::ZERO; if grads.g.is_empty() && grads.g_gamma.is_empty() { 0 } else { tokens * hv }];
    let mut u = vec![R::ZERO; if grads.u.is_empty() { 0 } else { tasks * a.key_dim }];

    let mut outs: Vec<GradRows<R>> = Vec::with_capacity(tasks);
    let mut q_rows = split_rows(target(&mut q_part, grads.q), a, a.key_dim).into_iter();
    let mut k_rows = split_rows(target(&mut k_part, grads.k), a, a.key_dim).into_iter();
    let mut gk_rows = split_rows(target(&mut gk_part, grads.gk), a, a.key_dim).into_iter();
    let mut v_rows = split_rows(grads.v, a, a.value_dim).into_iter();
    let mut gv_rows = split_rows(grads.gv, a, a.value_dim).into_iter();
    let (mut g_rest, mut u_rest, mut h0_rest) = (&mut g[..], &mut u[..], grads.h0);
    for i in 0..tasks {
        let len = a.seqs[i / hv].len;
        outs.push(GradRows {
            q: q_rows.next().unwrap_or_default(),
            k: k_rows.next().unwrap_or_default(),
            v: v_rows.next().unwrap_or_default(),
            gk: gk_rows.next().unwrap_or_default(),
            gv: gv_rows.next().unwrap_or_default(),
            g: take(&mut g_rest, len),
            u: take(&mut u_rest, a.key_dim),
            h0: take(&mut h0_rest, a.state_len()),
        });
    }
    let mut rest = saved;
    let mut states: Vec<&[R]> = Vec::with_capacity(tasks);
    for i in 0..tasks {
        let (own, others) = rest.split_at(saved_by_task(a, a.seqs[i / hv].len).min(rest.len()));
        states.push(own);
        rest = others;
    }
    outs.into_par_iter().enumerate().for_each(|(i, mut out)| {
        let at = (i / hv, i % hv);
        match path {
            Path::Chunk => chunk::backward(arch, a, at, d_o, d_last, states[i], needs, &mut out),
            Path::Recurrent => recurrent::backward(arch, a, at, d_o, d_last, needs, &mut out),
        }
    });
    sum_groups(&q_part, grads.q, a.key_dim);
    sum_groups(&k_part, grads.k, a.key_dim);
    sum_groups(&gk_part, grads.gk, a.key_dim);
    by_token(a, &g, grads.g);
    sum_by_head(a, &g, grads.g_gamma);
    sum_bonus(a, &u, grads.u);
}

/// Value heads that share a key head write parts first, which [`sum_groups`] adds up; empty where they do not share.
fn parts<R: Real>(heads: usize, a: &Args<R>, wanted: &[R], len: usize) -> Vec<R> {
    vec![R::ZERO; if heads == a.value_heads || wanted.is_empty() { 0 } else { len }]
}

fn target<'a, R>(parts: &'a mut [R], out: &'a mut [R]) -> &'a mut [R] {
    if parts.is_empty() { out } else { parts }
}

/// The next `n` elements, or none when nothing is left (not wanted).
fn take<'a, R>(rest: &mut &'a mut [R], n: usize) -> &'a mut [R] {
    let all = std::mem::take(rest);
    let n = n.min(all.len());
    let (head, tail) = all.split_at_mut(n);
    *rest = tail;
    head
}

/// Rows of a `[tokens, HV, dim]` array by task; sequences cover the tokens in order. Empty for an empty array.
fn split_rows<'a, R>(data: &'a mut [R], a: &Args<R>, dim: usize) -> Vec<Vec<&'a mut [R]>> {
    let mut rows = data.chunks_mut(dim);
    let mut tasks = Vec::with_capacity(a.seqs.len() * a.value_heads);
    for seq in a.seqs {
        let first = tasks.len();
        tasks.extend((0..a.value_heads).map(|_| Vec::with_capacity(seq.len)));
        for _ in 0..seq.len {
            for j in 0..a.value_heads {
                if let Some(row) = rows.next() {
                    tasks[first + j].push(row);
                }
            }
        }
    }
    tasks
}

fn split_states<R>(data: &mut [R], tasks: usize, len: usize) -> Vec<Option<&mut [R]>> {
    if data.is_empty() {
        return (0..tasks).map(|_| None).collect();
    }
    data.chunks_mut(len).map(Some).collect()
}

/// Parts `[tokens, HV, dim]` to `[tokens, heads, dim]`: sums over the value heads of a group, first to last.
fn sum_groups<R: Real>(parts: &[R], out: &mut [R], dim: usize) {
    if parts.is_empty() || out.is_empty() {
        return;
    }
    let group = parts.len() / out.len();
    out.par_chunks_mut(dim).zip(parts.par_chunks(group * dim)).with_min_len(256).for_each(|(o, parts)| {
        o.copy_from_slice(&parts[..dim]);
        for part in parts[dim..].chunks(dim) {
            o.iter_mut().zip(part).for_each(|(o, &p)| *o += p);
        }
    });
}

/// `[N][HV][len]` to `[tokens, HV]`.
fn by_token<R: Real>(a: &Args<R>, g: &[R], out: &mut [R]) {
    if out.is_empty() {
        return;
    }
    let mut values = g.iter();
    for seq in a.seqs {
        for j in 0..a.value_heads {
            for (t, &g) in (0..seq.len).zip(&mut values) {
                out[(seq.row + t) * a.value_heads + j] = g;
            }
        }
    }
}

/// Gradient of a constant gate: sum over sequences and tokens, in f64.
fn sum_by_head<R: Real>(a: &Args<R>, g: &[R], out: &mut [R]) {
    let mut sums = vec![0.0; out.len()];
    let mut rest = g;
    for seq in a.seqs {
        for sum in &mut sums {
            let (head, tail) = rest.split_at(seq.len);
            *sum += head.iter().map(|x| x.to_f64()).sum::<f64>();
            rest = tail;
        }
    }
    out.iter_mut().zip(sums).for_each(|(o, s)| *o = R::from_f64(s));
}

/// `[N][HV][K]` to `[H, K]`.
fn sum_bonus<R: Real>(a: &Args<R>, u: &[R], out: &mut [R]) {
    out.fill(R::ZERO);
    for (i, part) in u.chunks(a.key_dim).enumerate() {
        let h = i % a.value_heads / a.group();
        out[h * a.key_dim..][..a.key_dim].iter_mut().zip(part).for_each(|(o, &p)| *o += p);
    }
}
