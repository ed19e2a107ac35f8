//! From checked arguments to kernels: the forward call, its recording, and the backward call.

use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Element, Error, Real, Result, Tensor, Var};
use half::{bf16, f16};

use super::args::{Call, DeltaArgs, DeltaGate};
use super::cpu::{
    self, Data, GradsOut, Input, Inputs, SaveTo, Saved, StateStrides, States, Walk, saved_sizes, sum_groups,
};
use crate::simd;
use crate::{Mode, PackedSeqs, RecurrentState, SeqOutput, composed};

/// Reads a `[B, T, heads]` or `[B, T, heads, n]` tensor with contiguous rows.
pub(super) fn input<'a>(x: &'a Tensor, arg: &'static str, op: &'static str) -> Result<Input<'a>> {
    let data = match x.dtype() {
        DType::F64 => Data::F64(x.strided::<f64>()?.data),
        DType::F32 => Data::F32(x.strided::<f32>()?.data),
        DType::BF16 => Data::BF16(x.strided::<bf16>()?.data),
        DType::F16 => Data::F16(x.strided::<f16>()?.data),
        other => return Err(Error::dtype(op, arg, other, "a float dtype")),
    };
    let s = x.strides();
    Ok(Input { data, strides: [s[0], s[1], s[2]], n: if x.rank() > 3 { x.dim(3) } else { 1 } })
}

/// Small parameters in the kernel's type.
fn params<R: Real>(x: Option<&Tensor>, f: impl Fn(f64) -> f64) -> Result<Vec<R>> {
    let values = x.map_or_else(|| Ok(Vec::new()), Tensor::to_f64_vec)?;
    Ok(values.into_iter().map(|v| R::from_f64(f(v))).collect())
}

/// Gate parameters as the kernels read them: `exp(A_log)` and the bias.
pub(super) struct GateParams<R> {
    pub a: Vec<R>,
    pub dt_bias: Vec<R>,
}

impl Call {
    pub(super) fn gate_params<R: Real>(&self) -> Result<GateParams<R>> {
        let mut a = params(self.a_log.as_ref(), f64::exp)?;
        if a.is_empty() {
            a = vec![R::ONE; self.spec.hv];
        }
        Ok(GateParams { a, dt_bias: params(self.dt_bias.as_ref(), |x| x)? })
    }

    fn inputs<'a, R: Real>(&'a self, p: &'a GateParams<R>) -> Result<Inputs<'a, R>> {
        let optional = |x: &'a Option<Tensor>, arg| x.as_ref().map(|x| input(x, arg, self.op)).transpose();
        Ok(Inputs {
            q: input(&self.q, "q", self.op)?,
            k: input(&self.k, "k", self.op)?,
            erase: optional(&self.erase, "erase")?,
            v: input(&self.v, "v", self.op)?,
            beta: optional(&self.beta, "beta")?,
            gate: optional(&self.gate, "g")?,
            a: &p.a,
            dt_bias: &p.dt_bias,
        })
    }

    pub(super) fn strides(&self) -> StateStrides {
        let (key, value) = self.layout.strides(self.spec.k, self.spec.v);
        StateStrides { key, value }
    }

    fn state_dims(&self) -> [usize; 4] {
        self.layout.dims(self.seqs.len(), self.spec.hv, self.spec.k, self.spec.v)
    }

    /// Outputs (in the kernel's dtype), final states where wanted, saved states and y where wanted.
    fn forward<R: simd::Real>(
        &self,
        last: bool,
        save: bool,
    ) -> Result<(Tensor, Option<Tensor>, Option<[Tensor; 2]>)> {
        let s = &self.spec;
        let empty = |dims: &[usize]| Tensor::empty(dims, R::DTYPE, &self.device);
        let mut o = empty(&[self.batch, self.len, s.hv, s.v])?;
        let mut last = if last { Some(empty(&self.state_dims())?) } else { None };
        let mut saved = match saved_sizes(s, &self.seqs) {
            [states, y] if save => Some([empty(&[states])?, empty(&[y])?]),
            _ => None,
        };
        let gate = self.gate_params::<R>()?;
        let first = self.first.as_ref().map(|f| f.as_slice::<R>()).transpose()?;
        let walk = if self.mode == Mode::Recurrent { Walk::TokenByToken } else { Walk::Chunked };
        let save_to = match &mut saved {
            Some([states, y]) => Some(SaveTo { states: states.as_mut_slice()?, y: y.as_mut_slice()? }),
            None => None,
        };
        let last_to = match &mut last {
            Some(l) => Some((l.as_mut_slice()?, self.strides())),
            None => None,
        };
        cpu::forward(
            s,
            &self.inputs(&gate)?,
            &self.seqs,
            first.map(|data| States { data, strides: self.strides() }),
            walk,
            o.as_mut_slice()?,
            last_to,
            save_to,
        );
        Ok((o, last, saved))
    }
}

