//! One decoding step on a pool of states: many requests, each with a slot of the pool, in place.
//!
//! For serving: everything is allocated when the step is made; a step writes the states and the caller's buffer and
//! nothing else. A row's numbers depend on that row alone, not on its neighbours in the batch.

use flashlin_tensor::{Error, Result, Tensor};
use rayon::prelude::*;

use super::args::{Call, DeltaArgs};
use super::cpu::{GateKind, Inputs, Panels, Seq, Spec, StateStrides, Token};
use super::run::{GateParams, input};
use crate::StateLayout;
use crate::simd::Buf;

/// One token for each active request `[R, 1, ...]`: see [`DeltaArgs`](super::DeltaArgs) for the shapes. What is absent here
/// must be absent in the arguments that the step was made from, and the other way round.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a> {
    /// Queries `[R, 1, H, K]`.
    pub q: &'a Tensor,
    /// Write keys `[R, 1, H, K]`.
    pub k: &'a Tensor,
    /// Values `[R, 1, HV, V]`.
    pub v: &'a Tensor,
    /// Erase keys `[R, 1, H, K]`.
    pub erase: Option<&'a Tensor>,
    /// Write strengths `[R, 1, HV]` or `[R, 1, HV, V]`.
    pub beta: Option<&'a Tensor>,
    /// Gate `[R, 1, HV]` or `[R, 1, HV, K]`.
    pub gate: Option<&'a Tensor>,
}

/// A prepared decoding step: sizes, options and gate parameters of a call, and its working memory.
pub struct DeltaStep {
    op: &'static str,
    spec: Spec,
    layout: StateLayout,
    strides: StateStrides,
    gate: GateParams<f32>,
    has_erase: bool,
    has_beta: bool,
    /// Which row uses a slot.
    row_of: Vec<Option<usize>>,
    work: Vec<Work>,
}

/// Memory of one head of one slot.
struct Work {
    panels: Panels<f32>,
    token: Token<f32>,
    /// The state as a padded panel, where the pool's layout is another.
    state: Buf<f32>,
    y: Buf<f32>,
    o: Buf<f32>,
}

/// States (of all slots together) below this many elements are stepped on the calling thread.
const PARALLEL_FROM: usize = 1 << 16;

impl DeltaStep {
    /// Prepares steps on a pool of `slots` states `[slots, HV, K, V]` (or `[slots, HV, V, K]`, as `args.layout` says).
    /// Sizes, options, the gate's activation and its parameters come from `args`, whose tensors serve as an example;
    /// its states, sequences, mode and chunk size do not matter.
    ///
    /// # Errors
    /// As [`delta_rule`](super::delta_rule), and for f64, which has no pool form.
    pub fn new(args: &DeltaArgs<'_>, slots: usize) -> Result<DeltaStep> {
        args.v.device().require_cpu(args.op)?;
        let call = Call::new(&DeltaArgs { initial_state: None, seqs: None, ..*args })?;
        if call.dtype.accumulator() != flashlin_tensor::DType::F32 {
            return Err(Error::unsupported(
                call.op,
                "a state pool for f64 inputs",
                "f32, bf16 and f16 inputs",
            ));
        }
        let (spec, strides) = (call.spec, call.strides());
        let in_place = args.layout == StateLayout::KV && spec.v == spec.vp();
        let work = |_| Work {
            panels: Panels::for_tokens(&spec),
            token: Token::new(&spec),
            state: Buf::zeros(if in_place { 0 } else { spec.kp() * spec.vp() }),
            y: Buf::zeros(spec.vp()),
            o: Buf::zeros(spec.vp()),
        };
        Ok(DeltaStep {
            op: call.op,
            spec,
            layout: args.layout,
            strides,
            gate: call.gate_params()?,
            has_erase: call.erase.is_some(),
            has_beta: call.beta.is_some(),
            row_of: vec![None; slots],
            work: (0..slots * spec.hv).map(work).collect(),
        })
    }

    /// Shape of the pool.
    pub fn pool_dims(&self) -> [usize; 4] {
        self.layout.dims(self.row_of.len(), self.spec.hv, self.spec.k, self.spec.v)
    }

    /// Elements of the pool.
    pub fn pool_len(&self) -> usize {
        self.pool_dims().iter().product()
    }

