//! The family on a GPU: chunked kernels (`tiles/src/decay`) where only heads or tokens decay and inputs are half precision; the
//! general path of `composed` for everything else.

use flashlin_tensor::cuda::plan::{Gate, Recurrence};
use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Result, Saved, Tensor, Var};

use super::api::{DecayArgs, OP, validate};
use super::composed;
use crate::kernels::{Chunked, Gates, Sizes, Step};
use crate::recurrence::{recorded, single_tokens};
use crate::{Mode, PackedSeqs, RecurrentState, SeqOutput};

/// A checked call.
pub(super) fn run(a: &DecayArgs<'_>, s: Sizes, seqs: &PackedSeqs) -> Result<SeqOutput> {
    // The kernels' gradient of a gate comes token by token; summed over all tokens of a head, its rounding would be most of what is left.
    let channels = by_channel(a) || (recorded(a.g_gamma) && a.g_gamma.is_some_and(Var::is_tracked));
    let gate = match (a.g, a.g_gamma) {
        (None, None) => Gate::None,
        (None, Some(_)) => Gate::Head,
        _ => Gate::Token,
    };
    let at = (a.seqs.is_some(), a.layout);
    let general = channels || a.q.device() == Device::Cpu;
    if !general && let Some(out) = stepped(a, s, seqs)? {
        return Ok(out);
    }
    let call = match general {
        true => None,
        false => Chunked::of(OP, Recurrence::Decay(gate), a.v.tensor(), s, seqs, at)?,
    };
    let Some(call) = call else { return composed::run(a, s, seqs) };
    let g = one_gate(a)?;
    let first = a.initial_state.map(|h0| &h0.value);
    let problem = Problem {
        q: a.q.saved(),
        k: a.k.saved(),
        v: a.v.saved(),
        g: call.on.dense_if(g.as_ref().map(Var::tensor), DType::F32)?,
        first: first.map(|h0| call.state(h0.tensor())).transpose()?,
        scale: scale(a),
        call,
    };
    let outputs = problem.forward([a.q, a.k, a.v].map(Var::tensor), a.output_final_state)?;
    let inputs: Vec<&Var> =
        [Some(a.q), Some(a.k), Some(a.v), g.as_ref(), first].into_iter().flatten().collect();
    let mut outputs = Var::from_op(OP, &inputs, outputs, || Box::new(problem)).into_iter();
    let o = outputs.next().ok_or_else(|| flashlin_tensor::Error::invalid(OP, "o", "was not computed"))?;
    let final_state = outputs.next().map(|value| RecurrentState { value, layout: a.layout });
    Ok(SeqOutput { o, final_state })
}

/// True where only the general path knows an option.
fn by_channel(a: &DecayArgs<'_>) -> bool {
    a.gk.is_some() || a.gv.is_some() || a.bonus.is_some()
}

/// f32 `[B, T, HV]` or `[HV]`. The kernels know one gate: both together decay by their sum, through the graph.
fn one_gate(a: &DecayArgs<'_>) -> Result<Option<Var>> {
    Ok(match (a.g, a.g_gamma) {
        (Some(g), Some(gamma)) => Some(g.to_dtype(DType::F32)?.add(&gamma.to_dtype(DType::F32)?)?),
        (one, other) => one.or(other).map(|g| g.to_dtype(DType::F32)).transpose()?,
    })
}

/// The gates of a step: one for each token.
fn step_gates(a: &DecayArgs<'_>, s: Sizes) -> Result<Gates> {
    let g = one_gate(a)?.map(|g| g.tensor().expand(&[s.b, s.t, s.hv])).transpose()?;
    Ok(Gates::Ready { g, beta: None })
}

fn qkv<'a>(a: &DecayArgs<'a>) -> [&'a Tensor; 3] {
    [a.q, a.k, a.v].map(Var::tensor)
}

fn scale(a: &DecayArgs<'_>) -> f64 {
    a.scale.unwrap_or((a.q.dim(3) as f64).powf(-0.5))
}

