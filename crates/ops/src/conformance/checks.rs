//! The checks themselves. Each walks over cases and compares with the f64 reference or between two runs.

use std::collections::BTreeSet;

use flashlin_tensor::{DType, Device, Var};

use super::case::{Case, Role, Shape};
use super::compare::{Report, tolerance, tolerance_of_sum};
use super::oracle::reference_gradients;
use super::run::{How, Outcome, Vars, all_inputs, execute_as, expected, loss_weights};
use super::{Outputs, SequenceOp, on_threads, ready};
use crate::{Error, Mode, PackedSeqs, Result, StateLayout};

/// A check: an operator on a device to what was measured.
pub type Check = fn(&dyn SequenceOp, &Device) -> Report;

/// All checks by name.
pub const CHECKS: &[(&str, Check)] = &[
    ("reference_gradients", reference_gradients),
    ("matches_reference", matches_reference),
    ("strong_decays", strong_decays),
    ("packed_equals_separate", packed_equals_separate),
    ("split_continues", split_continues),
    ("layouts_agree", layouts_agree),
    ("views_agree", views_agree),
    ("threads_agree", threads_agree),
    ("one_gradient_at_a_time", one_gradient_at_a_time),
    ("low_precision", low_precision),
];

/// Runs every check.
pub fn verify(op: &dyn SequenceOp, device: &Device) -> Vec<(&'static str, Report)> {
    CHECKS.iter().map(|(name, check)| (*name, check(op, device))).collect()
}

/// A walk over cases that collects findings.
struct Walk<'a> {
    op: &'a dyn SequenceOp,
    check: &'static str,
    report: Report,
}

impl<'a> Walk<'a> {
    /// None where the device cannot be used; the report says so.
    fn new(
        op: &'a dyn SequenceOp,
        check: &'static str,
        device: &Device,
    ) -> std::result::Result<Self, Report> {
        Ok(Walk { op, check, report: ready(op.name(), check, device)? })
    }

    fn label(&self, case: &Case) -> String {
        format!("{} {}: {}", self.op.name(), self.check, case.describe())
    }

    /// Compares a run with what is expected, at the tolerance of the case's dtype.
    fn compare(&mut self, case: &Case, got: Result<Outcome>, want: &Outcome) {
        self.compare_within(case, got, want, within(case), "");
    }

    fn compare_within(&mut self, case: &Case, got: Result<Outcome>, want: &Outcome, limit: f64, note: &str) {
        let label = format!("{}{note}", self.label(case));
        let got = match got {
            Ok(got) => got,
            Err(e) => return self.report.fail(&label, "call", e.to_string()),
        };
        self.report.compare(&label, "o", &got.o, &want.o, limit);
        self.report.compare(&label, "final_state", &got.state, &want.state, limit);
        let inputs = self.op.inputs(case);
        let shared = |name: &str| inputs.iter().any(|i| i.name == name && i.role == Role::Shared);
        let names: BTreeSet<_> = got.grads.keys().chain(want.grads.keys()).collect();
        for name in names {
            let tensor = format!("d_{name}");
            match (got.grads.get(*name), want.grads.get(*name)) {
                (Some(g), Some(w)) => {
                    let sum = limit > 0.0 && shared(name);
                    let limit = if sum { tolerance_of_sum(case.dtype) * rounding(case) } else { limit };
                    self.report.compare(&label, &tensor, g, w, limit);
                }
                (None, _) => self.report.fail(&label, &tensor, "was not computed"),
                (_, None) => self.report.fail(&label, &tensor, "is missing in the reference"),
            }
        }
    }

    /// The same case in every mode, against the reference.
    fn modes(&mut self, case: &Case) {
        if case.dtype == DType::F64 && case.device != Device::Cpu {
            return;
        }
        let want = expected(self.op, case);
        for mode in self.op.modes() {
            let case = Case { mode, ..case.clone() };
            let got = execute_as(self.op, &case, How::default());
            self.compare(&case, got, &want);
        }
    }
}

/// The tolerance of a case's dtype.
fn within(case: &Case) -> f64 {
    tolerance(case.dtype) * rounding(case)
}

