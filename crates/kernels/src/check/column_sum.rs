//! The check of the sum that ends a weight's gradient.

use super::{Case, Data, Expected, Inputs, KernelCheck, Value};
use crate::{Error, Kernel, Result};

pub(super) struct ColumnSum;

const INPUTS: Inputs = Inputs { seed: 59 };

fn dtype_of(kernel: &Kernel) -> Result<&'static str> {
    ["bf16", "f16", "f32"].into_iter().find(|d| *d == kernel.dtype).ok_or_else(|| Error::Entry {
        name: kernel.name.clone(),
        why: format!("dtype {}; there are bf16, f16, f32", kernel.dtype),
    })
}

impl KernelCheck for ColumnSum {
    fn kernel(&self) -> &'static str {
        "column_sum"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let (dtype, r, dt) =
            (dtype_of(kernel)?, kernel.need_generic("R")? as usize, kernel.need_generic("DT")? as usize);
        let mut cases = Vec::new();
        for (add, n, d) in [(0, 1, dt), (1, 2 * r + 3, 2 * dt + 8)] {
            let x = Data::round("f32", &INPUTS.uniform(200 + n as u64, n * d, -1.0, 2.0))?;
            let old = Data::round(dtype, &INPUTS.uniform(300, d, -1.0, 1.0))?;
            let values = x.to_f64();
            let column = |c: usize| (0..n).map(|i| values[i * d + c]).sum::<f64>();
            let before = old.to_f64();
            let sums: Vec<f64> = (0..d).map(|c| column(c) + if add == 1 { before[c] } else { 0.0 }).collect();
            let y = match add {
                0 => Value::out(dtype, sums),
                _ => Value::InOut { data: old, expected: Expected::of(dtype, sums) },
            };
            let args = vec![
                ("x", Value::In(x)),
                ("y", y),
                ("n", Value::size(n)),
                ("d", Value::size(d)),
                ("add", Value::size(add)),
            ];
            cases.push(Case {
                label: format!("{n} x {d}, add {add}"),
                args,
                grid: [d.div_ceil(dt) as u32, 1, 1],
            });
        }
        Ok(cases)
    }
}
