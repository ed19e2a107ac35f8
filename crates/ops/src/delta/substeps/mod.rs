//! Several updates of the state a token, as that many tokens of the delta rule: DeltaProduct (n rank-one steps a token) and the
//! generalised delta rule with a transition of its own two key streams (DPLR, IPLR).
//!
//! Policy: a sub-step is a token of [`delta_rule`], with the decay in the first and the query in the last, so chunks, gradients, layouts and
//! devices are the delta rule's. A single token of a state that is nobody else's goes sub-step by sub-step, in place.

pub(crate) mod conform;
pub mod reference;
#[cfg(test)]
mod tests;

use flashlin_tensor::{DType, Error, Result, Tensor, Var};

use super::{DeltaArgs, DeltaGate, EraseOrder, delta_rule, delta_step_on};
use crate::recurrence::{advanced, recorded, single_tokens};
use crate::{Mode, OpInfo, PackedSeqs, Recurrence, RecurrentState, SeqOutput, StateLayout};

/// Registry entry of [`delta_product`].
pub static DELTA_PRODUCT: OpInfo = OpInfo {
    name: "delta_product",
    summary: "S <- e^g S; n times S += k_i (beta_i (v_i - S^T k_i))^T; o = scale S^T q",
    source: "arXiv:2502.10297",
    grads: &["q", "k", "v", "beta", "g", "initial_state"],
    ..super::COMMON
};

/// Registry entry of [`dplr`].
pub static DPLR: OpInfo = OpInfo {
    name: "dplr",
    summary: "S <- diag(e^g) S + b (S^T a)^T + k v^T; o = scale S^T q (RWKV-7)",
    source: "arXiv:2503.14456",
    grads: &["q", "k", "v", "a", "b", "g", "initial_state"],
    ..super::COMMON
};

/// Registry entry of [`dplr`] without a decay.
pub static IPLR: OpInfo = OpInfo {
    name: "iplr",
    summary: "S <- S + b (S^T a)^T + k v^T; o = scale S^T q",
    source: "arXiv:2503.14456",
    grads: &["q", "k", "v", "a", "b", "initial_state"],
    ..super::COMMON
};

/// What both operators are told beside their inputs.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Factor on the output. Default: `K^-0.5`.
    pub scale: Option<f64>,
    /// State before the first token of every sequence; zero when absent.
    pub initial_state: Option<&'a RecurrentState>,
    /// Return the state after the last token. Default: false.
    pub output_final_state: bool,
    /// Packed sequences (B must be 1); B dense sequences when absent.
    pub seqs: Option<&'a PackedSeqs>,
    /// Layout of both states. Default: KV.
    pub layout: StateLayout,
    /// Form of evaluation. Default: by length.
    pub mode: Mode,
    /// Sub-steps of a chunk: 16, 32 or 64. Default: 64.
    pub chunk_size: usize,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Settings {
            scale: None,
            initial_state: None,
            output_final_state: false,
            seqs: None,
            layout: StateLayout::KV,
            mode: Mode::Auto,
            chunk_size: 64,
        }
    }
}

/// Arguments of [`delta_product`].
#[derive(Clone, Copy, Debug)]
pub struct DeltaProductArgs<'a> {
    /// Queries `[B, T, H, K]`.
    pub q: &'a Var,
    /// Keys `[B, T n, H, K]`: the n of a token one after another.
    pub k: &'a Var,
    /// Values `[B, T n, HV, V]`; HV is a multiple of H.
    pub v: &'a Var,
    /// Write strengths `[B, T n, HV]`.
    pub beta: &'a Var,
    /// Log-decay `[B, T, HV]`, applied before a token's first step. Default: none.
    pub g: Option<&'a Var>,
    /// Steps a token, n.
    pub steps: usize,
    /// `beta` is a logit: a sigmoid is applied first. Default: false.
    pub beta_sigmoid: bool,
    /// Doubles beta. Default: false.
    pub allow_neg_eigval: bool,
    /// Divides q and k by `sqrt(sum x^2 + 1e-6)` first. Default: false.
    pub qk_l2norm: bool,
    /// The rest.
    pub settings: Settings<'a>,
}

impl<'a> DeltaProductArgs<'a> {
    /// n steps a token, every option at its default.
    pub fn new(q: &'a Var, k: &'a Var, v: &'a Var, beta: &'a Var, steps: usize) -> Self {
        DeltaProductArgs {
            q,
            k,
            v,
            beta,
            g: None,
            steps,
            beta_sigmoid: false,
            allow_neg_eigval: false,
            qk_l2norm: false,
            settings: Settings::default(),
        }
    }
}

