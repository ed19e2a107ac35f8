//! Checks of the `optim` family: sums of squares, what an AdamW step decides, and its update.

use super::{Case, Data, Expected, Inputs, KernelCheck, Value};
use crate::{Kernel, Result};

pub(super) struct SumSquares;
pub(super) struct Decide;
pub(super) struct Update;

const INPUTS: Inputs = Inputs { seed: 53 };
const BETAS: [f64; 2] = [0.9, 0.999];

fn f32s(values: &[f64]) -> Result<Data> {
    Data::round("f32", values)
}

fn float(x: f64) -> Value {
    Value::F32(x as f32)
}

fn lanes(kernel: &Kernel) -> Result<usize> {
    Ok(kernel.need_generic("N")? as usize)
}

impl KernelCheck for SumSquares {
    fn kernel(&self) -> &'static str {
        "sum_squares"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let block = 16 * lanes(kernel)?;
        [1, block, 2 * block + 77]
            .into_iter()
            .map(|n| {
                let data = Data::round(&kernel.dtype, &INPUTS.uniform(n as u64, n, -2.0, 1.0))?;
                let squares = data.to_f64().chunks(block).map(|b| b.iter().map(|x| x * x).sum()).collect();
                let args = vec![
                    ("x", Value::In(data)),
                    ("part", Value::out("f32", squares)),
                    ("n", Value::size(n)),
                    ("at", Value::size(0)),
                ];
                Ok(Case { label: format!("n = {n}"), args, grid: [n.div_ceil(block) as u32, 1, 1] })
            })
            .collect()
    }
}

impl KernelCheck for Decide {
    fn kernel(&self) -> &'static str {
        "adamw_decide"
    }

    fn cases(&self, _: &Kernel) -> Result<Vec<Case>> {
        // (parts, loss, counters before, largest norm, skip)
        let all: [(usize, f64, [f64; 3], f64, bool); 5] = [
            (3, 2.5, [0.0, 0.0, 0.0], 1.0, true),
            (1500, 2.5, [99.0, 2.0, 1.0], 1.0, true),
            (40, 2.5, [9999.0, 0.0, 0.0], 0.0, true),
            (3, f64::INFINITY, [7.0, 1.0, 1.0], 1.0, true),
            (3, f64::NAN, [7.0, 1.0, 1.0], 1.0, false),
        ];
        all.into_iter()
            .map(|(n, loss, count, most, skip)| {
                let parts = f32s(&INPUTS.uniform(n as u64, n, 0.0, 3.0))?;
                let norm = parts.to_f64().iter().sum::<f64>().sqrt();
                let go = if skip && !loss.is_finite() { 0.0 } else { 1.0 };
                let clip = if most > 0.0 { (most / (norm + 1e-6)).min(1.0) } else { 1.0 };
                let after = [count[0] + go, count[1] + 1.0 - go, (count[2] + 1.0) * (1.0 - go)];
                let t = after[0].max(1.0);
                let [c1, c2] = BETAS.map(|b: f64| -(t * b.ln()).exp_m1());
                let args = vec![
                    ("part", Value::In(parts)),
                    ("loss", Value::In(f32s(&[loss])?)),
                    (
                        "count",
                        Value::InOut { data: f32s(&count)?, expected: Expected::of("f32", after.to_vec()) },
                    ),
                    ("out", Value::out("f32", vec![norm, clip, go, 1.0 / c1, 1.0 / c2.sqrt()])),
                    ("n", Value::size(n)),
                    ("skip", Value::size(skip as usize)),
                    ("max_norm", float(most)),
                    ("log1", float(BETAS[0].ln())),
                    ("log2", float(BETAS[1].ln())),
                ];
                let label = format!("{n} parts, loss {loss}, {count:?}");
                Ok(Case { label, args, grid: [1, 1, 1] })
            })
            .collect()
    }
}

impl KernelCheck for Update {
    fn kernel(&self) -> &'static str {
        "adamw_update"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let half = kernel.dtype != "f32";
        let n = 2500_usize.next_multiple_of(super::array::vector(kernel));
        let [lr, eps, keep, c1, c2] = [3e-3, 1e-8, 0.9997, 2.5, 7.0];
        let dtype = if kernel.dtype == "f16" { "f16" } else { "bf16" };
        [1.0, 0.0]
            .into_iter()
            .map(|go| {
                let values = f32s(&[3.0, 0.4, go, c1, c2])?;
                let clip = values.to_f64()[1];
                let draw = |stream, low, high| f32s(&INPUTS.uniform(stream, n, low, high));
                let (w, g, m, v) =
                    (draw(1, -1.0, 1.0)?, draw(2, -2.0, 2.0)?, draw(3, -0.1, 0.1)?, draw(4, 0.0, 0.2)?);
                let at = |i: usize| {
                    let (w, g, m, v) = (w.to_f64()[i], g.to_f64()[i] * clip, m.to_f64()[i], v.to_f64()[i]);
                    (w, g, m, v)
                };
                let [b1, b2] = BETAS;
                let step = |i: usize| {
                    let (w, g, m, v) = at(i);
                    if go == 0.0 {
                        return [w, m, v];
                    }
                    let (m, v) = (b1 * m + (1.0 - b1) * g, b2 * v + (1.0 - b2) * g * g);
                    [keep * w - lr * c1 * m / (v.sqrt() * c2 + eps), m, v]
                };
                let after: Vec<[f64; 3]> = (0..n).map(step).collect();
                let in_out = |data: &Data, k: usize| Value::InOut {
                    data: data.clone(),
                    expected: Expected::of("f32", after.iter().map(|a| a[k]).collect()),
                };
                let p = match half {
                    false => Value::Null,
                    true => {
                        let old = Data::round(dtype, &w.to_f64())?;
                        let want =
                            if go == 0.0 { old.to_f64() } else { after.iter().map(|a| a[0]).collect() };
                        Value::InOut { data: old, expected: Expected::of(dtype, want) }
                    }
                };
                let args = vec![
                    ("p", p),
                    ("w", in_out(&w, 0)),
                    ("grad", Value::In(g.clone())),
                    ("m", in_out(&m, 1)),
                    ("v", in_out(&v, 2)),
                    ("values", Value::In(values)),
                    ("n", Value::size(n)),
                    ("half", Value::size(half as usize)),
                    ("beta1", float(b1)),
                    ("beta2", float(b2)),
                    ("lr", float(lr)),
                    ("eps", float(eps)),
                    ("keep", float(keep)),
                ];
                let grid = [n.div_ceil(lanes(kernel)?) as u32, 1, 1];
                Ok(Case { label: format!("applied {go}"), args, grid })
            })
            .collect()
    }
}
