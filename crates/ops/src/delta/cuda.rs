//! The family on a GPU: chunked kernels (`tiles/src/delta`) where heads or nothing decay, keys erase what they write, and inputs are half
//! precision; a step kernel for single tokens; the general path of `composed` for everything else.

use flashlin_tensor::cuda::plan::Recurrence;
use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Error, Result, Saved, Tensor, Var};

use super::args::{DeltaArgs, DeltaGate};
use super::composed;
use super::cpu::L2_EPS;
use crate::kernels::{Chunked, Gates, Raw, Sizes, Step};
use crate::recurrence::{recorded, single_tokens};
use crate::{Mode, PackedSeqs, RecurrentState, SeqOutput};

/// A checked call.
pub(super) fn run(a: &DeltaArgs<'_>, seqs: &PackedSeqs) -> Result<SeqOutput> {
    if !plain(a) {
        return composed::run(a, seqs);
    }
    if let Some(out) = stepped(a, seqs)? {
        return Ok(out);
    }
    let at = (a.seqs.is_some(), a.layout);
    match Chunked::of(a.op, Recurrence::Delta, a.v.tensor(), sizes(a), seqs, at)? {
        Some(call) => chunked(a, call),
        None => composed::run(a, seqs),
    }
}

/// True where the kernels know every option.
fn plain(a: &DeltaArgs<'_>) -> bool {
    let gate = !matches!(a.gate, DeltaGate::Channel { .. });
    let beta = a.beta.is_none_or(|b| b.dims().len() == 3);
    a.v.device() != Device::Cpu && gate && beta && a.erase.is_none() && a.erase_order == Default::default()
}

fn sizes(a: &DeltaArgs<'_>) -> Sizes {
    let (q, v) = (a.q.dims(), a.v.dims());
    Sizes { b: v[0], t: v[1], h: q[2], hv: v[2], k: q[3], v: v[3] }
}

fn scale(a: &DeltaArgs<'_>) -> f64 {
    a.scale.unwrap_or((a.q.dim(3) as f64).powf(-0.5))
}

/// Log-decays and write strengths f32 `[B, T, HV]`, through their activations.
fn gates(a: &DeltaArgs<'_>) -> Result<[Option<Var>; 2]> {
    let flat = |x: Var| x.reshape(&x.dims()[..3])?.to_dtype(DType::F32);
    Ok([composed::gate(a)?.map(flat).transpose()?, composed::beta(a)?.map(flat).transpose()?])
}

/// The gates for a step: as projections where the kernel knows their activations.
fn step_gates(a: &DeltaArgs<'_>) -> Result<Gates> {
    if let DeltaGate::Scalar { g, activation: Some(x) } = a.gate
        && let (Some(a_log), Some(dt_bias), Some(beta), true) = (x.a_log, x.dt_bias, a.beta, a.beta_sigmoid)
        && x.formula == crate::gate::DecayGate::Softplus
        && [g, beta].iter().all(|x| x.dtype() == a.v.dtype())
    {
        let most = if a.allow_neg_eigval { 2.0 } else { 1.0 };
        let f32s = |x: &Var| x.tensor().to_dtype(DType::F32);
        let (a_log, dt_bias) = (f32s(a_log)?, f32s(dt_bias)?);
        return Ok(Gates::Raw(Raw { a: g.tensor().clone(), b: beta.tensor().clone(), a_log, dt_bias, most }));
    }
    let [g, beta] = gates(a)?.map(|x| x.map(|x| x.tensor().clone()));
    Ok(Gates::Ready { g, beta })
}

/// The recurrent form with a new state: rows of equal length, nothing recorded.
fn stepped(a: &DeltaArgs<'_>, seqs: &PackedSeqs) -> Result<Option<SeqOutput>> {
    let few = seqs.longest() == 1 || a.mode == Mode::Recurrent;
    if !few || a.seqs.is_some() || recorded(super::run::op_inputs(a).0) {
        return Ok(None);
    }
    let gates = step_gates(a)?;
    let step = Step::of(a.op, Recurrence::Delta, a.v.tensor(), sizes(a), &gates)?;
    let qkv = [a.q, a.k, a.v].map(Var::tensor);
    step.map(|s| {
        s.anew(qkv, &gates, (a.qk_l2norm, scale(a)), a.initial_state, a.layout, a.output_final_state)
    })
    .transpose()
}

