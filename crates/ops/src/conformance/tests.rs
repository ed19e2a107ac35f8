//! The suite itself: it covers the registry, and it fails when a result or a gradient is wrong.

use std::collections::BTreeSet;

use flashlin_tensor::{BackwardCtx, Device, Tensor, Var};

use super::*;
use crate::OPS;

/// What a saboteur spoils.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spoil {
    /// An output is 1 % off.
    Output,
    /// An input's gradient is 1 % off.
    Gradient,
    /// Nothing.
    Nothing,
}

/// `x`, with its gradient 1 % too large.
fn wrong_gradient(x: &Var) -> Var {
    Var::from_op1("spoiled", &[x], x.tensor().clone(), || {
        Box::new(|_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            Ok(vec![g[0].take().map(|g| g.affine(1.01, 0.0)).transpose()?])
        })
    })
}

/// An operator of the registry with one thing wrong.
struct SpoiledModule(&'static dyn ModuleOp, Spoil);

impl ModuleOp for SpoiledModule {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn cases(&self) -> Vec<String> {
        self.0.cases()
    }
    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        self.0.inputs(case)
    }
    fn run(&self, case: usize, inputs: &[Var]) -> Result<Vec<Var>> {
        let mut inputs = inputs.to_vec();
        if self.1 == Spoil::Gradient {
            inputs[0] = wrong_gradient(&inputs[0]);
        }
        let mut out = self.0.run(case, &inputs)?;
        if self.1 == Spoil::Output {
            out[0] = out[0].affine(1.01, 0.0)?;
        }
        Ok(out)
    }
    fn reference(&self, case: usize, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        self.0.reference(case, inputs)
    }
    fn reference_backward(&self, case: usize, inputs: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        self.0.reference_backward(case, inputs, d_out)
    }
}

/// The same for a recurrence; few sizes, to be quick.
struct SpoiledSequence(&'static dyn SequenceOp, Spoil);

impl SequenceOp for SpoiledSequence {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn variants(&self) -> Vec<&'static str> {
        self.0.variants()
    }
    fn shapes(&self) -> Vec<Shape> {
        vec![Shape { h: 1, hv: 2, k: 3, v: 5 }]
    }
    fn chunk_sizes(&self) -> Vec<usize> {
        vec![16]
    }
    fn inputs(&self, case: &Case) -> Vec<Input> {
        self.0.inputs(case)
    }
    fn run(&self, case: &Case, vars: &Vars) -> Result<Outputs> {
        let mut vars = vars.clone();
        if self.1 == Spoil::Gradient {
            let q = wrong_gradient(vars.get("q"));
            vars.0.insert("q", q);
        }
        let mut out = self.0.run(case, &vars)?;
        if self.1 == Spoil::Output {
            out.o = out.o.affine(1.01, 0.0)?;
        }
        Ok(out)
    }
    fn reference(&self, case: &Case, x: &Arrays, d_o: &[f64], d_state: &[f64]) -> Outcome {
        self.0.reference(case, x, d_o, d_state)
    }
}

fn failures(entry: &Entry, spoil: Spoil) -> usize {
    let report = match entry.subject {
        Subject::Sequence(op) => matches_reference(&SpoiledSequence(op, spoil), &Device::Cpu),
        Subject::Module(op) => {
            let check = MODULE_CHECKS.iter().find(|c| c.0 == "matches_reference").unwrap().1;
            check(&SpoiledModule(op, spoil), &Device::Cpu)
        }
    };
    report.failures().count()
}

#[test]
fn every_suite_notices_a_wrong_output_and_a_wrong_gradient() {
    for entry in ENTRIES {
        assert_eq!(failures(entry, Spoil::Nothing), 0, "{}", entry.name());
        for spoil in [Spoil::Output, Spoil::Gradient] {
            assert!(failures(entry, spoil) > 0, "{}: {spoil:?} passed", entry.name());
        }
    }
}

#[test]
fn every_operator_of_the_registry_is_in_a_suite() {
    for op in OPS {
        let entries: Vec<&Entry> = ENTRIES.iter().filter(|e| e.ops.contains(&op.name)).collect();
        assert_eq!(entries.len(), 1, "`{}` should be in one conformance entry", op.name);
    }
    for entry in ENTRIES {
        assert_eq!(
            entry.infos().count(),
            entry.ops.len(),
            "{} names an operator that is not there",
            entry.name()
        );
    }
}

/// Names of all inputs that some case of an entry compares the gradient of.
fn compared(entry: &Entry) -> BTreeSet<&'static str> {
    match entry.subject {
        Subject::Module(op) => {
            (0..op.cases().len()).flat_map(|case| op.inputs(case)).map(|i| i.name).collect()
        }
        Subject::Sequence(op) => {
            let inputs = |variant| op.inputs(&super::checks::base(op, variant, Shape::LIST[0], &Device::Cpu));
            let names = (0..op.variants().len()).flat_map(inputs).map(|i| i.name);
            names.chain(["initial_state"]).collect()
        }
    }
}

#[test]
fn every_gradient_of_the_registry_is_compared() {
    for entry in ENTRIES {
        let compared = compared(entry);
        for op in entry.infos() {
            for grad in op.grads {
                assert!(compared.contains(grad), "`{}`: the gradient of `{grad}` is in no case", op.name);
            }
        }
    }
}

#[test]
fn other_devices_are_refused_by_name() {
    for entry in ENTRIES {
        for check in entry.checks() {
            // Also on a machine with GPUs there are not that many.
            let report = entry.run(check, &Device::Cuda(7777)).unwrap();
            let why: Vec<String> = report.failures().map(ToString::to_string).collect();
            assert!(why.len() == 1 && why[0].contains("cuda:7777"), "{}: {why:?}", entry.name());
        }
        assert!(entry.run("no such check", &Device::Cpu).is_none());
    }
}