/// Position of each optional input among the op's inputs.
#[derive(Clone, Copy, Default)]
pub(super) struct Slots {
    erase: Option<usize>,
    beta: Option<usize>,
    gate: Option<usize>,
    a_log: Option<usize>,
    dt_bias: Option<usize>,
    first: Option<usize>,
    count: usize,
}

pub(super) fn op_inputs<'a>(a: &DeltaArgs<'a>) -> (Vec<&'a Var>, Slots) {
    let (gate, act) = match a.gate {
        DeltaGate::None => (None, None),
        DeltaGate::Scalar { g, activation } | DeltaGate::Channel { g, activation } => (Some(g), activation),
    };
    let mut vars = vec![a.q, a.k, a.v];
    let mut add = |x: Option<&'a Var>| {
        x.map(|x| {
            vars.push(x);
            vars.len() - 1
        })
    };
    let mut slots = Slots {
        erase: add(a.erase),
        beta: add(a.beta),
        gate: add(gate),
        a_log: add(act.and_then(|x| x.a_log)),
        dt_bias: add(act.and_then(|x| x.dt_bias)),
        first: add(a.initial_state.map(|s| &s.value)),
        count: 0,
    };
    slots.count = vars.len();
    (vars, slots)
}

/// Runs a call and records it where something is tracked.
pub(super) fn run(a: &DeltaArgs<'_>) -> Result<SeqOutput> {
    let call = Call::new(a)?;
    if call.device != Device::Cpu || composed::forced() {
        let seqs = PackedSeqs::resolve(call.op, a.seqs, call.batch, call.len)?;
        return super::cuda::run(a, &seqs);
    }
    let (vars, slots) = op_inputs(a);
    let save = flashlin_tensor::grad_enabled() && vars.iter().any(|v| v.is_tracked());
    let (o, last, saved) = match call.dtype.accumulator() {
        DType::F64 => call.forward::<f64>(a.output_final_state, save)?,
        _ => call.forward::<f32>(a.output_final_state, save)?,
    };
    let mut outputs = vec![o.to_dtype(call.dtype)?];
    outputs.extend(last);
    let layout = call.layout;
    let op = call.op;
    let mut outputs = match saved {
        Some(saved) => Var::from_op(op, &vars, outputs, || Box::new(DeltaBackward { call, slots, saved })),
        None => outputs.into_iter().map(Var::constant).collect(),
    };
    let final_state = (outputs.len() > 1).then(|| outputs.pop()).flatten();
    let o = outputs.pop().ok_or_else(|| Error::invalid(op, "o", "was not computed"))?;
    Ok(SeqOutput { o, final_state: final_state.map(|value| RecurrentState { value, layout }) })
}

/// What a recorded call keeps: its inputs, the states at chunk starts and `Y`.
struct DeltaBackward {
    call: Call,
    slots: Slots,
    saved: [Tensor; 2],
}

impl Backward for DeltaBackward {
    fn backward(
        self: Box<Self>,
        ctx: &mut BackwardCtx<'_>,
        grads: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        match self.call.dtype.accumulator() {
            DType::F64 => self.typed::<f64>(ctx, &grads),
            _ => self.typed::<f32>(ctx, &grads),
        }
    }
}

/// A gradient buffer that is wanted, or not.
struct Buffer(Option<Tensor>);

impl Buffer {
    fn new<R: Element>(on: bool, dims: &[usize], call: &Call) -> Result<Self> {
        Ok(Buffer(if on { Some(Tensor::empty(dims, R::DTYPE, &call.device)?) } else { None }))
    }

