//! The check of the rotary embedding: pairs turned one by one.

use super::{Case, Data, Inputs, KernelCheck, Value};
use crate::{Kernel, Result};

pub(super) struct Rope;

const INPUTS: Inputs = Inputs { seed: 71 };
const TOKENS: usize = 13;
/// Rows of the table.
const PLACES: usize = 9;

/// Heads, channels, half of the rotated ones, neighbours paired, sign.
const CASES: [(usize, usize, usize, bool, f64); 4] =
    [(3, 64, 32, false, 1.0), (2, 37, 9, false, -1.0), (2, 37, 9, true, 1.0), (1, 10, 5, true, -1.0)];

impl KernelCheck for Rope {
    fn kernel(&self) -> &'static str {
        "rope"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let dtype = ["bf16", "f16"].into_iter().find(|d| *d == kernel.dtype).unwrap_or("f32");
        let mut out = Vec::new();
        for (h, d, half, interleaved, sign) in CASES {
            let x = Data::round(dtype, &INPUTS.uniform(d as u64, TOKENS * h * d, -1.5, 1.5))?;
            let angle = INPUTS.uniform(2, PLACES * half, -3.0, 3.0);
            let table =
                |f: fn(f64) -> f64| Data::round("f32", &angle.iter().map(|&a| f(a)).collect::<Vec<_>>());
            let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
            let position: Vec<i32> =
                (0..TOKENS as i32).map(|t| (t * 5) % (2 * PLACES as i32 - 1) - 8).collect();
            let y =
                turn(&x.to_f64(), [&cos.to_f64(), &sin.to_f64()], &position, (h, d, half, interleaved, sign));
            let n = TOKENS * h * (d - half);
            let args = vec![
                ("x", Value::In(x)),
                ("cos", Value::In(cos)),
                ("sin", Value::In(sin)),
                ("position", Value::In(Data::I32(position))),
                ("y", Value::out(dtype, y)),
                ("n", Value::size(n)),
                ("h", Value::size(h)),
                ("d", Value::size(d)),
                ("half", Value::size(half)),
                ("interleaved", Value::size(usize::from(interleaved))),
                ("sign", Value::F32(sign as f32)),
            ];
            let label = format!("{h} heads of {d}, {half} pairs, interleaved {interleaved}, sign {sign}");
            out.push(Case {
                label,
                args,
                grid: [n.div_ceil(kernel.need_generic("N")? as usize) as u32, 1, 1],
            });
        }
        Ok(out)
    }
}

fn turn(
    x: &[f64],
    [cos, sin]: [&[f64]; 2],
    position: &[i32],
    (h, d, half, interleaved, sign): (usize, usize, usize, bool, f64),
) -> Vec<f64> {
    let mut y = x.to_vec();
    for (row, y) in y.chunks_mut(d).enumerate() {
        let p = position[row / h];
        for j in 0..half {
            let at = p.unsigned_abs() as usize * half + j;
            let (c, s) = (cos[at], sin[at] * sign * if p < 0 { -1.0 } else { 1.0 });
            let (i, k) = if interleaved { (2 * j, 2 * j + 1) } else { (j, j + half) };
            let (a, b) = (x[row * d + i], x[row * d + k]);
            (y[i], y[k]) = (a * c - b * s, a * s + b * c);
        }
    }
    y
}
