//! Checks of the norms of any width: the definition group by group, its gradient by the chain rule.

use super::{Case, Data, Expected, Inputs, KernelCheck, Value, functions::function};
use crate::{Kernel, Result};

pub(super) struct Forward;
pub(super) struct Backward;

const INPUTS: Inputs = Inputs { seed: 73 };
const EPS: f64 = 1e-3;
const ROWS: usize = 5;

/// What is computed: 0 RMS, 1 layer, 2 L2; gate codes as the kernel's; whether residual, sum, weight, bias are there.
#[derive(Clone, Copy)]
struct Form {
    size: usize,
    groups: usize,
    kind: i32,
    gate: i32,
    full: bool,
}

/// Every kind and gate code; widths with a ragged end, one of them beyond a tile.
fn forms(kernel: &Kernel) -> Result<Vec<Form>> {
    let lanes = kernel.need_generic("N")? as usize;
    let form = |(i, (kind, gate)): (usize, (i32, i32))| {
        let (size, groups) = [(lanes + 37, 1), (39, 3), (lanes, 2)][i % 3];
        Form { size, groups, kind, gate, full: i % 2 == 0 }
    };
    let all = (0..3).flat_map(|kind| (0..5).map(move |gate| (kind, gate)));
    Ok(all.enumerate().map(form).collect())
}

/// Inputs as the device sees them.
struct Made {
    data: Vec<Data>,
    x: Vec<f64>,
    res: Vec<f64>,
    gate: Vec<f64>,
    w: Vec<f64>,
    bias: Vec<f64>,
    dy: Vec<f64>,
    dsum: Vec<f64>,
}

impl Form {
    fn width(&self) -> usize {
        self.size * self.groups
    }

    fn label(&self) -> String {
        let Form { size, groups, kind, gate, full } = self;
        format!("{groups} x {size}, kind {kind}, gate {gate}, all arrays {full}")
    }

    fn make(&self, dtype: &str) -> Result<Made> {
        let (d, n) = (self.width(), ROWS * self.width());
        let one = |stream, len, dtype| Data::round(dtype, &INPUTS.uniform(stream, len, -1.5, 1.5));
        let data = vec![
            one(1, n, dtype)?,
            one(2, n, dtype)?,
            one(3, n, dtype)?,
            one(4, d, "f32")?,
            one(5, d, "f32")?,
            one(6, n, dtype)?,
            one(7, n, dtype)?,
        ];
        let mut all = data.iter().map(Data::to_f64);
        let mut next = || all.next().unwrap_or_default();
        let (x, res, gate, w, bias, dy, dsum) = (next(), next(), next(), next(), next(), next(), next());
        Ok(Made { data, x, res, gate, w, bias, dy, dsum })
    }

    /// act(gate) and its slope.
    fn act(&self, g: f64) -> (f64, f64) {
        match self.gate {
            0 => (1.0, 0.0),
            1 | 3 => function((3, 0.0, 0.0), g),
            _ => function((1, 0.0, 0.0), g),
        }
    }

    fn first(&self) -> bool {
        self.gate > 2
    }

    /// Normalised values and 1 / root of each group of `u`.
    fn hats(&self, u: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let mut hats = Vec::new();
        let mut roots = Vec::new();
        for group in u.chunks(self.size) {
            let n = group.len() as f64;
            let mean = if self.kind == 1 { group.iter().sum::<f64>() / n } else { 0.0 };
            let squares: f64 = group.iter().map(|u| (u - mean).powi(2)).sum();
            let r = (squares / if self.kind == 2 { 1.0 } else { n } + EPS).sqrt().recip();
            hats.extend(group.iter().map(|u| (u - mean) * r));
            roots.push(r);
        }
        (hats, roots)
    }

    fn weight(&self, m: &Made, i: usize) -> (f64, f64) {
        let c = i % self.width();
        if self.full { (m.w[c], m.bias[c]) } else { (1.0, 0.0) }
    }

    /// d, size, kind, gate_code
    fn sizes(&self) -> [(&'static str, Value); 4] {
        [
            ("d", Value::size(self.width())),
            ("size", Value::size(self.size)),
            ("kind", Value::I32(self.kind)),
            ("gate_code", Value::I32(self.gate)),
        ]
    }

    fn grid(&self) -> [u32; 3] {
        [ROWS as u32, self.groups as u32, 1]
    }
}

fn dtype(kernel: &Kernel) -> &'static str {
    ["bf16", "f16"].into_iter().find(|d| *d == kernel.dtype).unwrap_or("f32")
}

impl KernelCheck for Forward {
    fn kernel(&self) -> &'static str {
        "norm_any_fwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        forms(kernel)?.iter().map(|f| forward(kernel, f)).collect()
    }
}

fn forward(kernel: &Kernel, f: &Form) -> Result<Case> {
    let e = dtype(kernel);
    let m = f.make(e)?;
    let n = m.x.len();
    let sum: Vec<f64> = (0..n).map(|i| m.x[i] + if f.full { m.res[i] } else { 0.0 }).collect();
    let u: Vec<f64> = (0..n).map(|i| sum[i] * if f.first() { f.act(m.gate[i]).0 } else { 1.0 }).collect();
    let hats = f.hats(&u).0;
    let value = |i: usize| {
        let (w, b) = f.weight(&m, i);
        (hats[i] * w + b) * if f.first() { 1.0 } else { f.act(m.gate[i]).0 }
    };
    let y = (0..n).map(value).collect();
    let mut data = m.data.into_iter().map(Value::In);
    let mut args: Vec<(&'static str, Value)> =
        ["x", "res", "gate", "w", "bias"].into_iter().zip(&mut data).collect();
    let sums = if f.full { Value::out(e, sum) } else { Value::Scratch(n * 4) };
    args.extend([("y", Value::out(e, y)), ("sum", sums)]);
    args.extend(f.sizes());
    let flag = Value::size(usize::from(f.full));
    args.extend(["has_res", "has_sum", "has_w", "has_bias"].map(|name| (name, flag.clone())));
    args.push(("eps", Value::F32(EPS as f32)));
    Ok(Case { label: f.label(), args, grid: f.grid() })
}

impl KernelCheck for Backward {
    fn kernel(&self) -> &'static str {
        "norm_any_bwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        forms(kernel)?.iter().map(|f| backward(kernel, f)).collect()
    }
}