/// Kernels of a GPU round states and what tokens write to the inputs' type, chunk by chunk, where the CPU computes in f32.
fn rounding(case: &Case) -> f64 {
    let rounds = case.device != Device::Cpu && matches!(case.dtype, DType::F16 | DType::BF16);
    if rounds { 4.0 } else { 1.0 }
}

/// A dense case of one variant.
pub(super) fn base(op: &dyn SequenceOp, variant: usize, shape: Shape, device: &Device) -> Case {
    Case {
        variant,
        variant_name: op.variants().get(variant).copied().unwrap_or("?"),
        shape,
        b: 1,
        t: 0,
        packed: None,
        dtype: DType::F32,
        mode: op.modes().first().copied().unwrap_or(Mode::Auto),
        chunk_size: op.chunk_sizes().first().copied().unwrap_or(16),
        layout: op.layouts().first().copied().unwrap_or_default(),
        initial: false,
        strength: 1.0,
        seed: 1 + variant as u64,
        device: *device,
    }
}

/// Every mode, chunk size, variant and shape at the lengths where blocks begin and end.
pub fn matches_reference(op: &dyn SequenceOp, device: &Device) -> Report {
    let mut walk = match Walk::new(op, "matches_reference", device) {
        Ok(walk) => walk,
        Err(report) => return report,
    };
    let shapes = op.shapes();
    for variant in 0..op.variants().len() {
        let mut turn = variant;
        for c in op.chunk_sizes() {
            for t in [0, 1, c - 1, c, c + 1, 3 * c + 7] {
                for dtype in [DType::F64, DType::F32] {
                    let shape = shapes[turn % shapes.len()];
                    turn += 1;
                    let initial = !turn.is_multiple_of(3);
                    let b = 1 + turn % 2;
                    let case =
                        Case { b, t, dtype, chunk_size: c, initial, ..base(op, variant, shape, device) };
                    walk.modes(&case);
                }
            }
        }
        // The turn above gives each length one shape; here each shape gets a long run.
        for &shape in &shapes {
            walk.modes(&Case { b: 2, t: 41, initial: true, ..base(op, variant, shape, device) });
        }
    }
    walk.report
}

/// Decays down to -20 a step, and a few strong steps among weak ones.
pub fn strong_decays(op: &dyn SequenceOp, device: &Device) -> Report {
    let mut walk = match Walk::new(op, "strong_decays", device) {
        Ok(walk) => walk,
        Err(report) => return report,
    };
    for variant in 0..op.variants().len() {
        for (i, shape) in op.shapes().into_iter().enumerate() {
            for c in op.chunk_sizes() {
                for (strength, dtype) in [(20.0, DType::F32), (20.0, DType::F64), (4.0, DType::F32)] {
                    let case = Case {
                        t: 2 * c + 5,
                        chunk_size: c,
                        initial: i % 2 == 0,
                        strength,
                        dtype,
                        ..base(op, variant, shape, device)
                    };
                    walk.modes(&case);
                }
            }
        }
    }
    walk.report
}

/// Lengths of packed sequences around a chunk size, with empty ones at both ends and in the middle.
fn packed_case(case: &Case) -> Case {
    let c = case.chunk_size;
    let seqs = PackedSeqs::from_lens(&[0, 1, c, 0, 0, c + 3, 2 * c - 1, 0]);
    Case { b: 1, t: seqs.total(), packed: Some(seqs), ..case.clone() }
}

