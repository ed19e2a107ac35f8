//! Checks of the decay gates: the two formulas, token by token.

use super::{Case, Data, Inputs, KernelCheck, Value};
use crate::{Kernel, Result};

pub(super) struct DecayGate;
pub(super) struct DecayGateBackward;

const INPUTS: Inputs = Inputs { seed: 67 };

/// A gate: tokens, heads, channels of a head, the formula (lower bound, or softplus), and whether there are parameters.
struct Problem {
    tokens: usize,
    heads: usize,
    per: usize,
    bound: Option<f64>,
    params: bool,
}

const PROBLEMS: [Problem; 4] = [
    Problem { tokens: 300, heads: 3, per: 1, bound: None, params: true },
    Problem { tokens: 70, heads: 5, per: 29, bound: None, params: true },
    Problem { tokens: 70, heads: 5, per: 29, bound: Some(-5.0), params: true },
    Problem { tokens: 9, heads: 2, per: 70, bound: Some(-2.0), params: false },
];

/// Inputs as the device sees them, and the launch's last arguments.
struct Made {
    x: Data,
    a_log: Data,
    bias: Data,
    dy: Data,
}

impl Problem {
    fn row(&self) -> usize {
        self.heads * self.per
    }

    fn make(&self, kernel: &Kernel) -> Result<Made> {
        let n = self.tokens * self.row();
        Ok(Made {
            x: Data::round(&kernel.dtype, &INPUTS.uniform(1, n, -3.0, 3.0))?,
            a_log: Data::round("f32", &INPUTS.uniform(2, self.heads, -1.0, 1.0))?,
            bias: Data::round("f32", &INPUTS.uniform(3, self.row(), -1.0, 1.0))?,
            dy: Data::round("f32", &INPUTS.uniform(4, n, -1.0, 1.0))?,
        })
    }

    /// Value, and derivatives by the biased logit and by A, of element i.
    fn at(&self, m: &[Vec<f64>; 3], i: usize) -> [f64; 3] {
        let c = i % self.row();
        let (bias, a) = if self.params { (m[2][c], m[1][c / self.per].exp()) } else { (0.0, 1.0) };
        let z = m[0][i] + bias;
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self.bound {
            None => [-a * z.exp().ln_1p(), -a * sigmoid(z), -a * z.exp().ln_1p()],
            Some(bound) => {
                let s = sigmoid(a * z);
                let by = bound * s * (1.0 - s) * a;
                [bound * s, by, by * z]
            }
        }
    }

    fn numbers(m: &Made) -> [Vec<f64>; 3] {
        [m.x.to_f64(), m.a_log.to_f64(), m.bias.to_f64()]
    }

    /// code, bound, has_a, has_bias
    fn tail(&self) -> [(&'static str, Value); 4] {
        let flag = Value::size(usize::from(self.params));
        [
            ("code", Value::size(usize::from(self.bound.is_some()))),
            ("bound", Value::F32(self.bound.unwrap_or(0.0) as f32)),
            ("has_a", flag.clone()),
            ("has_bias", flag),
        ]
    }

    fn label(&self) -> String {
        let Problem { tokens, heads, per, bound, params } = self;
        format!("{tokens} tokens, {heads} heads of {per}, bound {bound:?}, parameters {params}")
    }
}

impl KernelCheck for DecayGate {
    fn kernel(&self) -> &'static str {
        "decay_gate_fwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let case = |p: &Problem| {
            let m = p.make(kernel)?;
            let numbers = Problem::numbers(&m);
            let n = p.tokens * p.row();
            let y = (0..n).map(|i| p.at(&numbers, i)[0]).collect();
            let mut args =
                vec![("x", Value::In(m.x)), ("a_log", Value::In(m.a_log)), ("bias", Value::In(m.bias))];
            args.extend([("y", Value::out("f32", y)), ("n", Value::size(n)), ("row", Value::size(p.row()))]);
            args.push(("per", Value::size(p.per)));
            args.extend(p.tail());
            let grid = [n.div_ceil(kernel.need_generic("N")? as usize) as u32, 1, 1];
            Ok(Case { label: p.label(), args, grid })
        };
        PROBLEMS.iter().map(case).collect()
    }
}

impl KernelCheck for DecayGateBackward {
    fn kernel(&self) -> &'static str {
        "decay_gate_bwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let dtype = ["bf16", "f16"].into_iter().find(|d| *d == kernel.dtype).unwrap_or("f32");
        let case = |p: &Problem| {
            let m = p.make(kernel)?;
            let (numbers, dy) = (Problem::numbers(&m), m.dy.to_f64());
            let (n, row, step) = (p.tokens * p.row(), p.row(), 64);
            let pieces = p.tokens.div_ceil(step);
            let (mut dx, mut parts) = (vec![0.0; n], vec![0.0; pieces * 2 * row]);
            for i in 0..n {
                let [_, by_z, by_a] = p.at(&numbers, i);
                dx[i] = by_z * dy[i];
                let at = i / row / step * 2 * row + i % row;
                parts[at] += dx[i];
                parts[at + row] += by_a * dy[i];
            }
            let mut args =
                vec![("x", Value::In(m.x)), ("a_log", Value::In(m.a_log)), ("bias", Value::In(m.bias))];
            args.extend([("dy", Value::In(m.dy)), ("dx", Value::out(dtype, dx))]);
            args.extend([("parts", Value::out("f32", parts)), ("tokens", Value::size(p.tokens))]);
            args.extend([
                ("row", Value::size(row)),
                ("per", Value::size(p.per)),
                ("step", Value::size(step)),
            ]);
            args.extend(p.tail());
            let lanes = kernel.need_generic("N")? as usize;
            Ok(Case { label: p.label(), args, grid: [row.div_ceil(lanes) as u32, pieces as u32, 1] })
        };
        PROBLEMS.iter().map(case).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_those_of_the_values() {
        for p in PROBLEMS.iter().filter(|p| p.params) {
            let mut m = [vec![0.7; p.row()], vec![0.3; p.heads], vec![-0.2; p.row()]];
            let [_, by_z, by_a] = p.at(&m, 0);
            for (k, want) in [(0, by_z), (1, by_a)] {
                let mut at = |d: f64| {
                    m[k][0] += d;
                    let y = p.at(&m, 0)[0];
                    m[k][0] -= d;
                    y
                };
                let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!((slope - want).abs() < 1e-7, "{}: {slope} {want}", p.label());
            }
        }
    }
}
