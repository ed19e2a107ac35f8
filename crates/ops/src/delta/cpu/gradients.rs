//! The backward pass over all tasks: each walks its chunks from the last to the first.

use rayon::prelude::*;

use super::backward::Backward;
use super::chunk::Chunk;
use super::input::{Input, Rows, Seq, StateStrides, rows_by_task};
use super::panels::{GateParamGrads, Inputs, Spec, store_keys_grad};
use super::{Saved, States, load_state};
use crate::simd::{Buf, Real};

/// Buffers for the gradients that are wanted, each in the shape of its (contiguous) input; key-like ones for each value
/// head, `[B, T, HV, K]`, to be summed over the heads of a group with [`sum_groups`].
pub(crate) struct GradsOut<'a, R> {
    pub q: Option<&'a mut [R]>,
    pub k: Option<&'a mut [R]>,
    pub erase: Option<&'a mut [R]>,
    pub v: Option<&'a mut [R]>,
    pub beta: Option<&'a mut [R]>,
    pub gate: Option<&'a mut [R]>,
    /// Initial states' gradient `[N, HV, K V]` and its layout.
    pub first: Option<(&'a mut [R], StateStrides)>,
}

/// Where a task writes.
struct Outputs<'a, R> {
    q: Option<Rows<'a, R>>,
    k: Option<Rows<'a, R>>,
    erase: Option<Rows<'a, R>>,
    v: Option<Rows<'a, R>>,
    beta: Option<Rows<'a, R>>,
    gate: Option<Rows<'a, R>>,
    first: Option<&'a mut [R]>,
}

impl<'a, R> GradsOut<'a, R> {
    fn by_task(self, s: &Spec, seqs: &[Seq]) -> (Vec<Outputs<'a, R>>, Option<StateStrides>) {
        let mut q = rows_by_task(self.q, seqs, s.hv, s.k).into_iter();
        let mut k = rows_by_task(self.k, seqs, s.hv, s.k).into_iter();
        let mut erase = rows_by_task(self.erase, seqs, s.hv, s.k).into_iter();
        let mut v = rows_by_task(self.v, seqs, s.hv, s.v).into_iter();
        let mut beta = rows_by_task(self.beta, seqs, s.hv, s.beta_dim()).into_iter();
        let mut gate = rows_by_task(self.gate, seqs, s.hv, s.gate_dim()).into_iter();
        let (first, strides) =
            self.first.map_or((None, None), |(buffer, strides)| (Some(buffer), Some(strides)));
        let mut first = first.map(|f| f.chunks_exact_mut(s.k * s.v));
        let tasks = (0..seqs.len() * s.hv)
            .map(|_| Outputs {
                q: q.next().flatten(),
                k: k.next().flatten(),
                erase: erase.next().flatten(),
                v: v.next().flatten(),
                beta: beta.next().flatten(),
                gate: gate.next().flatten(),
                first: first.as_mut().and_then(Iterator::next),
            })
            .collect();
        (tasks, strides)
    }
}

/// Gradients of a call whose forward pass saved `saved`, from those of the outputs (`d_o`) and of the final states
/// (`d_last`), where there are any. Returns those of `A_log` `[HV]` and `dt_bias` (`[HV]` or `[HV, K]`).
pub(crate) fn backward<R: Real>(
    s: &Spec,
    x: &Inputs<'_, R>,
    seqs: &[Seq],
    saved: Saved<'_, R>,
    d_o: Option<&Input<'_>>,
    d_last: Option<States<'_, R>>,
    out: GradsOut<'_, R>,
) -> (Vec<R>, Vec<R>) {
    let (tasks, strides) = out.by_task(s, seqs);
    let saved = saved.by_task(s, seqs);
    let params: Vec<GateParamGrads> = tasks
        .into_par_iter()
        .enumerate()
        .map_init(
            || (Chunk::new(s), Backward::new(s), Buf::zeros(s.kp() * s.vp())),
            |(chunk, work, ds), (task, mut out)| {
                load_state(s, d_last, task, ds);
                let (seq, hv) = (seqs[task / s.hv], task % s.hv);
                let params = reverse(s, x, seq, hv, &saved[task], d_o, chunk, work, ds, &mut out);
                if let (Some(dst), Some(strides)) = (out.first, strides) {
                    strides.store(ds, s.vp(), s.k, s.v, dst);
                }
                params
            },
        )
        .collect();
    sum_params(s, &params)
}