/// Advances a state where it lies, if the call is a step that the kernel knows and the state is nobody else's.
pub(super) fn step_on(a: &DeltaArgs<'_>, state: &mut RecurrentState) -> Result<Option<Var>> {
    let s = sizes(a);
    let Some(rows) = single_tokens(a.seqs, s.b, s.t) else { return Ok(None) };
    if !plain(a) || rows.is_empty() {
        return Ok(None);
    }
    let n = a.seqs.map_or(s.b, PackedSeqs::len);
    state.check(a.op, a.layout, a.layout.dims(n, s.hv, s.k, s.v), a.v.dtype())?;
    let gates = step_gates(a)?;
    let one = Sizes { b: rows.len(), t: 1, ..s };
    let Some(step) = Step::of(a.op, Recurrence::Delta, a.v.tensor(), one, &gates)? else { return Ok(None) };
    let qkv = [a.q, a.k, a.v].map(Var::tensor);
    Ok(step.in_place(qkv, &gates, (a.qk_l2norm, scale(a)), state, &rows)?.map(Var::constant))
}

fn chunked(a: &DeltaArgs<'_>, call: Chunked) -> Result<SeqOutput> {
    let [g, beta] = gates(a)?;
    let first = a.initial_state.map(|h0| &h0.value);
    let own = |x: &Option<Var>| call.on.dense_if(x.as_ref().map(Var::tensor), DType::F32);
    let problem = Problem {
        q: a.q.saved(),
        k: a.k.saved(),
        v: a.v.saved(),
        g: own(&g)?,
        beta: own(&beta)?,
        first: first.map(|h0| call.state(h0.tensor())).transpose()?,
        norm: a.qk_l2norm,
        scale: scale(a),
        call,
    };
    let outputs = problem.forward([a.q, a.k, a.v].map(Var::tensor), a.output_final_state)?;
    let inputs = [Some(a.q), Some(a.k), Some(a.v), g.as_ref(), beta.as_ref(), first];
    let inputs: Vec<&Var> = inputs.into_iter().flatten().collect();
    let mut outputs = Var::from_op(a.op, &inputs, outputs, || Box::new(problem)).into_iter();
    let o = outputs.next().ok_or_else(|| Error::invalid(a.op, "o", "was not computed"))?;
    let final_state = outputs.next().map(|value| RecurrentState { value, layout: a.layout });
    Ok(SeqOutput { o, final_state })
}

/// What the graph keeps: states, scores and the triangular inverses are computed again.
struct Problem {
    call: Chunked,
    q: Saved,
    k: Saved,
    v: Saved,
    /// f32 `[B, T, HV]`.
    g: Option<Tensor>,
    /// f32 `[B, T, HV]`.
    beta: Option<Tensor>,
    /// As the kernels read it.
    first: Option<Tensor>,
    norm: bool,
    scale: f64,
}

impl Problem {
    fn operands(&self, [q, k, v]: [&Tensor; 3]) -> Result<flashlin_tensor::cuda::Operands> {
        let mut x = self.call.operands(q, k, v, self.scale)?;
        x.optional("g", "has_g", self.g.as_ref())?;
        x.optional("beta", "has_beta", self.beta.as_ref())?;
        x.optional("h0", "has_h0", self.first.as_ref())?;
        x.int("norm", usize::from(self.norm))?;
        x.float("eps", L2_EPS);
        Ok(x)
    }

    fn forward(&self, qkv: [&Tensor; 3], want_state: bool) -> Result<Vec<Tensor>> {
        self.call.forward(self.operands(qkv)?, self.first.is_some(), want_state)
    }
}

impl Backward for Problem {
    fn backward(
        self: Box<Self>,
        ctx: &mut BackwardCtx<'_>,
        mut grads: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let d = (ctx.or_zeros(0, &mut grads)?, grads.get_mut(1).and_then(Option::take));
        let at = 3 + usize::from(self.g.is_some()) + usize::from(self.beta.is_some());
        let want_first = self.first.is_some() && ctx.needs(at);
        let (dg, dbeta) = (self.call.gates()?, self.call.gates()?);
        let qkv = [self.q.get()?, self.k.get()?, self.v.get()?];
        let mut x = self.operands(qkv.each_ref())?;
        drop(qkv);
        x.array("dg", &dg)?;
        x.array("dbeta", &dbeta)?;
        let (qkv, d_first) = self.call.backward(x, d, self.first.is_some(), want_first)?;
        let mut out = Vec::from(qkv);
        out.extend(self.g.is_some().then_some(Some(dg)));
        out.extend(self.beta.is_some().then_some(Some(dbeta)));
        out.extend(self.first.is_some().then_some(d_first));
        Ok(out)
    }
}