/// Packed sequences equal the reference, and each sequence run alone.
pub fn packed_equals_separate(op: &dyn SequenceOp, device: &Device) -> Report {
    let mut walk = match Walk::new(op, "packed_equals_separate", device) {
        Ok(walk) => walk,
        Err(report) => return report,
    };
    let (shapes, chunks) = (op.shapes(), op.chunk_sizes());
    for variant in 0..op.variants().len() {
        for initial in [false, true] {
            for (i, &chunk_size) in chunks.iter().enumerate() {
                let shape = shapes[(variant + i) % shapes.len()];
                let case = packed_case(&Case { chunk_size, initial, ..base(op, variant, shape, device) });
                walk.modes(&case);
            }
        }
        let case = packed_case(&base(op, variant, shapes[variant % shapes.len()], device));
        for mode in op.modes() {
            let case = Case { mode, ..case.clone() };
            let whole = execute_as(op, &case, How::default());
            match whole.and_then(|whole| Ok((separate(op, &case)?, whole))) {
                Ok((alone, whole)) => {
                    let label = walk.label(&case);
                    walk.report.compare(
                        &label,
                        "o, sequences alone",
                        &alone.o,
                        &whole.o,
                        tolerance(case.dtype),
                    );
                    let limit = tolerance(case.dtype);
                    walk.report.compare(&label, "final_state, alone", &alone.state, &whole.state, limit);
                }
                Err(e) => {
                    let label = walk.label(&case);
                    walk.report.fail(&label, "call", e.to_string());
                }
            }
        }
    }
    walk.report
}

/// The sequences of a packed case, each in a call of its own; outputs joined.
fn separate(op: &dyn SequenceOp, case: &Case) -> Result<Outcome> {
    let vars = constants(op, case)?;
    let mut joined = Outcome::default();
    for (start, len) in case.spans() {
        let part = Case { packed: None, t: len, ..case.clone() };
        let out = op.run(&part, &part_of(op, case, &vars, start, len)?)?;
        joined.o.extend(out.o.tensor().to_f64_vec()?);
        if let Some(state) = out.state {
            joined.state.extend(state.tensor().to_f64_vec()?);
        }
    }
    Ok(joined)
}

/// Contiguous variables of a case without an initial state, all tracked.
fn constants(op: &dyn SequenceOp, case: &Case) -> Result<Vars> {
    let mut vars = Vars::default();
    for i in op.inputs(case) {
        let t = flashlin_tensor::Tensor::from_slice(&i.values, &i.dims)?.to_dtype(i.dtype)?;
        let t = t.to_device(&case.device)?;
        vars.0.insert(i.name, Var::leaf(t));
    }
    Ok(vars)
}

/// Tokens `start .. start + len` of every token input; shared inputs as they are.
fn part_of(op: &dyn SequenceOp, case: &Case, vars: &Vars, start: usize, len: usize) -> Result<Vars> {
    let mut part = Vars::default();
    for i in op.inputs(case) {
        let var = vars.get(i.name);
        let taken = match i.role {
            // Some operators have several input rows a token.
            Role::Token if case.t > 0 => {
                let per = i.dims[1] / case.t;
                var.narrow(1, start * per, len * per)?
            }
            _ => var.clone(),
        };
        part.0.insert(i.name, taken);
    }
    Ok(part)
}

/// Two calls, the second from the first one's final state, equal one call: outputs, state and gradients.
pub fn split_continues(op: &dyn SequenceOp, device: &Device) -> Report {
    let mut walk = match Walk::new(op, "split_continues", device) {
        Ok(walk) => walk,
        Err(report) => return report,
    };
    let shapes = op.shapes();
    for variant in 0..op.variants().len() {
        for (i, &layout) in op.layouts().iter().enumerate() {
            let shape = shapes[(variant + i) % shapes.len()];
            let case = Case { b: 2, t: 37, layout, ..base(op, variant, shape, device) };
            let want = expected(op, &case);
            for mode in op.modes() {
                let case = Case { mode, ..case.clone() };
                for at in [0, 1, 11, 16, 17, 36, 37] {
                    let got = split(op, &case, at);
                    walk.compare_within(&case, got, &want, tolerance(case.dtype), &format!(" split at {at}"));
                }
            }
        }
    }
    if op.layouts().is_empty() {
        walk.report.compare(op.name(), "no state to continue from", &[], &[], 0.0);
    }
    walk.report
}