/// Arguments of [`dplr`].
#[derive(Clone, Copy, Debug)]
pub struct DplrArgs<'a> {
    /// Queries `[B, T, H, K]`.
    pub q: &'a Var,
    /// Keys `[B, T, H, K]`.
    pub k: &'a Var,
    /// Values `[B, T, HV, V]`; HV is a multiple of H.
    pub v: &'a Var,
    /// What the transition reads the state with, `[B, T, H, K]`.
    pub a: &'a Var,
    /// Where the transition writes, `[B, T, H, K]`.
    pub b: &'a Var,
    /// Log-decay `[B, T, HV, K]`. Without it the operator is IPLR.
    pub g: Option<&'a Var>,
    /// The rest.
    pub settings: Settings<'a>,
}

impl<'a> DplrArgs<'a> {
    /// The generalised delta rule, every option at its default.
    pub fn new(q: &'a Var, k: &'a Var, v: &'a Var, a: &'a Var, b: &'a Var) -> Self {
        DplrArgs { q, k, v, a, b, g: None, settings: Settings::default() }
    }
}

/// One sub-step of all tokens: `[B, T, ..]` inputs of the delta rule. What is absent is zero (k: all are present).
struct Step {
    q: Option<Var>,
    k: Var,
    v: Option<Var>,
    erase: Option<Var>,
    beta: Option<Var>,
    g: Option<Var>,
}

/// A call cut into sub-steps.
struct Substeps<'a> {
    op: &'static str,
    steps: Vec<Step>,
    like: Like,
    has_erase: bool,
    gate: Gate,
    options: (bool, bool, bool),
    settings: Settings<'a>,
}

/// Shapes of a sub-step's inputs, for those that are zero.
struct Like {
    q: Var,
    v: Var,
}

#[derive(Clone, Copy, PartialEq)]
enum Gate {
    None,
    Scalar,
    Channel,
}

