//! The family in the conformance suite: which variants there are, and their reference with the in-kernel activations
//! applied outside of it.

use std::collections::BTreeMap;

use flashlin_tensor::Result;

use super::reference::{self, Dims, Gate, Problem};
use super::{DeltaArgs, DeltaGate, EraseOrder, GateActivation, delta_rule};
use crate::RecurrentState;
use crate::activation::reference::sigmoid;
use crate::conformance::{Arrays, Case, Fill, Input, Outcome, Outputs, SequenceOp, Vars};
use crate::gate::{DecayGate, reference as gate};

/// The delta family for the conformance suite.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    None,
    Scalar,
    Channel,
}

struct Variant {
    name: &'static str,
    gate: Kind,
    /// `g`, `A_log` and `dt_bias` are logits and parameters, beta is a logit, keys are normalised, all in the kernel.
    inside: Option<DecayGate>,
    beta_channel: bool,
    erase: bool,
    before: bool,
    neg: bool,
}

const PLAIN: Variant = Variant {
    name: "delta_rule",
    gate: Kind::None,
    inside: None,
    beta_channel: false,
    erase: false,
    before: false,
    neg: false,
};

const VARIANTS: &[Variant] = &[
    PLAIN,
    Variant { name: "gated_delta_rule", gate: Kind::Scalar, ..PLAIN },
    Variant { name: "kda", gate: Kind::Channel, ..PLAIN },
    Variant { name: "comba", gate: Kind::Scalar, erase: true, before: true, ..PLAIN },
    Variant { name: "gated_deltanet layer", gate: Kind::Scalar, inside: Some(DecayGate::Softplus), ..PLAIN },
    Variant { name: "kda layer", gate: Kind::Channel, inside: Some(DecayGate::Softplus), neg: true, ..PLAIN },
    Variant {
        name: "kda safe gate",
        gate: Kind::Channel,
        inside: Some(DecayGate::LowerBound(-5.0)),
        ..PLAIN
    },
    Variant { name: "beta a channel", gate: Kind::Scalar, beta_channel: true, ..PLAIN },
    Variant {
        name: "erase key, gate a channel",
        gate: Kind::Channel,
        erase: true,
        beta_channel: true,
        ..PLAIN
    },
    Variant { name: "erase before, gate a channel", gate: Kind::Channel, erase: true, before: true, ..PLAIN },
];

/// Factor on the output in the suite: not the default, so that a forgotten scale shows.
const SCALE: f64 = 0.3;
const L2_EPS: f64 = 1e-6;

/// Whether keys are normalised in the kernel. Not with a single channel: the gradient through the norm is then what epsilon
/// leaves (about 1e-6 of what comes in), by cancellation even in f64.
fn normalises(case: &Case) -> bool {
    VARIANTS[case.variant].inside.is_some() && case.shape.k > 1
}