fn split(op: &dyn SequenceOp, case: &Case, at: usize) -> Result<Outcome> {
    let vars = constants(op, case)?;
    let first_case = Case { t: at, initial: false, ..case.clone() };
    let first = op.run(&first_case, &part_of(op, case, &vars, 0, at)?)?;
    let state = first.state.ok_or_else(|| Error::invalid("conformance", "final_state", "is missing"))?;
    let mut rest = part_of(op, case, &vars, at, case.t - at)?;
    rest.0.insert("initial_state", state);
    let second_case = Case { t: case.t - at, initial: true, ..case.clone() };
    let Outputs { o, state } = op.run(&second_case, &rest)?;
    let state = state.ok_or_else(|| Error::invalid("conformance", "final_state", "is missing"))?;
    let o = Var::cat(&[&first.o, &o], 1)?;

    let (w_o, w_s) = loss_weights(case, o.tensor().numel(), state.tensor().numel());
    let (k, v) = (case.shape.k, case.shape.v);
    let kv = case.layout == StateLayout::KV;
    let w_s = if kv { w_s } else { super::run::turned(&w_s, k, v) };
    let weights = |w: &[f64], like: &Var| {
        flashlin_tensor::Tensor::from_slice(w, like.dims())?.to_dtype(like.dtype())?.to_device(&like.device())
    };
    let roots = vec![(&o, weights(&w_o, &o)?), (&state, weights(&w_s, &state)?)];
    let grads = Var::backward_with(roots)?;
    let last = state.tensor().to_f64_vec()?;
    let mut outcome = Outcome {
        o: o.tensor().to_f64_vec()?,
        state: if kv { last } else { super::run::turned(&last, v, k) },
        ..Outcome::default()
    };
    for (&name, var) in &vars.0 {
        let grad = grads.get(var).ok_or_else(|| Error::invalid("conformance", "gradient", "is missing"))?;
        outcome.grads.insert(name, grad.to_f64_vec()?);
    }
    Ok(outcome)
}

/// Both layouts with an initial state, contiguous and as a view with gaps.
pub fn layouts_agree(op: &dyn SequenceOp, device: &Device) -> Report {
    let mut walk = match Walk::new(op, "layouts_agree", device) {
        Ok(walk) => walk,
        Err(report) => return report,
    };
    for variant in 0..op.variants().len() {
        for (i, shape) in op.shapes().into_iter().enumerate() {
            let mut case = Case { b: 2, t: 16 + 5 * i, initial: true, ..base(op, variant, shape, device) };
            if i % 2 == 1 {
                case = packed_case(&case);
            }
            let want = expected(op, &case);
            for layout in op.layouts() {
                for mode in op.modes() {
                    let case = Case { layout, mode, ..case.clone() };
                    walk.compare(&case, execute_as(op, &case, How::default()), &want);
                    let views = How { views: true, ..How::default() };
                    walk.compare_within(
                        &case,
                        execute_as(op, &case, views),
                        &want,
                        tolerance(case.dtype),
                        " views",
                    );
                }
            }
        }
    }
    if op.layouts().is_empty() {
        walk.report.compare(op.name(), "no state", &[], &[], 0.0);
    }
    walk.report
}

/// A case in each mode with a feature of the runs that must not change a bit.
fn same_bits(
    walk: &mut Walk,
    note: &str,
    cases: impl Fn(usize) -> Case,
    other: impl Fn(&Case) -> Result<Outcome>,
) {
    for variant in 0..walk.op.variants().len() {
        for mode in walk.op.modes() {
            let case = Case { mode, ..cases(variant) };
            match execute_as(walk.op, &case, How::default()) {
                Ok(want) => walk.compare_within(&case, other(&case), &want, 0.0, note),
                Err(e) => {
                    let label = walk.label(&case);
                    walk.report.fail(&label, "call", e.to_string());
                }
            }
        }
    }
}

/// Slices of a fused projection give the bits that contiguous inputs give.
pub fn views_agree(op: &dyn SequenceOp, device: &Device) -> Report {
    let mut walk = match Walk::new(op, "views_agree", device) {
        Ok(walk) => walk,
        Err(report) => return report,
    };
    let shapes = op.shapes();
    for dtype in [DType::F32, DType::BF16] {
        let cases = |variant: usize| {
            let shape = shapes[variant % shapes.len()];
            Case { b: 2, t: 35, initial: true, dtype, ..base(op, variant, shape, device) }
        };
        let views = How { views: true, ..How::default() };
        same_bits(&mut walk, " views", cases, |case| execute_as(op, case, views));
    }
    walk.report
}

