//! The oracles themselves: the references' backward against finite differences of their forward, in f64.

use flashlin_tensor::{DType, Device};

use super::case::{Arrays, Case, Shape};
use super::checks::base;
use super::compare::Report;
use super::grad_check::differences;
use super::run::{all_inputs, loss_weights};
use super::{SequenceOp, ready};
use crate::PackedSeqs;

/// Small sizes with grouped value heads, K != V.
const SHAPE: Shape = Shape { h: 2, hv: 4, k: 3, v: 2 };

/// Every variant over packed sequences, an empty one among them, with an initial state.
pub fn reference_gradients(op: &dyn SequenceOp, device: &Device) -> Report {
    let mut report = match ready(op.name(), "reference_gradients", device) {
        Ok(report) => report,
        Err(report) => return report,
    };
    for variant in 0..op.variants().len() {
        let seqs = PackedSeqs::from_lens(&[3, 0, 4]);
        let case = Case {
            t: seqs.total(),
            packed: Some(seqs),
            dtype: DType::F64,
            initial: true,
            ..base(op, variant, SHAPE, &Device::Cpu)
        };
        let label = format!("{} reference_gradients: {}", op.name(), case.describe());
        let (inputs, arrays) = all_inputs(op, &case);
        let state = if op.layouts().is_empty() { 0 } else { case.state_dims().iter().product() };
        let (w_o, w_s) = loss_weights(&case, case.t * SHAPE.hv * SHAPE.v, state);
        let names: Vec<&'static str> = inputs.iter().map(|i| i.name).collect();
        let values: Vec<Vec<f64>> = inputs.iter().map(|i| i.values.clone()).collect();
        let mut found = op.reference(&case, &arrays, &w_o, &w_s).grads;
        let grads: Vec<Option<Vec<f64>>> = names.iter().map(|name| found.remove(name)).collect();
        let loss = |x: &[Vec<f64>]| {
            let moved = Arrays(names.iter().copied().zip(x.iter().cloned()).collect());
            let out = op.reference(&case, &moved, &w_o, &w_s);
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            Ok(dot(&out.o, &w_o) + dot(&out.state, &w_s))
        };
        match differences(&label, &names, &values, &grads, loss) {
            Ok(more) => report.extend(more),
            Err(e) => report.fail(&label, "differences", e.to_string()),
        }
    }
    report
}
