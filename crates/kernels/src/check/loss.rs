//! Checks of the `loss` family: the definition in plain loops.

use super::{Case, Data, Expected, Inputs, KernelCheck, Value};
use crate::{Kernel, Result};

pub(super) struct CrossEntropy;

const INPUTS: Inputs = Inputs { seed: 47 };

/// Options of a case: label smoothing, z-loss, scale of the gradient, scale of the logits, soft cap (0: none), weight of the largest logit.
type Options = [f64; 6];

/// Loss, lse and scaled gradient of a row.
fn row(
    x: &[f64],
    label: i64,
    [smoothing, z, scale, logit_scale, cap, warp]: Options,
) -> (f64, f64, Vec<f64>) {
    let v = x.len() as f64;
    let largest = (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best });
    let pushed = |mut grad: Vec<f64>| {
        grad[largest] += warp * x[largest];
        grad
    };
    let Some(y) = usize::try_from(label).ok().filter(|y| *y < x.len()) else {
        return (0.0, 0.0, pushed(vec![0.0; x.len()]));
    };
    let shape = |x: f64| if cap > 0.0 { cap * (x * logit_scale / cap).tanh() } else { x * logit_scale };
    let l: Vec<f64> = x.iter().map(|&x| shape(x)).collect();
    let top = l.iter().copied().fold(f64::MIN, f64::max);
    let lse = top + l.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
    let mean = l.iter().sum::<f64>() / v;
    let loss = (1.0 - smoothing) * (lse - l[y]) + smoothing * (lse - mean) + z * lse * lse;
    let slope = |(i, l): (usize, &f64)| {
        let own = if i == y { 1.0 - smoothing } else { 0.0 };
        let inner = if cap > 0.0 { 1.0 - (l / cap).powi(2) } else { 1.0 };
        ((l - lse).exp() * (1.0 + 2.0 * z * lse) - own - smoothing / v) * scale * logit_scale * inner
    };
    (loss, lse, pushed(l.iter().enumerate().map(slope).collect()))
}

impl KernelCheck for CrossEntropy {
    fn kernel(&self) -> &'static str {
        "cross_entropy"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let dtype = kernel.dtype.as_str();
        let all = [
            (5, 37, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]),
            (4, 2500, [0.1, 1e-3, 0.25, 0.5, 0.0, 0.0]),
            (5, 1300, [0.1, 1e-3, 0.5, 0.75, 2.0, 0.25]),
        ];
        let mut cases = Vec::new();
        for (grad, (rows, v, options)) in all.into_iter().flat_map(|c| [(0, c), (1, c)]) {
            let data = Data::round(dtype, &INPUTS.uniform(v as u64, rows * v, -6.0, 6.0))?;
            let x = data.to_f64();
            // The last rows are ignored: by the usual number, and by one past the end.
            let mut labels: Vec<i64> = (0..rows).map(|r| (r * 17 % v) as i64).collect();
            (labels[1], labels[rows - 1]) = (-100, v as i64);
            let each: Vec<_> = x.chunks(v).zip(&labels).map(|(x, &y)| row(x, y, options)).collect();
            let after = match grad {
                0 => x.clone(),
                _ => each.iter().flat_map(|r| r.2.clone()).collect(),
            };
            let [smoothing, z, scale, logit_scale, cap, warp] = options.map(|x| Value::F32(x as f32));
            let args = vec![
                ("x", Value::InOut { data, expected: Expected::of(dtype, after) }),
                ("label", Value::In(Data::I64(labels))),
                ("loss", Value::out("f32", each.iter().map(|r| r.0).collect())),
                ("lse", Value::out("f32", each.iter().map(|r| r.1).collect())),
                ("rows", Value::I32(rows as i32)),
                ("v", Value::I32(v as i32)),
                ("grad", Value::I32(grad)),
                ("smoothing", smoothing),
                ("z", z),
                ("scale", scale),
                ("logit_scale", logit_scale),
                ("cap", cap),
                ("warp", warp),
            ];
            let label = format!("{rows} x {v}, gradient {grad}, {options:?}");
            cases.push(Case { label, args, grid: [rows as u32, 1, 1] });
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        for cap in [0.0, 1.5] {
            let options = [0.1, 0.01, 1.0, 0.5, cap, 0.0];
            let mut x = INPUTS.uniform(1, 9, -2.0, 2.0);
            let (_, _, grad) = row(&x, 4, options);
            for i in 0..9 {
                let old = x[i];
                let mut at = |v: f64| {
                    x[i] = v;
                    row(&x, 4, options).0
                };
                let slope = (at(old + 1e-6) - at(old - 1e-6)) / 2e-6;
                at(old);
                assert!((slope - grad[i]).abs() < 1e-7, "{i}: {slope} {}", grad[i]);
            }
            assert_eq!(row(&x, -100, options), (0.0, 0.0, vec![0.0; 9]));
        }
        assert_eq!(row(&[1.0, 3.0, 3.0], -100, [0.0, 0.0, 1.0, 1.0, 0.0, 0.5]).2, [0.0, 1.5, 0.0]);
    }
}
