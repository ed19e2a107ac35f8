//! The CPU kernels: a task is one head of one sequence; tasks run in parallel and share nothing, so results do not
//! depend on the number of threads.
//!
//! Saved for the backward pass: the state at each chunk's start and `Y = v - S^T p` of each token ([`saved_sizes`]);
//! scores are computed again. Both walks save the same, so there is one backward pass.

mod backward;
mod chunk;
mod gradients;
mod input;
mod panels;
mod recurrent;
mod scores;
mod scores_grad;
mod substitute;

use rayon::prelude::*;

use self::chunk::Chunk;
pub(crate) use self::gradients::{GradsOut, backward, sum_groups};
pub(crate) use self::input::{Data, Input, Seq, StateStrides};
use self::input::{Rows, rows_by_task};
pub(crate) use self::panels::Panels;
pub(crate) use self::panels::{GateKind, Inputs, L2_EPS, Spec};
pub(crate) use self::recurrent::Token;
use crate::simd::{Buf, Real, padded};

/// How a forward pass walks through a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    Chunked,
    TokenByToken,
}

/// States `[N, HV, ...]` of all sequences with a head's elements at `strides`.
#[derive(Clone, Copy)]
pub(crate) struct States<'a, R> {
    pub data: &'a [R],
    pub strides: StateStrides,
}

/// What the backward pass needs from the forward pass, task by task.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a, R> {
    /// States at chunk starts, `[chunks, Kp, Vp]` for each task.
    pub states: &'a [R],
    /// `[T, Vp]` for each task.
    pub y: &'a [R],
}

/// Where the forward pass puts what [`Saved`] reads.
pub(crate) struct SaveTo<'a, R> {
    pub states: &'a mut [R],
    pub y: &'a mut [R],
}

/// Elements of each task's part of [`Saved`]: states and y.
fn task_sizes(s: &Spec, seq: Seq) -> [usize; 2] {
    [seq.len.div_ceil(s.chunk) * s.kp() * s.vp(), seq.len * s.vp()]
}

/// Elements of [`Saved`] for a whole call: states and y.
pub(crate) fn saved_sizes(s: &Spec, seqs: &[Seq]) -> [usize; 2] {
    seqs.iter().fold([0, 0], |[a, b], &seq| {
        let [states, y] = task_sizes(s, seq);
        [a + states * s.hv, b + y * s.hv]
    })
}

impl<'a, R> Saved<'a, R> {
    fn by_task(mut self, s: &Spec, seqs: &[Seq]) -> Vec<Saved<'a, R>> {
        let mut out = Vec::with_capacity(seqs.len() * s.hv);
        for &seq in seqs {
            let [states, y] = task_sizes(s, seq);
            for _ in 0..s.hv {
                let (mine, rest) = (self.states.split_at(states), self.y.split_at(y));
                out.push(Saved { states: mine.0, y: rest.0 });
                self = Saved { states: mine.1, y: rest.1 };
            }
        }
        out
    }
}

impl<'a, R> SaveTo<'a, R> {
    fn by_task(mut self, s: &Spec, seqs: &[Seq]) -> Vec<SaveTo<'a, R>> {
        let mut out = Vec::with_capacity(seqs.len() * s.hv);
        for &seq in seqs {
            let [states, y] = task_sizes(s, seq);
            for _ in 0..s.hv {
                let (states, rest_states) = self.states.split_at_mut(states);
                let (y, rest_y) = self.y.split_at_mut(y);
                out.push(SaveTo { states, y });
                self = SaveTo { states: rest_states, y: rest_y };
            }
        }
        out
    }
}

/// One task of the forward pass: the rows of its outputs, its final state, what it saves.
struct Task<'a, R> {
    o: Rows<'a, R>,
    last: Option<&'a mut [R]>,
    save: Option<SaveTo<'a, R>>,
}

/// Runs the recurrence over all sequences, from the states `first` (zero when absent), into `o` `[B, T, HV, V]` and,
/// where wanted, the final states `[N, HV, K V]` (a buffer and its layout) and `save`.
pub(crate) fn forward<R: Real>(
    s: &Spec,
    x: &Inputs<'_, R>,
    seqs: &[Seq],
    first: Option<States<'_, R>>,
    walk: Walk,
    o: &mut [R],
    last: Option<(&mut [R], StateStrides)>,
    save: Option<SaveTo<'_, R>>,
) {
    let (last, strides) = last.map_or((None, None), |(buffer, strides)| (Some(buffer), Some(strides)));
    let mut lasts = last.map(|l| l.chunks_exact_mut(s.k * s.v));
    let mut saves = save.map(|x| x.by_task(s, seqs).into_iter());
    let tasks: Vec<Task<'_, R>> = rows_by_task(Some(o), seqs, s.hv, s.v)
        .into_iter()
        .map(|o| Task {
            o: o.unwrap_or_default(),
            last: lasts.as_mut().and_then(Iterator::next),
            save: saves.as_mut().and_then(Iterator::next),
        })
        .collect();
    tasks.into_par_iter().enumerate().for_each_init(
        || (Chunk::new(s), Token::new(s), Buf::zeros(s.kp() * s.vp())),
        |(chunk, token, state), (index, mut task)| {
            load_state(s, first, index, state);
            run_task(s, x, seqs[index / s.hv], index % s.hv, walk, chunk, token, state, &mut task);
            if let (Some(dst), Some(strides)) = (task.last, strides) {
                strides.store(state, s.vp(), s.k, s.v, dst);
            }
        },
    );
}

/// The state that a task begins with.
fn load_state<R: Real>(s: &Spec, from: Option<States<'_, R>>, task: usize, state: &mut [R]) {
    match from {
        Some(h) => h.strides.load(&h.data[task * s.k * s.v..][..s.k * s.v], s.k, s.v, state, s.vp()),
        None => state.fill(R::ZERO),
    }
}

fn run_task<R: Real>(
    s: &Spec,
    x: &Inputs<'_, R>,
    seq: Seq,
    hv: usize,
    walk: Walk,
    ch: &mut Chunk<R>,
    token: &mut Token<R>,
    state: &mut [R],
    task: &mut Task<'_, R>,
) {
    let vp = s.vp();
    for (i, from) in (0..seq.len).step_by(s.chunk).enumerate() {
        let rows = s.chunk.min(seq.len - from);
        let c = if walk == Walk::Chunked { padded(rows) } else { rows };
        ch.panels.load_padded(s, x, seq, hv, from, rows, c);
        if let Some(save) = &mut task.save {
            save.states[i * state.len()..][..state.len()].copy_from_slice(state);
        }
        match walk {
            Walk::Chunked => ch.forward(s, state),
            Walk::TokenByToken => {
                let (o, y) = ch.oy.split_at_mut(c * vp);
                for t in 0..rows {
                    token.step(s, &ch.panels, t, state, vp, &mut y[t * vp..][..vp], &mut o[t * vp..][..vp]);
                }
            }
        }
        for r in 0..rows {
            task.o[from + r].copy_from_slice(&ch.oy[r * vp..][..s.v]);
        }
        if let Some(save) = &mut task.save {
            save.y[from * vp..][..rows * vp].copy_from_slice(&ch.oy[c * vp..][..rows * vp]);
        }
    }
}