/// One task: `ds` comes in as the gradient of its final state and leaves as that of its first one.
fn reverse<R: Real>(
    s: &Spec,
    x: &Inputs<'_, R>,
    seq: Seq,
    hv: usize,
    saved: &Saved<'_, R>,
    d_o: Option<&Input<'_>>,
    ch: &mut Chunk<R>,
    work: &mut Backward<R>,
    ds: &mut [R],
    out: &mut Outputs<'_, R>,
) -> GateParamGrads {
    let (kp, vp) = (s.kp(), s.vp());
    let mut params = GateParamGrads { a_log: 0.0, dt_bias: vec![0.0; s.gate_dim()] };
    for from in (0..seq.len).step_by(s.chunk).rev() {
        let rows = s.chunk.min(seq.len - from);
        ch.panels.load(s, x, seq, hv, from, rows);
        let c = ch.panels.c;
        work.z[..c * vp].fill(R::ZERO);
        if let Some(d_o) = d_o {
            for r in 0..rows {
                d_o.row(seq.batch, seq.start + from + r, hv, &mut work.z[r * vp..][..s.v]);
            }
        }
        let y = &mut ch.oy[c * vp..][..c * vp];
        y[..rows * vp].copy_from_slice(&saved.y[from * vp..][..rows * vp]);
        y[rows * vp..].fill(R::ZERO);
        let state = &saved.states[from / s.chunk * kp * vp..][..kp * vp];
        work.run(s, ch, state, ds);
        store(s, x, seq, hv, from, ch, work, out, &mut params);
    }
    params
}

/// Writes one chunk's gradients.
fn store<R: Real>(
    s: &Spec,
    x: &Inputs<'_, R>,
    seq: Seq,
    hv: usize,
    from: usize,
    ch: &mut Chunk<R>,
    work: &mut Backward<R>,
    out: &mut Outputs<'_, R>,
    params: &mut GateParamGrads,
) {
    let (c, kp, vp) = (ch.panels.c, s.kp(), s.vp());
    let p = &mut ch.panels;
    let (dq, dp) = work.dx.split_at_mut(c * kp);
    if x.erase.is_none() {
        // The write keys erase as well.
        flashlin_tensor::cpu::vectorized(
            #[inline(always)]
            || work.dk.iter_mut().zip(dp.iter()).take(c * kp).for_each(|(k, &p)| *k += p),
        );
    }
    let (rq, rest) = p.rstd.split_at(c);
    let (rp, rk) = rest.split_at(c);
    store_keys_grad(s, p.rows, &p.x, rq, dq, from, &mut out.q);
    store_keys_grad(s, p.rows, &p.x[c * kp..], rp, dp, from, &mut out.erase);
    store_keys_grad(s, p.rows, &p.k, rk, &work.dk, from, &mut out.k);
    if let Some(dv) = &mut out.v {
        for r in 0..p.rows {
            let minus = &work.z[(c + r) * vp..][..s.v];
            dv[from + r].iter_mut().zip(minus).for_each(|(d, &z)| *d = -z);
        }
    }
    if let Some(dbeta) = &mut out.beta {
        p.store_beta_grad(s, x, seq, hv, from, &work.dbeta, dbeta);
    }
    p.store_gate_grad(s, x, seq, hv, from, &work.scores.dg, &mut out.gate, params);
}

/// Gate parameters' gradients over all sequences, in their order.
fn sum_params<R: Real>(s: &Spec, tasks: &[GateParamGrads]) -> (Vec<R>, Vec<R>) {
    let n = s.gate_dim();
    let (mut a_log, mut dt_bias) = (vec![0f64; s.hv], vec![0f64; s.hv * n]);
    for (task, g) in tasks.iter().enumerate() {
        let hv = task % s.hv;
        a_log[hv] += g.a_log;
        for (sum, &d) in dt_bias[hv * n..].iter_mut().zip(&g.dt_bias) {
            *sum += d;
        }
    }
    let cast = |x: Vec<f64>| x.into_iter().map(R::from_f64).collect();
    (cast(a_log), cast(dt_bias))
}

/// Sums key-like gradients `[rows, HV, K]` over the value heads of each key head into `out` `[rows, H, K]`.
pub(crate) fn sum_groups<R: Real>(s: &Spec, x: &[R], out: &mut [R]) {
    let group = s.hv / s.h * s.k;
    out.par_chunks_mut(s.k).zip(x.par_chunks(group)).for_each(|(out, heads)| {
        out.fill(R::ZERO);
        for head in heads.chunks_exact(s.k) {
            out.iter_mut().zip(head).for_each(|(o, &x)| *o += x);
        }
    });
}
