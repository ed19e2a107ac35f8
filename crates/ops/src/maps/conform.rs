//! The feature maps as the conformance suite sees them: formulas and Jacobians of one row, written out.

use flashlin_tensor::Var;

use super::{DPFP_NU, dpfp, elu_plus_one, hedgehog, rebased, softmax, taylor};
use crate::{
    Result,
    conformance::{Fill, ModuleInput, ModuleOp},
};

/// Every map.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

const CASES: [&str; 6] = ["softmax", "elu + 1", "hedgehog", "dpfp", "taylor", "rebased"];
const WIDTH: usize = 5;

/// A row of features and, for each, its derivatives by the inputs.
type Row = (Vec<f64>, Vec<Vec<f64>>);

fn softmax_row(x: &[f64]) -> Row {
    let most = x.iter().copied().fold(f64::MIN, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - most).exp()).collect();
    let total: f64 = e.iter().sum();
    let y: Vec<f64> = e.iter().map(|e| e / total).collect();
    let slope = |i: usize, j: usize| y[i] * (f64::from(u8::from(i == j)) - y[j]);
    let jacobian = (0..x.len()).map(|i| (0..x.len()).map(|j| slope(i, j)).collect()).collect();
    (y, jacobian)
}

/// `scale x_i x_j`
fn product(x: &[f64], i: usize, j: usize, scale: f64) -> (f64, Vec<f64>) {
    let mut slope = vec![0.0; x.len()];
    slope[i] += scale * x[j];
    slope[j] += scale * x[i];
    (scale * x[i] * x[j], slope)
}

fn unit(n: usize, i: usize, value: f64) -> Vec<f64> {
    let mut row = vec![0.0; n];
    row[i] = value;
    row
}

fn row(case: usize, x: &[f64]) -> Row {
    let n = x.len();
    let d = n as f64;
    let between = || (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
    let squares = |scale: f64| (0..n).map(move |i| product(x, i, i, scale));
    let step = |i: usize| f64::from(u8::from(x[i] > 0.0));
    match case {
        0 => softmax_row(x),
        1 => {
            let value = |&x: &f64| if x > 0.0 { x + 1.0 } else { x.exp() };
            let slope = |i: usize| unit(n, i, if x[i] > 0.0 { 1.0 } else { x[i].exp() });
            (x.iter().map(value).collect(), (0..n).map(slope).collect())
        }
        2 => {
            let both: Vec<f64> = x.iter().map(|x| 2.0 * x).chain(x.iter().map(|x| -2.0 * x)).collect();
            let (y, j) = softmax_row(&both);
            let by = |row: &Vec<f64>| (0..n).map(|i| 2.0 * (row[i] - row[n + i])).collect();
            (y, j.iter().map(by).collect())
        }
        3 => {
            let y = |i: usize| if i < n { x[i].max(0.0) } else { -x[i - n].max(0.0) };
            let dy = |i: usize| if i < n { step(i) } else { -step(i - n) };
            let one = |shift: usize, i: usize| {
                let k = (i + 2 * n - shift % (2 * n)) % (2 * n);
                let mut slope = unit(n, i % n, dy(i) * y(k));
                slope[k % n] += y(i) * dy(k);
                (y(i) * y(k), slope)
            };
            (1..=DPFP_NU).flat_map(|s| (0..2 * n).map(move |i| (s, i))).map(|(s, i)| one(s, i)).unzip()
        }
        4 => {
            let first = (0..n).map(|i| (x[i] / d.powf(0.25), unit(n, i, 1.0 / d.powf(0.25))));
            let cross = between().map(|(i, j)| product(x, i, j, 1.0 / d.sqrt()));
            let constant = std::iter::once((1.0, vec![0.0; n]));
            constant.chain(first).chain(squares(1.0 / (2.0 * d).sqrt())).chain(cross).unzip()
        }
        _ => {
            let cross = between().map(|(i, j)| product(x, i, j, (2.0 / d).sqrt()));
            squares(1.0 / d.sqrt()).chain(cross).unzip()
        }
    }
}

impl ModuleOp for Conformance {
    fn name(&self) -> &'static str {
        "feature_map"
    }

    fn cases(&self) -> Vec<String> {
        CASES.iter().map(|c| c.to_string()).collect()
    }

    fn inputs(&self, _case: usize) -> Vec<ModuleInput> {
        vec![ModuleInput::token("x", &[2, 3, 2, WIDTH], Fill::Normal(1.0))]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![match case {
            0 => softmax(&x[0]),
            1 => elu_plus_one(&x[0]),
            2 => hedgehog(&x[0]),
            3 => dpfp(&x[0], DPFP_NU),
            4 => taylor(&x[0]),
            _ => rebased(&x[0]),
        }?])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![x[0].chunks(WIDTH).flat_map(|x| row(case, x).0).collect()]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let rows = x[0].chunks(WIDTH);
        let wide = d_out[0].len() / rows.len();
        let back = |(x, d): (&[f64], &[f64])| {
            let (_, jacobian) = row(case, x);
            let mut dx = vec![0.0; x.len()];
            for (slopes, d) in jacobian.iter().zip(d) {
                dx.iter_mut().zip(slopes).for_each(|(dx, s)| *dx += s * d);
            }
            dx
        };
        vec![rows.zip(d_out[0].chunks(wide)).flat_map(back).collect()]
    }
}