/// The same bits on 1, 2 and 3 threads.
pub fn threads_agree(op: &dyn SequenceOp, device: &Device) -> Report {
    let mut walk = match Walk::new(op, "threads_agree", device) {
        Ok(walk) => walk,
        Err(report) => return report,
    };
    let shapes = op.shapes();
    let cases = |variant: usize| {
        let shape = shapes[variant % shapes.len()];
        packed_case(&Case { initial: true, ..base(op, variant, shape, device) })
    };
    for threads in [1, 2, 3] {
        let note = format!(" {threads} threads");
        same_bits(&mut walk, &note, cases, |case| {
            on_threads(threads, || execute_as(op, case, How::default()))?
        });
    }
    walk.report
}

/// Tracking one input alone gives the gradient that tracking all gives.
pub fn one_gradient_at_a_time(op: &dyn SequenceOp, device: &Device) -> Report {
    let mut walk = match Walk::new(op, "one_gradient_at_a_time", device) {
        Ok(walk) => walk,
        Err(report) => return report,
    };
    let shapes = op.shapes();
    for variant in 0..op.variants().len() {
        for mode in op.modes() {
            let shape = shapes[variant % shapes.len()];
            let case = Case { b: 2, t: 23, initial: true, mode, ..base(op, variant, shape, device) };
            let label = walk.label(&case);
            let all = match execute_as(op, &case, How::default()) {
                Ok(all) => all,
                Err(e) => {
                    walk.report.fail(&label, "call", e.to_string());
                    continue;
                }
            };
            for i in all_inputs(op, &case).0 {
                let only = How { only: Some(i.name), ..How::default() };
                let tensor = format!("d_{} alone", i.name);
                match execute_as(op, &case, only) {
                    Ok(one) => {
                        let (got, want) = (&one.grads[i.name], &all.grads[i.name]);
                        walk.report.compare(&label, &tensor, got, want, tolerance(case.dtype));
                    }
                    Err(e) => walk.report.fail(&label, &tensor, e.to_string()),
                }
            }
        }
    }
    walk.report
}

/// bf16 and f16 inputs against the reference on the rounded inputs.
pub fn low_precision(op: &dyn SequenceOp, device: &Device) -> Report {
    let mut walk = match Walk::new(op, "low_precision", device) {
        Ok(walk) => walk,
        Err(report) => return report,
    };
    let mut shapes = op.shapes();
    if *device != Device::Cpu {
        // A single channel contracts to next to nothing: what is left of it is what the kernels' rounding left.
        shapes.retain(|s| s.k > 1);
    }
    for variant in 0..op.variants().len() {
        for (i, dtype) in [DType::BF16, DType::F16].into_iter().enumerate() {
            for t in [1, 37] {
                let shape = shapes[(variant + i + t) % shapes.len()];
                walk.modes(&Case { b: 2, t, initial: true, dtype, ..base(op, variant, shape, device) });
            }
            // Elsewhere, kernels of their own serve half precision: several of their chunks, packed, in both layouts.
            let turn = 3 * variant + i;
            for (j, layout) in op.layouts().into_iter().enumerate().filter(|_| *device != Device::Cpu) {
                let shape = shapes[(turn + j) % shapes.len()];
                let case = Case { layout, dtype, ..base(op, variant, shape, device) };
                walk.modes(&Case { b: 2, t: 150, initial: true, ..case.clone() });
                walk.modes(&packed_case(&Case { chunk_size: 64, initial: j == 0, ..case.clone() }));
                // Long enough for a GPU to cut it into segments. Sums over thousands of tokens of random signs are next to nothing: no parameters here.
                let summed = op.inputs(&case).iter().any(|input| input.role == Role::Shared);
                if case.shape.hv <= 2 && j == i && !summed {
                    walk.modes(&Case { t: 4100, initial: i == 0, ..case });
                }
            }
        }
    }
    walk.report
}
