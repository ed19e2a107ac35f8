//! Operators without a recurrence (norms, activations, gates, convolutions, attention, losses): what they must tell the
//! suite, and the checks that they pass.

use flashlin_tensor::{DType, Device, Tensor, Var};

use super::case::{Fill, Role, draw};
use super::compare::{Report, tolerance, tolerance_of_sum};
use super::grad_check::differences;
use super::run::{How, away_from_zero, tensor, with_gaps};
use super::{on_threads, ready};
use crate::{Error, ErrorKind, Result};

/// An input that a case draws at random. All inputs are differentiable.
#[derive(Clone, Debug)]
pub struct ModuleInput {
    /// Name, as in the operator's registry entry.
    pub name: &'static str,
    /// All dimensions.
    pub dims: Vec<usize>,
    /// Distribution.
    pub fill: Fill,
    /// Whether its gradient is a sum over many tokens.
    pub role: Role,
}

impl ModuleInput {
    /// With a gradient for each token.
    pub fn token(name: &'static str, dims: &[usize], fill: Fill) -> Self {
        ModuleInput { name, dims: dims.to_vec(), fill, role: Role::Token }
    }

    /// A parameter, whose gradient is summed over tokens.
    pub fn shared(name: &'static str, dims: &[usize], fill: Fill) -> Self {
        ModuleInput { role: Role::Shared, ..ModuleInput::token(name, dims, fill) }
    }
}

/// An operator as the suite sees it. Arrays are row-major, in the order of the inputs and of the outputs.
pub trait ModuleOp: Sync {
    /// Name for reports: that of the registry entry.
    fn name(&self) -> &'static str;

    /// Names of the cases to go through (options, sizes).
    fn cases(&self) -> Vec<String>;

    /// Inputs of a case.
    fn inputs(&self, case: usize) -> Vec<ModuleInput>;

    /// One call.
    ///
    /// # Errors
    /// Whatever the operator reports; the suite takes an error as a failure.
    fn run(&self, case: usize, inputs: &[Var]) -> Result<Vec<Var>>;

    /// The outputs in f64.
    fn reference(&self, case: usize, inputs: &[Vec<f64>]) -> Vec<Vec<f64>>;

    /// The gradients of all inputs from those of all outputs, in f64.
    fn reference_backward(&self, case: usize, inputs: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>>;
}

/// A check: an operator on a device to what was measured.
pub type ModuleCheck = fn(&dyn ModuleOp, &Device) -> Report;

/// All checks of [`ModuleOp`]s by name.
pub const MODULE_CHECKS: &[(&str, ModuleCheck)] = &[
    ("reference_gradients", reference_gradients),
    ("matches_reference", matches_reference),
    ("views_agree", views_agree),
    ("threads_agree", threads_agree),
    ("one_gradient_at_a_time", one_gradient_at_a_time),
];

/// What a call returned, in f64.
struct Outcome {
    outputs: Vec<Vec<f64>>,
    /// The outputs' weights in the loss.
    weights: Vec<Vec<f64>>,
    /// By input; None where it was not tracked.
    grads: Vec<Option<Vec<f64>>>,
}

/// The values of an input, representable in `dtype`.
fn values(op: &dyn ModuleOp, case: usize, input: &ModuleInput, dtype: DType) -> Vec<f64> {
    let name = format!("{} {case} {}", op.name(), input.name);
    draw(1, &name, input.dims.iter().product(), input.fill, 1.0, dtype)
}

fn arrays(op: &dyn ModuleOp, case: usize, dtype: DType) -> Vec<Vec<f64>> {
    op.inputs(case).iter().map(|i| values(op, case, i, dtype)).collect()
}

/// Random weights of output `i` in the loss, non-zero and exact in its dtype.
fn weights(case: usize, i: usize, n: usize, dtype: DType) -> Vec<f64> {
    let x = draw(2, &format!("weights {case} {i}"), n, Fill::Normal(1.0), 1.0, DType::F64);
    away_from_zero(x, dtype)
}

fn execute(op: &dyn ModuleOp, case: usize, dtype: DType, how: How) -> Result<Outcome> {
    let inputs = op.inputs(case);
    let mut vars = Vec::new();
    for i in &inputs {
        let x = values(op, case, i, dtype);
        let t = match how.views {
            true => with_gaps(&x, &i.dims, dtype, &how.device)?,
            false => tensor(&x, &i.dims, dtype)?.to_device(&how.device)?,
        };
        let tracked = how.only.is_none_or(|only| only == i.name);
        vars.push(if tracked { Var::leaf(t) } else { Var::constant(t) });
    }
    let out = op.run(case, &vars)?;
    let weigh = |(i, o): (usize, &Var)| weights(case, i, o.tensor().numel(), o.dtype());
    let weights: Vec<Vec<f64>> = out.iter().enumerate().map(weigh).collect();
    let root = |(o, w): (&Var, &Vec<f64>)| tensor(w, o.dims(), o.dtype())?.to_device(&o.device());
    let roots = out.iter().zip(&weights).map(root).collect::<Result<Vec<Tensor>>>()?;
    let grads = Var::backward_with(out.iter().zip(roots).collect())?;
    let of = |(i, var): (&ModuleInput, &Var)| match grads.get(var) {
        _ if !var.is_tracked() => Ok(None),
        Some(grad) => grad.to_f64_vec().map(Some),
        None => {
            let why = format!("of `{}` is missing: nothing flowed back", i.name);
            Err(Error::invalid("conformance", "gradient", why))
        }
    };
    Ok(Outcome {
        outputs: out.iter().map(|o| o.tensor().to_f64_vec()).collect::<Result<_>>()?,
        grads: inputs.iter().zip(&vars).map(of).collect::<Result<_>>()?,
        weights,
    })
}

/// A plain run on a device.
fn on(device: &Device) -> How<'static> {
    How { device: *device, ..How::default() }
}