impl SequenceOp for Conformance {
    fn name(&self) -> &'static str {
        "delta"
    }

    fn variants(&self) -> Vec<&'static str> {
        VARIANTS.iter().map(|v| v.name).collect()
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let (s, x) = (case.shape, &VARIANTS[case.variant]);
        // Keys of at most unit length keep the recurrence stable.
        let key = match normalises(case) {
            true => Fill::Normal(1.0),
            false => Fill::Uniform(-(s.k as f64).powf(-0.5), (s.k as f64).powf(-0.5)),
        };
        let beta = if x.inside.is_some() { Fill::Normal(1.0) } else { Fill::Uniform(0.0, 1.0) };
        let gate = if x.inside.is_some() { Fill::Normal(1.0) } else { Fill::LogDecay };
        let mut all = vec![
            Input::token(case, "q", &[s.h, s.k], Fill::Normal(1.0)),
            Input::token(case, "k", &[s.h, s.k], key),
            Input::token(case, "v", &[s.hv, s.v], Fill::Normal(1.0)),
        ];
        if x.erase {
            all.push(Input::token(case, "erase", &[s.h, s.k], key));
        }
        let beta_dims = [s.hv, s.v];
        all.push(Input::token(case, "beta", &beta_dims[..if x.beta_channel { 2 } else { 1 }], beta));
        let gate_dims = [s.hv, s.k];
        match x.gate {
            Kind::None => {}
            Kind::Scalar => all.push(Input::precise_token(case, "g", &gate_dims[..1], gate)),
            Kind::Channel => all.push(Input::precise_token(case, "g", &gate_dims, gate)),
        }
        if x.inside.is_some() {
            let n = if x.gate == Kind::Channel { s.k } else { 1 };
            all.push(Input::shared(case, "a_log", &[s.hv], Fill::Uniform(-1.0, 0.5)));
            all.push(Input::shared(case, "dt_bias", &[s.hv * n], Fill::Normal(1.0)));
        }
        all
    }

    fn run(&self, case: &Case, vars: &Vars) -> Result<Outputs> {
        let x = &VARIANTS[case.variant];
        let state = |v: &flashlin_tensor::Var| RecurrentState { value: v.clone(), layout: case.layout };
        let initial = vars.find("initial_state").map(state);
        let (a_log, dt_bias) = (vars.find("a_log"), vars.find("dt_bias"));
        let activation = x.inside.map(|formula| GateActivation { formula, a_log, dt_bias });
        let out = delta_rule(DeltaArgs {
            erase: vars.find("erase"),
            erase_order: if x.before { EraseOrder::BeforeDecay } else { EraseOrder::AfterDecay },
            beta: vars.find("beta"),
            beta_sigmoid: x.inside.is_some(),
            allow_neg_eigval: x.neg,
            gate: match x.gate {
                Kind::None => DeltaGate::None,
                Kind::Scalar => DeltaGate::Scalar { g: vars.get("g"), activation },
                Kind::Channel => DeltaGate::Channel { g: vars.get("g"), activation },
            },
            qk_l2norm: normalises(case),
            scale: Some(SCALE),
            initial_state: initial.as_ref(),
            output_final_state: true,
            seqs: case.packed.as_ref(),
            layout: case.layout,
            mode: case.mode,
            chunk_size: case.chunk_size,
            ..DeltaArgs::new("delta_rule", vars.get("q"), vars.get("k"), vars.get("v"))
        })?;
        Ok(Outputs { o: out.o, state: out.final_state.map(|s| s.value) })
    }

    fn reference(&self, case: &Case, x: &Arrays, d_o: &[f64], d_state: &[f64]) -> Outcome {
        let v = &VARIANTS[case.variant];
        let active = Activated::new(v, case, x);
        let mut all = Outcome::default();
        let s = case.shape;
        let size = s.hv * s.k * s.v;
        for (n, (start, len)) in case.spans().into_iter().enumerate() {
            let dims = Dims { t: len, h: s.h, hv: s.hv, k: s.k, v: s.v };
            let rows = |x: &[f64], total: usize| {
                let width = x.len() / total.max(1);
                start * width..(start + len) * width
            };
            let total = x.get("v").len() / (s.hv * s.v);
            let cut = |x: &'_ [f64]| rows(x, total);
            let problem = Problem {
                dims,
                q: &active.q[cut(&active.q)],
                k: &active.k[cut(&active.k)],
                erase: v.erase.then(|| &active.erase[cut(&active.erase)]),
                v: &x.get("v")[cut(x.get("v"))],
                beta: Some(&active.beta[cut(&active.beta)]),
                gate: match v.gate {
                    Kind::None => Gate::None,
                    Kind::Scalar => Gate::Scalar(&active.g[cut(&active.g)]),
                    Kind::Channel => Gate::Channel(&active.g[cut(&active.g)]),
                },
                h0: x.find("initial_state").map(|h| &h[n * size..][..size]),
                scale: SCALE,
                erase_before_decay: v.before,
            };
            let (o, state) = reference::forward(&problem);
            let d_o = &d_o[start * s.hv * s.v..][..o.len()];
            let g = reference::backward(&problem, d_o, Some(&d_state[n * size..][..size]));
            all.o.extend(o);
            all.state.extend(state);
            let mut put = |name, grad: Vec<f64>| all.grads.entry(name).or_default().extend(grad);
            put("q", g.q);
            put("k", g.k);
            put("v", g.v);
            put("beta", g.beta);
            if v.erase {
                put("erase", g.erase);
            }
            if v.gate != Kind::None {
                put("g", g.gate);
            }
            if problem.h0.is_some() {
                put("initial_state", g.h0);
            }
        }
        active.backward(v, x, &mut all.grads);
        all
    }
}