/// dx, dgate, and each row's part of dw and db.
fn gradients(f: &Form, m: &Made) -> [Vec<f64>; 4] {
    let n = m.x.len();
    let u: Vec<f64> = (0..n).map(|i| m.x[i] * if f.first() { f.act(m.gate[i]).0 } else { 1.0 }).collect();
    let (hats, roots) = f.hats(&u);
    let [mut dx, mut dgate, mut dw, mut db] = [0; 4].map(|_| vec![0.0; n]);
    let mut by_hat = vec![0.0; n];
    for i in 0..n {
        let ((w, b), (value, slope)) = (f.weight(m, i), f.act(m.gate[i]));
        let last = if f.first() { 1.0 } else { value };
        dgate[i] = m.dy[i] * (hats[i] * w + b) * slope;
        db[i] = m.dy[i] * last;
        dw[i] = db[i] * hats[i];
        by_hat[i] = db[i] * w;
    }
    for (g, start) in (0..n).step_by(f.size).enumerate() {
        let group = start..start + f.size;
        let over = if f.kind == 2 { 1.0 } else { f.size as f64 };
        let along = group.clone().map(|i| by_hat[i] * hats[i]).sum::<f64>() / over;
        let level = if f.kind == 1 { group.clone().map(|i| by_hat[i]).sum::<f64>() / over } else { 0.0 };
        for i in group {
            let du = (by_hat[i] - level - hats[i] * along) * roots[g];
            let (value, slope) = f.act(m.gate[i]);
            if f.first() {
                dgate[i] = du * m.x[i] * slope;
            }
            dx[i] = du * if f.first() { value } else { 1.0 } + if f.full { m.dsum[i] } else { 0.0 };
        }
    }
    [dx, dgate, dw, db]
}

fn backward(kernel: &Kernel, f: &Form) -> Result<Case> {
    let e = dtype(kernel);
    let m = f.make(e)?;
    let n = m.x.len();
    let [dx, dgate, dw, db] = gradients(f, &m);
    let data: Vec<Value> = m.data.into_iter().map(Value::In).collect();
    let named = [("x", 0), ("gate", 2), ("w", 3), ("bias", 4), ("dy", 5), ("dsum", 6)];
    let mut args: Vec<(&'static str, Value)> = named.map(|(name, i)| (name, data[i].clone())).to_vec();
    let optional = |wanted: bool, dtype, values| {
        if wanted { Value::out(dtype, values) } else { Value::Scratch(n * 4) }
    };
    // Sums of products of rounded numbers: the tolerance of the inputs.
    let part = |values| match f.full {
        true => Value::Out { dtype: "f32", expected: Expected::of("f32", values) },
        false => Value::Scratch(n * 4),
    };
    args.extend([("dx", Value::out(e, dx)), ("dgate", optional(f.gate > 0, e, dgate))]);
    args.extend([("dw", part(dw)), ("db", part(db))]);
    args.extend(f.sizes());
    let flag = Value::size(usize::from(f.full));
    args.extend(["has_w", "has_bias", "has_dsum", "has_dw", "has_db"].map(|name| (name, flag.clone())));
    args.push(("eps", Value::F32(EPS as f32)));
    Ok(Case { label: f.label(), args, grid: f.grid() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests_kernel;

    /// Loss: y weighed with dy, plus the sum weighed with dsum.
    fn loss(f: &Form, m: &Made) -> f64 {
        let n = m.x.len();
        let u: Vec<f64> = (0..n).map(|i| m.x[i] * if f.first() { f.act(m.gate[i]).0 } else { 1.0 }).collect();
        let hats = f.hats(&u).0;
        let value = |i: usize| {
            let (w, b) = f.weight(m, i);
            let y = (hats[i] * w + b) * if f.first() { 1.0 } else { f.act(m.gate[i]).0 };
            y * m.dy[i] + if f.full { m.x[i] * m.dsum[i] } else { 0.0 }
        };
        (0..n).map(value).sum()
    }

    #[test]
    fn gradients_are_those_of_the_values() {
        for f in forms(&tests_kernel("norm_any_bwd", "f32", &[("N", 8)])).unwrap() {
            let mut m = f.make("f32").unwrap();
            let [dx, dgate, ..] = gradients(&f, &m);
            for i in [0, f.size - 1, f.width()] {
                let mut slope = |pick: fn(&mut Made) -> &mut Vec<f64>| {
                    let mut at = |d: f64| {
                        pick(&mut m)[i] += d;
                        let l = loss(&f, &m);
                        pick(&mut m)[i] -= d;
                        l
                    };
                    (at(1e-6) - at(-1e-6)) / 2e-6
                };
                assert!((slope(|m| &mut m.x) - dx[i]).abs() < 1e-6, "{} x {i}", f.label());
                assert!((slope(|m| &mut m.gate) - dgate[i]).abs() < 1e-6, "{} gate {i}", f.label());
            }
        }
    }
}