/// What a device computes in: no f64 on a GPU.
fn dtypes(device: &Device) -> &'static [DType] {
    const ALL: [DType; 4] = [DType::F64, DType::F32, DType::BF16, DType::F16];
    if *device == Device::Cpu { &ALL } else { &ALL[1..] }
}

/// Runs `f` on every case; the check's name goes into the labels.
fn walk(
    op: &dyn ModuleOp,
    check: &'static str,
    device: &Device,
    f: impl Fn(&mut Report, &str, usize),
) -> Report {
    let mut report = match ready(op.name(), check, device) {
        Ok(report) => report,
        Err(report) => return report,
    };
    for (case, name) in op.cases().iter().enumerate() {
        f(&mut report, &format!("{} {check}: {name}", op.name()), case);
    }
    report
}

/// Hands the outcome on, or notes an error. What a GPU does not serve, and says so, is no failure there: a check that
/// compares nothing does not pass.
fn succeed(report: &mut Report, label: &str, device: &Device, got: Result<Outcome>) -> Option<Outcome> {
    match got {
        Ok(outcome) => Some(outcome),
        Err(e) if *device != Device::Cpu && e.kind() == ErrorKind::Unsupported => None,
        Err(e) => {
            report.fail(label, "call", e.to_string());
            None
        }
    }
}

/// The backward of the reference against finite differences of its forward, in f64.
pub fn reference_gradients(op: &dyn ModuleOp, device: &Device) -> Report {
    walk(op, "reference_gradients", device, |report, label, case| {
        let (specs, inputs) = (op.inputs(case), arrays(op, case, DType::F64));
        let outputs = op.reference(case, &inputs);
        let weigh = |(i, o): (usize, &Vec<f64>)| weights(case, i, o.len(), DType::F64);
        let w: Vec<Vec<f64>> = outputs.iter().enumerate().map(weigh).collect();
        let grads: Vec<Option<Vec<f64>>> =
            op.reference_backward(case, &inputs, &w).into_iter().map(Some).collect();
        let loss = |x: &[Vec<f64>]| {
            let dot = |(o, w): (&Vec<f64>, &Vec<f64>)| o.iter().zip(w).map(|(o, w)| o * w).sum::<f64>();
            Ok(op.reference(case, x).iter().zip(&w).map(dot).sum())
        };
        let names: Vec<&'static str> = specs.iter().map(|i| i.name).collect();
        match differences(label, &names, &inputs, &grads, loss) {
            Ok(found) => report.extend(found),
            Err(e) => report.fail(label, "differences", e.to_string()),
        }
    })
}