/// The recurrent form with a new state: rows of equal length, nothing recorded.
fn stepped(a: &DecayArgs<'_>, s: Sizes, seqs: &PackedSeqs) -> Result<Option<SeqOutput>> {
    let few = seqs.longest() == 1 || a.mode == Mode::Recurrent;
    if !few || a.seqs.is_some() || recorded(inputs(a)) {
        return Ok(None);
    }
    let gates = step_gates(a, s)?;
    let step = Step::of(OP, Recurrence::Decay(Gate::Token), a.v.tensor(), s, &gates)?;
    step.map(|x| x.anew(qkv(a), &gates, (false, scale(a)), a.initial_state, a.layout, a.output_final_state))
        .transpose()
}

fn inputs<'a>(a: &DecayArgs<'a>) -> impl Iterator<Item = &'a Var> {
    let optional = [a.g, a.g_gamma, a.gk, a.gv, a.bonus, a.initial_state.map(|s| &s.value)];
    [a.q, a.k, a.v].into_iter().chain(optional.into_iter().flatten())
}

/// Advances a state where it lies, if the call is one token for each row, the kernel knows it, and the state is nobody else's.
pub(crate) fn step_on(a: &DecayArgs<'_>, state: &mut RecurrentState) -> Result<Option<Var>> {
    let on_gpu = a.v.device() != Device::Cpu && a.mode.resolve(1) == Mode::Recurrent;
    if !on_gpu || by_channel(a) || recorded(inputs(a)) {
        return Ok(None);
    }
    let s = validate(a)?;
    let Some(rows) = single_tokens(a.seqs, s.b, s.t).filter(|rows| !rows.is_empty()) else { return Ok(None) };
    let n = a.seqs.map_or(s.b, PackedSeqs::len);
    state.check(OP, a.layout, a.layout.dims(n, s.hv, s.k, s.v), a.v.dtype())?;
    let one = Sizes { b: rows.len(), t: 1, ..s };
    let gates = step_gates(a, s)?;
    let step = Step::of(OP, Recurrence::Decay(Gate::Token), a.v.tensor(), one, &gates)?;
    let Some(step) = step else { return Ok(None) };
    Ok(step.in_place(qkv(a), &gates, (false, scale(a)), state, &rows)?.map(Var::constant))
}

/// What the graph keeps: states and scores are computed again.
struct Problem {
    call: Chunked,
    q: Saved,
    k: Saved,
    v: Saved,
    /// f32 `[B, T, HV]` or `[HV]`.
    g: Option<Tensor>,
    /// As the kernels read it.
    first: Option<Tensor>,
    scale: f64,
}

impl Problem {
    fn operands(&self, [q, k, v]: [&Tensor; 3]) -> Result<flashlin_tensor::cuda::Operands> {
        let mut x = self.call.operands(q, k, v, self.scale)?;
        x.optional("g", "has_g", self.g.as_ref())?;
        x.optional("h0", "has_h0", self.first.as_ref())?;
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
        let want_first = self.first.is_some() && ctx.needs(3 + usize::from(self.g.is_some()));
        let dg = (self.g.is_some() && ctx.needs(3)).then(|| self.call.gates()).transpose()?;
        let qkv = [self.q.get()?, self.k.get()?, self.v.get()?];
        let mut x = self.operands(qkv.each_ref())?;
        drop(qkv);
        x.optional("dg", "has_dg", dg.as_ref())?;
        let (qkv, d_first) = self.call.backward(x, d, self.first.is_some(), want_first)?;
        let mut out = Vec::from(qkv);
        if let Some(g) = &self.g {
            out.push(dg.map(|dg| if g.rank() == 1 { dg.sum(&[0, 1], false) } else { Ok(dg) }).transpose()?);
        }
        out.extend(self.first.is_some().then_some(d_first));
        Ok(out)
    }
}