    /// One token for each row: `slots[r]` is the slot of row r. Updates those states in `pool` and writes `out`
    /// `[R, HV, V]`.
    ///
    /// # Errors
    /// When a shape, a slot (out of range or used twice) or a buffer's length does not fit; nothing was written then.
    pub fn run(
        &mut self,
        x: &StepInputs<'_>,
        pool: &mut [f32],
        slots: &[usize],
        out: &mut [f32],
    ) -> Result<()> {
        self.check(x, pool, slots, out)?;
        let DeltaStep { op, spec, strides, gate, row_of, work, .. } = self;
        let inputs = Inputs {
            q: input(x.q, "q", op)?,
            k: input(x.k, "k", op)?,
            erase: x.erase.map(|t| input(t, "erase", op)).transpose()?,
            v: input(x.v, "v", op)?,
            beta: x.beta.map(|t| input(t, "beta", op)).transpose()?,
            gate: x.gate.map(|t| input(t, "g", op)).transpose()?,
            a: &gate.a,
            dt_bias: &gate.dt_bias,
        };
        row_of.fill(None);
        for (row, &slot) in slots.iter().enumerate() {
            row_of[slot] = Some(row);
        }
        let size = spec.k * spec.v;
        let step = |(i, (work, state)): (usize, (&mut Work, &mut [f32]))| {
            if let Some(row) = row_of[i / spec.hv] {
                work.step(spec, &inputs, *strides, row, i % spec.hv, state);
            }
        };
        if slots.len() * spec.hv * size < PARALLEL_FROM {
            work.iter_mut().zip(pool.chunks_exact_mut(size)).enumerate().for_each(step);
        } else {
            work.par_iter_mut().zip(pool.par_chunks_exact_mut(size)).enumerate().for_each(step);
        }
        for (row, out) in out.chunks_exact_mut(spec.hv * spec.v).enumerate() {
            let heads = &work[slots[row] * spec.hv..][..spec.hv];
            for (out, head) in out.chunks_exact_mut(spec.v).zip(heads) {
                out.copy_from_slice(&head.o[..spec.v]);
            }
        }
        Ok(())
    }

    fn check(&self, x: &StepInputs<'_>, pool: &[f32], slots: &[usize], out: &[f32]) -> Result<()> {
        let (op, s, r) = (self.op, &self.spec, slots.len());
        let shape = |arg, t: &Tensor, want: &[usize]| {
            let rows = t.rank() < 4 || t.dim(3) <= 1 || t.strides()[3] == 1;
            match t.dims() == want && rows {
                true => Ok(()),
                false => Err(Error::shape(op, arg, t.dims(), format!("{want:?}, contiguous along the last"))),
            }
        };
        let optional = |arg, t: Option<&Tensor>, want: Option<&[usize]>| match (t, want) {
            (Some(t), Some(want)) => shape(arg, t, want),
            (None, None) => Ok(()),
            (Some(t), None) => Err(Error::shape(op, arg, t.dims(), "none: the step was prepared without it")),
            (None, Some(want)) => Err(Error::shape(op, arg, &[], format!("{want:?}"))),
        };
        shape("q", x.q, &[r, 1, s.h, s.k])?;
        shape("k", x.k, &[r, 1, s.h, s.k])?;
        shape("v", x.v, &[r, 1, s.hv, s.v])?;
        optional("erase", x.erase, self.has_erase.then_some(&[r, 1, s.h, s.k]))?;
        let beta: &[usize] = if s.beta_channel { &[r, 1, s.hv, s.v] } else { &[r, 1, s.hv] };
        optional("beta", x.beta, self.has_beta.then_some(beta))?;
        let channel = s.gate == GateKind::Channel;
        let gate: &[usize] = if channel { &[r, 1, s.hv, s.k] } else { &[r, 1, s.hv] };
        optional("g", x.gate, (s.gate_dim() > 0).then_some(gate))?;
        if pool.len() != self.pool_len() {
            return Err(Error::shape(op, "pool", &[pool.len()], format!("{} elements", self.pool_len())));
        }
        if out.len() != r * s.hv * s.v {
            return Err(Error::shape(op, "out", &[out.len()], format!("{} elements", r * s.hv * s.v)));
        }
        for (row, &slot) in slots.iter().enumerate() {
            if slot >= self.row_of.len() {
                let why = format!("holds {slot}, expected below the {} slots", self.row_of.len());
                return Err(Error::invalid(op, "slots", why));
            }
            if slots[..row].contains(&slot) {
                return Err(Error::invalid(
                    op,
                    "slots",
                    format!("holds {slot} twice, expected one row a slot"),
                ));
            }
        }
        Ok(())
    }
}

impl Work {
    fn step(
        &mut self,
        s: &Spec,
        x: &Inputs<'_, f32>,
        at: StateStrides,
        row: usize,
        hv: usize,
        state: &mut [f32],
    ) {
        let Work { panels, token, state: panel, y, o } = self;
        panels.load_padded(s, x, Seq { batch: row, start: 0, len: 1 }, hv, 0, 1, 1);
        if panel.is_empty() {
            return token.step(s, panels, 0, state, s.v, y, o);
        }
        at.load(state, s.k, s.v, panel, s.vp());
        token.step(s, panels, 0, panel, s.vp(), y, o);
        at.store(panel, s.vp(), s.k, s.v, state);
    }
}
