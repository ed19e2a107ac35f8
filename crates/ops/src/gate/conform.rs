//! The gates as the conformance suite sees them.

use flashlin_tensor::Var;

use super::{DecayGate, DecayGateArgs, decay_gate, log_sigmoid_gate, reference};
use crate::Result;
use crate::conformance::{Fill, ModuleInput, ModuleOp};

/// [`decay_gate`] with both formulas, for heads and for channels, with and without parameters.
#[derive(Clone, Copy, Debug)]
pub struct Decay;

/// [`log_sigmoid_gate`] with and without clamp.
#[derive(Clone, Copy, Debug)]
pub struct LogSigmoid;

struct Variant {
    name: &'static str,
    formula: DecayGate,
    /// Channels of a head; 0: the gate is one number a head.
    channels: usize,
    a_log: bool,
    dt_bias: bool,
}

const HEADS: usize = 3;
const VARIANTS: &[Variant] = &[
    Variant { name: "gdn", formula: DecayGate::Softplus, channels: 0, a_log: true, dt_bias: true },
    Variant { name: "gdn, no bias", formula: DecayGate::Softplus, channels: 0, a_log: true, dt_bias: false },
    Variant { name: "kda", formula: DecayGate::Softplus, channels: 5, a_log: true, dt_bias: true },
    Variant { name: "safe", formula: DecayGate::LowerBound(-5.0), channels: 5, a_log: true, dt_bias: true },
    Variant {
        name: "safe, no rate",
        formula: DecayGate::LowerBound(-1.5),
        channels: 5,
        a_log: false,
        dt_bias: true,
    },
    Variant {
        name: "safe, a head",
        formula: DecayGate::LowerBound(-5.0),
        channels: 0,
        a_log: true,
        dt_bias: false,
    },
];

impl Variant {
    fn per_head(&self) -> usize {
        self.channels.max(1)
    }

    fn inputs<'a>(&self, x: &'a [Vec<f64>]) -> reference::Inputs<'a, f64> {
        reference::Inputs {
            formula: self.formula,
            heads: HEADS,
            per_head: self.per_head(),
            x: &x[0],
            a_log: self.a_log.then(|| &x[1][..]),
            dt_bias: self.dt_bias.then(|| &x[1 + usize::from(self.a_log)][..]),
        }
    }
}

impl ModuleOp for Decay {
    fn name(&self) -> &'static str {
        "decay_gate"
    }

    fn cases(&self) -> Vec<String> {
        VARIANTS.iter().map(|v| v.name.into()).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let v = &VARIANTS[case];
        // More tokens than one block of the parameters' sums.
        let dims = [2, 150, HEADS, v.channels];
        let mut all =
            vec![ModuleInput::token("x", &dims[..if v.channels > 0 { 4 } else { 3 }], Fill::Normal(1.0))];
        if v.a_log {
            all.push(ModuleInput::shared("a_log", &[HEADS], Fill::Uniform(-1.0, 0.5)));
        }
        if v.dt_bias {
            all.push(ModuleInput::shared("dt_bias", &[HEADS * v.per_head()], Fill::Normal(1.0)));
        }
        all
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let v = &VARIANTS[case];
        Ok(vec![decay_gate(DecayGateArgs {
            x: &x[0],
            per_channel: v.channels > 0,
            formula: v.formula,
            a_log: v.a_log.then(|| &x[1]),
            dt_bias: v.dt_bias.then(|| &x[1 + usize::from(v.a_log)]),
        })?])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![reference::forward(&VARIANTS[case].inputs(x))]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let v = &VARIANTS[case];
        let g = reference::backward(&v.inputs(x), &d_out[0]);
        let mut all = vec![g.x];
        all.extend(v.a_log.then_some(g.a_log));
        all.extend(v.dt_bias.then_some(g.dt_bias));
        all
    }
}

/// (normalizer, clamp)
const LOG_SIGMOID: [(f64, Option<f64>); 3] = [(16.0, None), (16.0, Some(-0.05)), (1.0, Some(-1.0))];

impl ModuleOp for LogSigmoid {
    fn name(&self) -> &'static str {
        "log_sigmoid_gate"
    }

    fn cases(&self) -> Vec<String> {
        LOG_SIGMOID.iter().map(|(n, clamp)| format!("normalizer {n}, clamp {clamp:?}")).collect()
    }

    fn inputs(&self, _case: usize) -> Vec<ModuleInput> {
        vec![ModuleInput::token("x", &[2, 9, 37], Fill::Normal(2.0))]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let (normalizer, clamp) = LOG_SIGMOID[case];
        Ok(vec![log_sigmoid_gate(&x[0], normalizer, clamp)?])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (normalizer, clamp) = LOG_SIGMOID[case];
        vec![x[0].iter().map(|&x| reference::log_sigmoid(x, normalizer, clamp)).collect()]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (normalizer, clamp) = LOG_SIGMOID[case];
        let slope = |(&x, &d): (&f64, &f64)| reference::log_sigmoid_slope(x, normalizer, clamp) * d;
        vec![x[0].iter().zip(&d_out[0]).map(slope).collect()]
    }
}
