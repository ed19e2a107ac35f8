//! The activations as the conformance suite sees them.

use flashlin_tensor::Var;

use super::{Activation, activate, glu, logsigmoid, reference, softplus};
use crate::Result;
use crate::conformance::{Fill, ModuleInput, ModuleOp};

/// Every function of one number: activations, log-sigmoid with a temperature, softplus with slope and threshold.
#[derive(Clone, Copy, Debug)]
pub struct Elementwise;

/// Every gated linear unit.
#[derive(Clone, Copy, Debug)]
pub struct Gated;

const TEMPERATURE: f64 = 16.0;
/// (beta, threshold) of softplus.
const SOFTPLUS: [(f64, f64); 3] = [(1.0, 20.0), (2.5, 1.0), (0.3, 20.0)];

enum Function {
    Act(Activation),
    LogSigmoid,
    Softplus(f64, f64),
}

/// Each activation once (`swish` is silu).
fn activations() -> Vec<Activation> {
    let mut all: Vec<Activation> = Activation::NAMES.iter().map(|(_, act)| *act).collect();
    all.dedup();
    all
}

fn functions() -> Vec<Function> {
    let acts = activations().into_iter().map(Function::Act);
    let soft = SOFTPLUS.into_iter().map(|(beta, threshold)| Function::Softplus(beta, threshold));
    acts.chain([Function::LogSigmoid]).chain(soft).collect()
}

impl ModuleOp for Elementwise {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cases(&self) -> Vec<String> {
        let name = |f: &Function| match f {
            Function::Act(act) => act.to_string(),
            Function::LogSigmoid => format!("logsigmoid / {TEMPERATURE}"),
            Function::Softplus(beta, threshold) => format!("softplus, beta {beta}, threshold {threshold}"),
        };
        functions().iter().map(name).collect()
    }

    fn inputs(&self, _case: usize) -> Vec<ModuleInput> {
        vec![ModuleInput::token("x", &[3, 7, 37], Fill::Normal(2.0))]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![match functions()[case] {
            Function::Act(act) => activate(&x[0], act)?,
            Function::LogSigmoid => logsigmoid(&x[0], TEMPERATURE)?,
            Function::Softplus(beta, threshold) => softplus(&x[0], beta, threshold)?,
        }])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let value = |&x: &f64| match functions()[case] {
            Function::Act(act) => reference::value(act, x),
            Function::LogSigmoid => reference::value(Activation::LogSigmoid, x) / TEMPERATURE,
            Function::Softplus(beta, threshold) => reference::softplus(x, beta, threshold),
        };
        vec![x[0].iter().map(value).collect()]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let slope = |x: f64| match functions()[case] {
            Function::Act(act) => reference::slope(act, x),
            Function::LogSigmoid => reference::slope(Activation::LogSigmoid, x) / TEMPERATURE,
            Function::Softplus(beta, threshold) => reference::softplus_slope(x, beta, threshold),
        };
        vec![x[0].iter().zip(&d_out[0]).map(|(&x, &d)| slope(x) * d).collect()]
    }
}

impl ModuleOp for Gated {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cases(&self) -> Vec<String> {
        activations().iter().map(|act| format!("{act}(gate) up")).collect()
    }

    fn inputs(&self, _case: usize) -> Vec<ModuleInput> {
        let dims = [3, 7, 37];
        vec![
            ModuleInput::token("gate", &dims, Fill::Normal(2.0)),
            ModuleInput::token("up", &dims, Fill::Normal(1.0)),
        ]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![glu(&x[0], &x[1], activations()[case])?])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![reference::glu(activations()[case], &x[0], &x[1])]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        reference::glu_backward(activations()[case], &x[0], &x[1], &d_out[0]).into()
    }
}