/// Inputs after the in-kernel activations, in f64.
struct Activated {
    q: Vec<f64>,
    k: Vec<f64>,
    erase: Vec<f64>,
    beta: Vec<f64>,
    g: Vec<f64>,
    /// Channels of a key, and numbers of the gate for a head.
    width: usize,
    per_head: usize,
    hv: usize,
    normalised: bool,
}

impl Activated {
    fn new(v: &Variant, case: &Case, x: &Arrays) -> Self {
        let array = |name| x.find(name).unwrap_or(&[]).to_vec();
        let per_head = if v.gate == Kind::Channel { case.shape.k } else { 1 };
        let (mut q, mut k, mut erase, mut beta, mut g) =
            (array("q"), array("k"), array("erase"), array("beta"), array("g"));
        let factor = if v.neg { 2.0 } else { 1.0 };
        if let Some(formula) = v.inside {
            if normalises(case) {
                for keys in [&mut q, &mut k, &mut erase] {
                    for row in keys.chunks_mut(case.shape.k) {
                        let norm = norm(row);
                        row.iter_mut().for_each(|x| *x /= norm);
                    }
                }
            }
            beta.iter_mut().for_each(|b| *b = factor * sigmoid(*b));
            g = gate::forward(&gate_inputs(formula, case.shape.hv, per_head, x));
        }
        Activated {
            q,
            k,
            erase,
            beta,
            g,
            width: case.shape.k,
            per_head,
            hv: case.shape.hv,
            normalised: normalises(case),
        }
    }

    /// Gradients of activated inputs to gradients of the inputs.
    fn backward(&self, v: &Variant, x: &Arrays, grads: &mut BTreeMap<&'static str, Vec<f64>>) {
        let Some(formula) = v.inside else { return };
        for name in ["q", "k", "erase"].into_iter().filter(|_| self.normalised) {
            let Some(grad) = grads.get_mut(name) else { continue };
            for (g, x) in grad.chunks_mut(self.width).zip(x.get(name).chunks(self.width)) {
                let n = norm(x);
                let along = g.iter().zip(x).map(|(g, x)| g * x).sum::<f64>() / (n * n);
                g.iter_mut().zip(x).for_each(|(g, x)| *g = (*g - x * along) / n);
            }
        }
        let factor = if v.neg { 2.0 } else { 1.0 };
        if let Some(grad) = grads.get_mut("beta") {
            let slope = |b: f64| factor * sigmoid(b) * (1.0 - sigmoid(b));
            grad.iter_mut().zip(x.get("beta")).for_each(|(g, &b)| *g *= slope(b));
        }
        let inputs = gate_inputs(formula, self.hv, self.per_head, x);
        let by_gate = gate::backward(&inputs, &grads.remove("g").unwrap_or_default());
        grads.extend([("g", by_gate.x), ("a_log", by_gate.a_log), ("dt_bias", by_gate.dt_bias)]);
    }
}

/// The logits and parameters of the gate that the kernel computes.
fn gate_inputs(formula: DecayGate, heads: usize, per_head: usize, x: &Arrays) -> gate::Inputs<'_, f64> {
    let (a_log, dt_bias) = (x.find("a_log"), x.find("dt_bias"));
    gate::Inputs { formula, heads, per_head, x: x.get("g"), a_log, dt_bias }
}

fn norm(row: &[f64]) -> f64 {
    (row.iter().map(|x| x * x).sum::<f64>() + L2_EPS).sqrt()
}