/// Outputs and all gradients equal the reference on the same (rounded) inputs, in every dtype; outputs start as NaN.
pub fn matches_reference(op: &dyn ModuleOp, device: &Device) -> Report {
    walk(op, "matches_reference", device, |report, label, case| {
        for &dtype in dtypes(device) {
            let label = format!("{label}, {dtype}");
            let got = execute(op, case, dtype, on(device));
            let Some(got) = succeed(report, &label, device, got) else { continue };
            let inputs = arrays(op, case, dtype);
            let want = op.reference(case, &inputs);
            if got.outputs.len() != want.len() {
                let why = format!("are {}, expected {}", got.outputs.len(), want.len());
                report.fail(&label, "outputs", why);
                continue;
            }
            for (i, (got, want)) in got.outputs.iter().zip(&want).enumerate() {
                report.compare(&label, &format!("output {i}"), got, want, tolerance(dtype));
            }
            let want = op.reference_backward(case, &inputs, &got.weights);
            for (i, (got, want)) in op.inputs(case).iter().zip(got.grads.iter().zip(&want)) {
                let limit = if i.role == Role::Shared { tolerance_of_sum(dtype) } else { tolerance(dtype) };
                report.compare(&label, &format!("d_{}", i.name), got.as_deref().unwrap_or(&[]), want, limit);
            }
        }
    })
}

/// Everything that `other` returns equals what a plain run returns, to the bit.
fn same_bits(
    op: &dyn ModuleOp,
    report: &mut Report,
    label: &str,
    case: usize,
    (dtype, device): (DType, &Device),
    other: impl Fn() -> Result<Outcome>,
) {
    let want = execute(op, case, dtype, on(device));
    let Some(want) = succeed(report, label, device, want) else { return };
    let Some(got) = succeed(report, label, device, other()) else { return };
    for (i, (got, want)) in got.outputs.iter().zip(&want.outputs).enumerate() {
        report.compare(label, &format!("output {i}"), got, want, 0.0);
    }
    for (i, (got, want)) in op.inputs(case).iter().zip(got.grads.iter().zip(&want.grads)) {
        let [got, want] = [got, want].map(|g| g.as_deref().unwrap_or(&[]));
        report.compare(label, &format!("d_{}", i.name), got, want, 0.0);
    }
}

/// Inputs that are slices of wider tensors give the bits that contiguous ones give.
pub fn views_agree(op: &dyn ModuleOp, device: &Device) -> Report {
    walk(op, "views_agree", device, |report, label, case| {
        for dtype in [DType::F32, DType::BF16] {
            let how = How { views: true, ..on(device) };
            let label = format!("{label}, {dtype}");
            same_bits(op, report, &label, case, (dtype, device), || execute(op, case, dtype, how));
        }
    })
}

/// The same bits on 1, 2 and 3 threads.
pub fn threads_agree(op: &dyn ModuleOp, device: &Device) -> Report {
    walk(op, "threads_agree", device, |report, label, case| {
        for threads in [1, 2, 3] {
            let label = format!("{label}, {threads} threads");
            let run = || execute(op, case, DType::F32, on(device));
            same_bits(op, report, &label, case, (DType::F32, device), || on_threads(threads, run)?);
        }
    })
}

/// Tracking one input alone gives the gradient that tracking all gives.
pub fn one_gradient_at_a_time(op: &dyn ModuleOp, device: &Device) -> Report {
    walk(op, "one_gradient_at_a_time", device, |report, label, case| {
        let dtype = DType::F32;
        let all = execute(op, case, dtype, on(device));
        let Some(all) = succeed(report, label, device, all) else { return };
        for (n, i) in op.inputs(case).iter().enumerate() {
            let one = execute(op, case, dtype, How { only: Some(i.name), ..on(device) });
            let Some(one) = succeed(report, label, device, one) else { continue };
            let [got, want] = [&one, &all].map(|o| o.grads[n].as_deref().unwrap_or(&[]));
            report.compare(label, &format!("d_{} alone", i.name), got, want, tolerance(dtype));
        }
    })
}
