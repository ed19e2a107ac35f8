//! The optimizer on a device beside the CPU: what `flashlin verify-ops --device` runs for it, so that a GPU machine needs a binary and no cargo.

use std::sync::Arc;

use flashlin_tensor::{DType, Device, Gradients, Parameter, Philox, Tensor, checks::Check};

use super::{AdamW, StepValues};
use crate::{Result, config::OptimConfig};

/// Shapes around and above a block of every kernel.
const DIMS: [&[usize]; 5] = [&[3], &[130, 127], &[1], &[5, 7, 2], &[70_001]];
const STEPS: u64 = 7;
/// The step whose gradient holds an infinity.
const BROKEN: u64 = 4;

/// What a run of a few steps leaves: master weights, parameters, and what the steps decided.
struct Left {
    weights: Vec<f64>,
    rounded: Vec<f64>,
    steps: Vec<StepValues>,
}

/// Steps with clipping and without, one that is skipped, a parameter that does not decay and one without gradients.
fn run(device: &Device, dtype: DType, resume: bool) -> Result<Left> {
    let config = OptimConfig { max_norm: 20.0, ..OptimConfig::default() };
    let normal = |name: String, dims: &[usize], dtype: DType| {
        Philox::named(7, &name).randn(0.0, 1.0, dims, dtype, device)
    };
    let make = |(i, dims): (usize, &&[usize])| {
        Ok(Arc::new(Parameter::new(format!("p{i}"), normal(format!("w{i}"), dims, dtype)?)))
    };
    let mut params = DIMS.iter().enumerate().map(make).collect::<Result<Vec<_>>>()?;
    let decays = |name: &str| name != "p2";
    let mut adam = AdamW::new(&config, &params, decays)?;
    let mut steps = Vec::new();
    for step in 0..STEPS {
        if resume && step == STEPS / 2 {
            let state = adam.state();
            let again = |p: &Arc<Parameter>| Ok(Arc::new(Parameter::new(p.name(), p.tensor().copy()?)));
            params = params.iter().map(again).collect::<Result<Vec<_>>>()?;
            adam = AdamW::new(&config, &params, decays)?;
            adam.load_state(state)?;
        }
        let mut grads = Gradients::default();
        for p in params.iter().filter(|p| p.name() != "p3") {
            let scale = match (step, p.name()) {
                (BROKEN, "p1") => f64::INFINITY,
                _ if step % 2 == 0 => 1.0,
                _ => 0.01,
            };
            let g = normal(format!("g{}{step}", p.name()), &p.dims(), DType::F32)?;
            grads.set_param(p, g.affine(scale, 0.0)?)?;
        }
        let loss = Tensor::full(1.0, &[], DType::F32, device)?;
        steps.push(adam.step(&grads, 1e-2 / (step + 1) as f64, &loss)?.read()?);
    }
    let (mut weights, mut rounded) = (Vec::new(), Vec::new());
    for (slot, param) in adam.slots.iter().zip(&params) {
        weights.extend(slot.master.clone().unwrap_or(param.tensor()).to_f64_vec()?);
        rounded.extend(param.tensor().to_f64_vec()?);
    }
    Ok(Left { weights, rounded, steps })
}

/// |a - b| / |b|
fn relative(a: &[f64], b: &[f64]) -> f64 {
    let off: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    let error = (off / b.iter().map(|b| b * b).sum::<f64>()).sqrt();
    if a.len() == b.len() && error.is_finite() { error } else { f64::INFINITY }
}

/// What the steps decided, as numbers that can be compared.
fn decided(steps: &[StepValues]) -> Vec<f64> {
    let finite = |x: f64| if x.is_finite() { x } else { -1.0 };
    let counts = |s: &StepValues| [s.applied_steps, s.skipped_steps, s.skipped_in_a_row].map(|n| n as f64);
    steps
        .iter()
        .flat_map(|s| {
            [finite(s.grad_norm), finite(s.clip), f64::from(u8::from(s.applied))].into_iter().chain(counts(s))
        })
        .collect()
}

/// 0 where all bits agree.
fn same(a: &Left, b: &Left) -> f64 {
    let bits = |l: &Left| l.weights.iter().chain(&l.rounded).map(|x| x.to_bits()).collect::<Vec<_>>();
    if bits(a) == bits(b) { 0.0 } else { f64::INFINITY }
}

/// Every check of the optimizer on `device`.
pub fn run_checks(device: &Device) -> Vec<Check> {
    let mut out = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let mut add = |what: &str, error: Result<f64>, tolerance: f64| {
            // A failure to run is a failed check that says why.
            let error = error.map_err(|e| match e {
                crate::Error::Tensor(e) => e,
                other => flashlin_tensor::Error::invalid("adamw", "step", other.to_string()),
            });
            out.push(Check { name: format!("adamw {dtype}: {what}"), error, tolerance });
        };
        let both = run(&Device::Cpu, dtype, false).and_then(|cpu| Ok((cpu, run(device, dtype, false)?)));
        let (cpu, there) = match both {
            Ok(both) => both,
            Err(e) => {
                add("runs", Err(e), 0.0);
                continue;
            }
        };
        add("weights", Ok(relative(&there.weights, &cpu.weights)), 2e-6);
        add(
            "norms, clipping, skipped steps",
            Ok(relative(&decided(&there.steps), &decided(&cpu.steps))),
            2e-6,
        );
        add("a second run has the same bits", run(device, dtype, false).map(|l| same(&l, &there)), 0.0);
        add("a resumed run has the same bits", run(device, dtype, true).map(|l| same(&l, &there)), 0.0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself_and_skips_the_broken_step() {
        let all = run_checks(&Device::Cpu);
        assert_eq!(all.len(), 12);
        for check in &all {
            assert!(check.passed() && check.error.as_ref().is_ok_and(|e| *e == 0.0), "{check:?}");
        }
        let seen = run(&Device::Cpu, DType::BF16, false).unwrap().steps;
        assert_eq!(seen.iter().filter(|s| !s.applied).count(), 1);
        assert!(!seen[BROKEN as usize].applied && seen[0].clip < 1.0 && seen[1].clip == 1.0);
        assert!(relative(&[1.0, f64::NAN], &[1.0, 2.0]).is_infinite());
    }
}
