//! The step of a call whose state belongs to the caller: one token for each row, written where the state lies.

use flashlin_tensor::{DType, Device, Result, Tensor, Var};

use super::args::{DeltaArgs, DeltaGate, GateActivation};
use super::run::op_inputs;
use super::step::{DeltaStep, StepInputs};
use crate::recurrence::{by_rows, recorded, single_tokens};
use crate::{Mode, RecurrentState};

/// Advances `state` in place and returns the output `[B, T, HV, V]`, if the call is a step: one token for each row that
/// has one (rows of a packed call may have none), in recurrent form, nothing recorded, and the state nobody else's.
/// None otherwise, with nothing done.
///
/// # Errors
/// As [`delta_rule`](super::delta_rule).
pub fn delta_step_on(args: &DeltaArgs<'_>, state: &mut RecurrentState) -> Result<Option<Var>> {
    let [b, t, ..] = *args.v.dims() else { return Ok(None) };
    let Some(slots) = single_tokens(args.seqs, b, t) else { return Ok(None) };
    let step_form = args.mode.resolve(1) == Mode::Recurrent && args.v.dtype() != DType::F64;
    if !step_form || recorded(op_inputs(args).0) {
        return Ok(None);
    }
    if args.v.device() != Device::Cpu {
        return super::cuda::step_on(args, state);
    }
    let x = Rows::new(args)?;
    let x = x.args(args);
    let rows = args.seqs.map_or(b, |s| s.len());
    let mut step = DeltaStep::new(&x, rows)?;
    state.check(args.op, args.layout, step.pool_dims(), args.v.dtype())?;
    let Some(pool) = state.value.exclusive_mut() else { return Ok(None) };
    let gate = match x.gate {
        DeltaGate::None => None,
        DeltaGate::Scalar { g, .. } | DeltaGate::Channel { g, .. } => Some(g.tensor()),
    };
    let inputs = StepInputs {
        q: x.q.tensor(),
        k: x.k.tensor(),
        v: x.v.tensor(),
        erase: x.erase.map(Var::tensor),
        beta: x.beta.map(Var::tensor),
        gate,
    };
    let mut o = Tensor::empty(args.v.dims(), DType::F32, &args.v.device())?;
    step.run(&inputs, pool.as_mut_slice()?, &slots, o.as_mut_slice()?)?;
    Ok(Some(o.to_dtype(args.v.dtype())?.into()))
}

/// A call's inputs with one token a row.
struct Rows {
    q: Var,
    k: Var,
    v: Var,
    erase: Option<Var>,
    beta: Option<Var>,
    gate: Option<Var>,
}

impl Rows {
    fn new(a: &DeltaArgs<'_>) -> Result<Rows> {
        let rows = |x: &Var| Ok(Var::constant(by_rows(x.tensor(), a.seqs.is_some())?));
        let gate = match a.gate {
            DeltaGate::None => None,
            DeltaGate::Scalar { g, .. } | DeltaGate::Channel { g, .. } => Some(g),
        };
        Ok(Rows {
            q: rows(a.q)?,
            k: rows(a.k)?,
            v: rows(a.v)?,
            erase: a.erase.map(rows).transpose()?,
            beta: a.beta.map(rows).transpose()?,
            gate: gate.map(rows).transpose()?,
        })
    }

    fn args<'a>(&'a self, a: &DeltaArgs<'a>) -> DeltaArgs<'a> {
        let gate = |activation: Option<GateActivation<'a>>, make: fn(_, _) -> DeltaGate<'a>| match &self.gate
        {
            Some(g) => make(g, activation),
            None => DeltaGate::None,
        };
        let gate = match a.gate {
            DeltaGate::None => DeltaGate::None,
            DeltaGate::Scalar { activation, .. } => {
                gate(activation, |g, activation| DeltaGate::Scalar { g, activation })
            }
            DeltaGate::Channel { activation, .. } => {
                gate(activation, |g, activation| DeltaGate::Channel { g, activation })
            }
        };
        DeltaArgs {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            erase: self.erase.as_ref(),
            beta: self.beta.as_ref(),
            gate,
            seqs: None,
            initial_state: None,
            output_final_state: false,
            ..*a
        }
    }
}
