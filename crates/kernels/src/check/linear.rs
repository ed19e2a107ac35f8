//! The checks of linear maps of few rows.

use super::{Case, Data, Inputs, KernelCheck, Value};
use crate::{Kernel, Result, check::functions};

pub(super) struct ThinLinear;
pub(super) struct ThinGlu;

const INPUTS: Inputs = Inputs { seed: 67 };

const WEIGHTS: [&str; 6] = ["w0", "w1", "w2", "w3", "w4", "w5"];
const OUTPUTS: [&str; 6] = ["y0", "y1", "y2", "y3", "y4", "y5"];
const SIZES: [&str; 6] = ["n0", "n1", "n2", "n3", "n4", "n5"];

/// A matrix of the kernel's type and its exact values.
fn matrix(dtype: &str, stream: u64, rows: usize, cols: usize) -> Result<(Data, Vec<f64>)> {
    let data = Data::round(dtype, &INPUTS.uniform(stream, rows * cols, -1.0, 1.0))?;
    let values = data.to_f64();
    Ok((data, values))
}

/// x `[m, k]` w `[n, k]`^T.
fn product(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    x.chunks_exact(k).flat_map(|row| w.chunks_exact(k).map(move |w| dot(row, w))).collect()
}

/// Rows, columns of a block and depth of its steps; then the cases' rows and depths: full ones, and what ends inside of a tile.
fn shapes(kernel: &Kernel) -> Result<([usize; 2], [[usize; 2]; 2])> {
    let of = |name| Ok::<_, crate::Error>(kernel.need_generic(name)? as usize);
    let (m, bn, bk) = (of("M")?, of("BN")?, of("BK")?);
    Ok(([m, bn], [[m, 2 * bk], [m + m / 2, bk + 40]]))
}

impl KernelCheck for ThinLinear {
    fn kernel(&self) -> &'static str {
        "thin_linear"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let ([block, columns], shapes) = shapes(kernel)?;
        let dtype = functions::dtype(kernel);
        let case = |[m, k]: [usize; 2], sizes: [usize; 6]| -> Result<Case> {
            let (x, xs) = matrix(dtype, 1, m, k)?;
            let mut args = vec![("x", Value::In(x))];
            let mut outs = Vec::new();
            for (i, &n) in sizes.iter().enumerate() {
                let (w, ws) = matrix(dtype, 10 + i as u64, n, k)?;
                let there = n > 0;
                args.push((WEIGHTS[i], if there { Value::In(w) } else { Value::Null }));
                let y = if there { Value::out(dtype, product(&xs, &ws, k)) } else { Value::Null };
                outs.push((OUTPUTS[i], y));
            }
            args.extend(outs);
            args.extend([("m", Value::size(m)), ("k", Value::size(k))]);
            args.extend(SIZES.into_iter().zip(sizes.map(Value::size)));
            let blocks: usize = sizes.iter().map(|n| n.div_ceil(columns)).sum();
            let grid = [blocks as u32, m.div_ceil(block) as u32, 1];
            Ok(Case { label: format!("{m} rows of {k} by {sizes:?}"), args, grid })
        };
        Ok(vec![
            case(shapes[0], [3 * columns, 0, 0, 0, 0, 0])?,
            case(shapes[1], [2 * columns, 1, columns + 3, 17, columns, 5])?,
        ])
    }
}

impl KernelCheck for ThinGlu {
    fn kernel(&self) -> &'static str {
        "thin_glu"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let ([block, columns], shapes) = shapes(kernel)?;
        let dtype = functions::dtype(kernel);
        let case = |[m, k]: [usize; 2], n: usize| -> Result<Case> {
            let ((x, xs), (w, ws), (u, us)) =
                (matrix(dtype, 1, m, k)?, matrix(dtype, 2, n, k)?, matrix(dtype, 3, n, k)?);
            let silu = |g: f64| g / (1.0 + (-g).exp());
            let y =
                product(&xs, &ws, k).iter().zip(product(&xs, &us, k)).map(|(g, l)| silu(*g) * l).collect();
            let args = vec![
                ("x", Value::In(x)),
                ("w", Value::In(w)),
                ("u", Value::In(u)),
                ("y", Value::out(dtype, y)),
                ("m", Value::size(m)),
                ("k", Value::size(k)),
                ("n", Value::size(n)),
            ];
            let grid = [n.div_ceil(columns) as u32, m.div_ceil(block) as u32, 1];
            Ok(Case { label: format!("{m} rows of {k} by {n}"), args, grid })
        };
        Ok(vec![case(shapes[0], 3 * columns)?, case(shapes[1], 2 * columns + 1)?])
    }
}