    fn slice<R: Element>(&mut self) -> Result<Option<&mut [R]>> {
        self.0.as_mut().map(Tensor::as_mut_slice).transpose()
    }
}

impl DeltaBackward {
    fn typed<R: simd::Real>(
        &self,
        ctx: &BackwardCtx<'_>,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (call, slots, s) = (&self.call, self.slots, &self.call.spec);
        let needs = |slot: Option<usize>| slot.is_some_and(|i| ctx.needs(i));
        let (b, t) = (call.batch, call.len);
        let keys = [b, t, s.hv, s.k];
        let mut q = Buffer::new::<R>(ctx.needs(0), &keys, call)?;
        let mut k = Buffer::new::<R>(ctx.needs(1), &keys, call)?;
        let mut v = Buffer::new::<R>(ctx.needs(2), call.v.dims(), call)?;
        let mut erase = Buffer::new::<R>(needs(slots.erase), &keys, call)?;
        let dims = |x: &Option<Tensor>| x.as_ref().map_or(Vec::new(), |x| x.dims().to_vec());
        let mut beta = Buffer::new::<R>(needs(slots.beta), &dims(&call.beta), call)?;
        let mut gate = Buffer::new::<R>(needs(slots.gate), &dims(&call.gate), call)?;
        let mut first = Buffer::new::<R>(needs(slots.first), &call.state_dims(), call)?;

        let d_o = grads[0].as_ref().map(Tensor::contiguous).transpose()?;
        let d_o = d_o.as_ref().map(|x| input(x, "o", call.op)).transpose()?;
        let d_last = grads.get(1).and_then(Option::as_ref).map(Tensor::contiguous).transpose()?;
        let d_last = d_last.as_ref().map(|x| x.as_slice::<R>()).transpose()?;
        let params = call.gate_params::<R>()?;
        let out = GradsOut {
            q: q.slice()?,
            k: k.slice()?,
            erase: erase.slice()?,
            v: v.slice()?,
            beta: beta.slice()?,
            gate: gate.slice()?,
            first: first.slice()?.map(|f| (f, call.strides())),
        };
        let saved = Saved { states: self.saved[0].as_slice()?, y: self.saved[1].as_slice()? };
        let d_last = d_last.map(|data| States { data, strides: call.strides() });
        let inputs = call.inputs(&params)?;
        let (a_log, dt_bias) = cpu::backward::<R>(s, &inputs, &call.seqs, saved, d_o.as_ref(), d_last, out);

        let mut result: Vec<Option<Tensor>> = vec![None; slots.count];
        result[0] = self.keys_grad::<R>(q, call.q.dtype())?;
        result[1] = self.keys_grad::<R>(k, call.k.dtype())?;
        result[2] = v.0.map(|x| x.to_dtype(call.dtype)).transpose()?;
        if let (Some(i), Some(x)) = (slots.erase, &call.erase) {
            result[i] = self.keys_grad::<R>(erase, x.dtype())?;
        }
        for (slot, x, grad) in [(slots.beta, &call.beta, beta), (slots.gate, &call.gate, gate)] {
            if let (Some(i), Some(x), Some(grad)) = (slot, x, grad.0) {
                result[i] = Some(grad.to_dtype(x.dtype())?);
            }
        }
        for (slot, x, grad) in [(slots.a_log, &call.a_log, a_log), (slots.dt_bias, &call.dt_bias, dt_bias)] {
            if let (Some(i), Some(x)) = (slot, x) {
                result[i] = Some(Tensor::from_vec(grad, x.dims())?.to_dtype(x.dtype())?);
            }
        }
        if let Some(i) = slots.first {
            result[i] = first.0;
        }
        Ok(result)
    }

    /// A key-like gradient, summed over the value heads that share a key head.
    fn keys_grad<R: simd::Real>(&self, grad: Buffer, dtype: DType) -> Result<Option<Tensor>> {
        let s = &self.call.spec;
        let Some(grad) = grad.0 else { return Ok(None) };
        if s.h == s.hv {
            return Ok(Some(grad.to_dtype(dtype)?));
        }
        let mut out = Tensor::empty(self.call.q.dims(), R::DTYPE, &self.call.device)?;
        sum_groups::<R>(s, grad.as_slice()?, out.as_mut_slice()?);
        Ok(Some(out.to_dtype(dtype)?))
    }
}
