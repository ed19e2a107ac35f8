//! Checks of the activations: each function of the table by its definition, its slope by hand.

use super::{Case, Data, Inputs, KernelCheck, Value};
use crate::{Kernel, Result};

pub(super) struct Activate;
pub(super) struct ActivateBackward;
pub(super) struct Glu;
pub(super) struct GluBackward;

const INPUTS: Inputs = Inputs { seed: 61 };
/// More than one block, and a ragged end.
/// Ends inside of a block.
fn len(kernel: &Kernel) -> usize {
    4500_usize.next_multiple_of(super::array::vector(kernel))
}

/// (code, p, q) of every function, two of those with parameters.
const FUNCTIONS: [(i32, f64, f64); 11] = [
    (0, 0.0, 0.0),
    (1, 0.0, 0.0),
    (2, 0.0, 0.0),
    (3, 0.0, 0.0),
    (4, 0.0, 0.0),
    (5, 0.0, 0.0),
    (6, 0.0, 0.0),
    (7, 2.5, 1.0),
    (7, 0.5, 20.0),
    (8, 0.0625, f64::NEG_INFINITY),
    (8, 0.5, -0.75),
];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `2 / sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!`: all terms have one sign.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..300 {
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// Value and slope.
pub(super) fn function((code, p, q): (i32, f64, f64), x: f64) -> (f64, f64) {
    let s = sigmoid(x);
    match code {
        0 => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        1 => (s, s * (1.0 - s)),
        2 => (-softplus(-x), 1.0 - s),
        3 => (x * s, s * (1.0 + x * (1.0 - s))),
        4 => (x.max(0.0).powi(2), 2.0 * x.max(0.0)),
        5 => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let t = (c * (x + 0.044715 * x * x * x)).tanh();
            let inner = c * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
        }
        6 => {
            let cdf = 0.5 * (1.0 + erf(x / 2f64.sqrt()));
            (x * cdf, cdf + x * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt())
        }
        7 if p * x > q => (x, 1.0),
        7 => (softplus(p * x) / p, sigmoid(p * x)),
        _ if -p * softplus(-x) < q => (q, 0.0),
        _ => (-p * softplus(-x), p * (1.0 - s)),
    }
}

pub(super) fn dtype(kernel: &Kernel) -> &'static str {
    ["bf16", "f16"].into_iter().find(|d| *d == kernel.dtype).unwrap_or("f32")
}

fn numbers(kernel: &Kernel, stream: u64, size: f64) -> Result<(Data, Vec<f64>)> {
    let data = Data::round(dtype(kernel), &INPUTS.uniform(stream, len(kernel), -size, size))?;
    let values = data.to_f64();
    Ok((data, values))
}

fn grid(kernel: &Kernel) -> Result<[u32; 3]> {
    Ok([len(kernel).div_ceil(kernel.need_generic("N")? as usize) as u32, 1, 1])
}

/// n, code and, where the kernel takes them, the parameters.
fn tail(kernel: &Kernel, (code, p, q): (i32, f64, f64), params: bool) -> Vec<(&'static str, Value)> {
    let mut out = vec![("n", Value::size(len(kernel))), ("code", Value::I32(code))];
    if params {
        out.extend([("p", Value::F32(p as f32)), ("q", Value::F32(q as f32))]);
    }
    out
}

impl KernelCheck for Activate {
    fn kernel(&self) -> &'static str {
        "act_fwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let case = |f: (i32, f64, f64)| {
            let (x, xs) = numbers(kernel, f.0 as u64, 6.0)?;
            let y = xs.iter().map(|&x| function(f, x).0).collect();
            let mut args = vec![("x", Value::In(x)), ("y", Value::out(dtype(kernel), y))];
            args.extend(tail(kernel, f, true));
            Ok(Case { label: format!("{f:?}"), args, grid: grid(kernel)? })
        };
        FUNCTIONS.into_iter().map(case).collect()
    }
}

impl KernelCheck for ActivateBackward {
    fn kernel(&self) -> &'static str {
        "act_bwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let case = |f: (i32, f64, f64)| {
            let (x, xs) = numbers(kernel, f.0 as u64, 6.0)?;
            let (dy, ds) = numbers(kernel, 100, 1.5)?;
            let dx = xs.iter().zip(&ds).map(|(&x, d)| function(f, x).1 * d).collect();
            let mut args =
                vec![("x", Value::In(x)), ("dy", Value::In(dy)), ("dx", Value::out(dtype(kernel), dx))];
            args.extend(tail(kernel, f, true));
            Ok(Case { label: format!("{f:?}"), args, grid: grid(kernel)? })
        };
        FUNCTIONS.into_iter().map(case).collect()
    }
}

impl KernelCheck for Glu {
    fn kernel(&self) -> &'static str {
        "glu_fwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let case = |f: (i32, f64, f64)| {
            let (g, gs) = numbers(kernel, f.0 as u64, 6.0)?;
            let (u, us) = numbers(kernel, 101, 1.5)?;
            let y = gs.iter().zip(&us).map(|(&g, u)| function(f, g).0 * u).collect();
            let mut args =
                vec![("g", Value::In(g)), ("u", Value::In(u)), ("y", Value::out(dtype(kernel), y))];
            args.extend(tail(kernel, f, false));
            Ok(Case { label: format!("code {}", f.0), args, grid: grid(kernel)? })
        };
        FUNCTIONS.into_iter().take(7).map(case).collect()
    }
}

impl KernelCheck for GluBackward {
    fn kernel(&self) -> &'static str {
        "glu_bwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let case = |f: (i32, f64, f64)| {
            let (g, gs) = numbers(kernel, f.0 as u64, 6.0)?;
            let (u, us) = numbers(kernel, 101, 1.5)?;
            let (dy, ds) = numbers(kernel, 102, 1.5)?;
            let dg = (0..gs.len()).map(|i| function(f, gs[i]).1 * us[i] * ds[i]).collect();
            let du = (0..gs.len()).map(|i| function(f, gs[i]).0 * ds[i]).collect();
            let out = |v| Value::out(dtype(kernel), v);
            let mut args = vec![("g", Value::In(g)), ("u", Value::In(u)), ("dy", Value::In(dy))];
            args.extend([("dg", out(dg)), ("du", out(du))]);
            args.extend(tail(kernel, f, false));
            Ok(Case { label: format!("code {}", f.0), args, grid: grid(kernel)? })
        };
        FUNCTIONS.into_iter().take(7).map(case).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_values() {
        for f in FUNCTIONS {
            for x in [-5.3, -1.1, -0.2, 0.3, 1.7, 4.9] {
                let slope = (function(f, x + 1e-6).0 - function(f, x - 1e-6).0) / 2e-6;
                assert!((slope - function(f, x).1).abs() < 1e-7, "{f:?} at {x}: {slope}");
            }
        }
    }
}