impl Substeps<'_> {
    fn zeros_like(x: &Var) -> Result<Var> {
        Ok(Tensor::zeros(x.dims(), x.dtype(), &x.device())?.into())
    }

    /// The delta rule's arguments for given inputs.
    fn args<'b>(&'b self, x: &'b Inputs, settings: Settings<'b>) -> DeltaArgs<'b> {
        let (beta_sigmoid, allow_neg_eigval, qk_l2norm) = self.options;
        let gate = match (&x.g, self.gate) {
            (Some(g), Gate::Scalar) => DeltaGate::Scalar { g, activation: None },
            (Some(g), Gate::Channel) => DeltaGate::Channel { g, activation: None },
            _ => DeltaGate::None,
        };
        DeltaArgs {
            erase: x.erase.as_ref(),
            erase_order: if self.has_erase { EraseOrder::BeforeDecay } else { EraseOrder::AfterDecay },
            beta: x.beta.as_ref(),
            beta_sigmoid,
            allow_neg_eigval,
            gate,
            qk_l2norm,
            scale: settings.scale,
            initial_state: settings.initial_state,
            output_final_state: settings.output_final_state,
            seqs: settings.seqs,
            layout: settings.layout,
            mode: settings.mode,
            chunk_size: settings.chunk_size,
            ..DeltaArgs::new(self.op, &x.q, &x.k, &x.v)
        }
    }

    /// A sub-step's inputs with zeros where it has none.
    fn filled(&self, s: &Step) -> Result<Inputs> {
        let or_zero = |x: &Option<Var>, like: &Var| x.clone().map_or_else(|| Self::zeros_like(like), Ok);
        let erase = if self.has_erase { Some(or_zero(&s.erase, &s.k)?) } else { None };
        let g = match (&s.g, self.gate) {
            (_, Gate::None) => None,
            (Some(g), _) => Some(g.clone()),
            (None, _) => match &self.steps[0].g {
                Some(first) => Some(Self::zeros_like(first)?),
                None => None,
            },
        };
        Ok(Inputs {
            q: or_zero(&s.q, &self.like.q)?,
            k: s.k.clone(),
            v: or_zero(&s.v, &self.like.v)?,
            erase,
            beta: s.beta.clone(),
            g,
        })
    }

    /// All sub-steps of a token one after another: `[B, T n, ..]`.
    fn interleaved(&self) -> Result<Inputs> {
        let all = self.steps.iter().map(|s| self.filled(s)).collect::<Result<Vec<_>>>()?;
        let required = |f: fn(&Inputs) -> &Var| interleave(&all.iter().map(f).collect::<Vec<_>>());
        let optional = |f: fn(&Inputs) -> Option<&Var>| {
            let parts: Option<Vec<&Var>> = all.iter().map(f).collect();
            parts.map(|p| interleave(&p)).transpose()
        };
        Ok(Inputs {
            q: required(|x| &x.q)?,
            k: required(|x| &x.k)?,
            v: required(|x| &x.v)?,
            erase: optional(|x| x.erase.as_ref())?,
            beta: optional(|x| x.beta.as_ref())?,
            g: optional(|x| x.g.as_ref())?,
        })
    }

    fn run(&self) -> Result<SeqOutput> {
        let (n, s) = (self.steps.len(), self.settings);
        let x = self.interleaved()?;
        let seqs =
            s.seqs.map(|p| PackedSeqs::from_lens(&p.ranges().map(|r| r.len() * n).collect::<Vec<_>>()));
        let [b, t, hv, dv] = self.like.v.tensor().dims_n::<4>(self.op, "v")?;
        // The form is chosen by tokens, not by sub-steps.
        let longest = PackedSeqs::resolve(self.op, s.seqs, b, t)?.longest();
        let settings = Settings { seqs: seqs.as_ref(), mode: s.mode.resolve(longest), ..s };
        let out = delta_rule(self.args(&x, settings))?;
        let o = out.o.reshape(&[b, t, n, hv * dv])?.narrow(2, n - 1, 1)?.reshape(&[b, t, hv, dv])?;
        Ok(SeqOutput { o, final_state: out.final_state })
    }

    /// Sub-step by sub-step on a state, in place; None where that cannot be, with nothing done.
    fn step_on(&self, state: &mut RecurrentState) -> Result<Option<Var>> {
        let s = self.settings;
        let [b, t, ..] = *self.like.v.dims() else { return Ok(None) };
        let single = single_tokens(s.seqs, b, t).is_some() && s.mode.resolve(1) == Mode::Recurrent;
        let inputs = self.steps.iter().map(|s| self.filled(s)).collect::<Result<Vec<_>>>()?;
        if !single || self.like.v.dtype() == DType::F64 || recorded(inputs.iter().flat_map(Inputs::vars)) {
            return Ok(None);
        }
        let mut o = None;
        for (i, x) in inputs.iter().enumerate() {
            o = delta_step_on(&self.args(x, s), state)?;
            if o.is_none() {
                let why = "was not taken after an earlier one of the same token";
                return if i == 0 { Ok(None) } else { Err(Error::invalid(self.op, "sub-step", why)) };
            }
        }
        Ok(o)
    }
}

/// Inputs of the delta rule.
struct Inputs {
    q: Var,
    k: Var,
    v: Var,
    erase: Option<Var>,
    beta: Option<Var>,
    g: Option<Var>,
}

impl Inputs {
    fn vars(&self) -> impl Iterator<Item = &Var> {
        let optional = [&self.erase, &self.beta, &self.g].into_iter().flatten();
        [&self.q, &self.k, &self.v].into_iter().chain(optional)
    }
}

/// `[B, T, ..]` each to `[B, T n, ..]`, the n of a token side by side.
fn interleave(parts: &[&Var]) -> Result<Var> {
    let dims = parts[0].dims().to_vec();
    let one: Vec<usize> = dims[..2].iter().copied().chain([1]).chain(dims[2..].iter().copied()).collect();
    let wide = parts.iter().map(|x| x.reshape(&one)).collect::<Result<Vec<_>>>()?;
    let all: Vec<usize> =
        [dims[0], dims[1] * parts.len()].into_iter().chain(dims[2..].iter().copied()).collect();
    Var::cat(&wide.iter().collect::<Vec<_>>(), 2)?.reshape(&all)
}

/// The `i`-th sub-step of `[B, T n, ..]`.
fn step_of(x: &Var, n: usize, i: usize) -> Result<Var> {
    let dims = x.dims();
    let rest: Vec<usize> = dims[2..].to_vec();
    let cut: Vec<usize> = [dims[0], dims[1] / n, n].into_iter().chain(rest.iter().copied()).collect();
    let one: Vec<usize> = [dims[0], dims[1] / n].into_iter().chain(rest).collect();
    x.reshape(&cut)?.narrow(2, i, 1)?.reshape(&one)
}

fn product<'a>(a: &DeltaProductArgs<'a>) -> Result<Substeps<'a>> {
    const OP: &str = "delta_product";
    let [b, t, ..] = a.q.tensor().dims_n::<4>(OP, "q")?;
    if a.steps == 0 {
        return Err(Error::invalid(OP, "steps", "is 0, expected a positive number"));
    }
    for (arg, x, rank) in [("k", a.k, 4), ("v", a.v, 4), ("beta", a.beta, 3)] {
        if x.dims().len() != rank || x.dims()[..2] != [b, t * a.steps] {
            let want = format!("[{b}, {} = T n, ..] with {rank} dimensions", t * a.steps);
            return Err(Error::shape(OP, arg, x.dims(), want));
        }
    }
    if let Some(g) = a.g.filter(|g| g.dims() != [b, t, a.v.dim(2)]) {
        return Err(Error::shape(OP, "g", g.dims(), format!("[{b}, {t}, {}]", a.v.dim(2))));
    }
    let last = a.steps - 1;
    let step = |i| {
        Ok(Step {
            q: (i == last).then(|| a.q.clone()),
            k: step_of(a.k, a.steps, i)?,
            v: Some(step_of(a.v, a.steps, i)?),
            erase: None,
            beta: Some(step_of(a.beta, a.steps, i)?),
            g: if i == 0 { a.g.cloned() } else { None },
        })
    };
    Ok(Substeps {
        op: OP,
        steps: (0..a.steps).map(step).collect::<Result<_>>()?,
        like: Like { q: a.q.clone(), v: step_of(a.v, a.steps, 0)? },
        has_erase: false,
        gate: if a.g.is_some() { Gate::Scalar } else { Gate::None },
        options: (a.beta_sigmoid, a.allow_neg_eigval, a.qk_l2norm),
        settings: a.settings,
    })
}

fn generalised<'a>(x: &DplrArgs<'a>) -> Result<Substeps<'a>> {
    let op = if x.g.is_some() { "dplr" } else { "iplr" };
    let keys = x.q.tensor().dims_n::<4>(op, "q")?;
    for (arg, v) in [("k", x.k), ("a", x.a), ("b", x.b)] {
        if v.dims() != keys {
            return Err(Error::shape(op, arg, v.dims(), format!("{keys:?}, as q")));
        }
    }
    x.v.tensor().dims_n::<4>(op, "v")?;
    let steps = vec![
        Step { q: None, k: x.b.clone(), v: None, erase: Some(x.a.neg()?), beta: None, g: x.g.cloned() },
        Step { q: Some(x.q.clone()), k: x.k.clone(), v: Some(x.v.clone()), erase: None, beta: None, g: None },
    ];
    Ok(Substeps {
        op,
        steps,
        like: Like { q: x.q.clone(), v: x.v.clone() },
        has_erase: true,
        gate: if x.g.is_some() { Gate::Channel } else { Gate::None },
        options: (false, false, false),
        settings: x.settings,
    })
}

/// Runs n steps of the delta rule a token; `g` decays the state before the first, and the query reads it after the last.
///
/// # Errors
/// When a shape, dtype, device or option does not fit.
pub fn delta_product(args: DeltaProductArgs<'_>) -> Result<SeqOutput> {
    product(&args)?.run()
}

/// Runs the generalised delta rule: `S <- diag(e^g) S + b (S^T a)^T + k v^T`, where `S^T a` reads the state before the decay.
///
/// # Errors
/// When a shape, dtype, device or option does not fit.
pub fn dplr(args: DplrArgs<'_>) -> Result<SeqOutput> {
    generalised(&args)?.run()
}

fn on_state(mut call: Substeps<'_>, state: Option<&mut RecurrentState>) -> Result<Var> {
    let Some(state) = state else { return Ok(call.run()?.o) };
    if let Some(o) = call.step_on(state)? {
        return Ok(o);
    }
    let before = state.clone();
    call.settings = Settings { output_final_state: true, ..call.settings };
    let inner = Substeps { settings: Settings { initial_state: Some(&before), ..call.settings }, ..call };
    advanced(inner.run()?, state)
}

macro_rules! recurrence {
    ($Args:ident, $make:ident) => {
        impl<'a> Recurrence<'a> for $Args<'a> {
            fn within(&mut self, seqs: Option<&'a PackedSeqs>, mode: Mode, layout: StateLayout) {
                self.settings = Settings { seqs, mode, layout, ..self.settings };
            }

            fn run(self, state: Option<&mut RecurrentState>) -> Result<Var> {
                on_state($make(&self)?, state)
            }
        }
    };
}
recurrence!(DeltaProductArgs, product);
recurrence!(DplrArgs, generalised);
