//! Checks of the modules that work on rows: norms and SwiGLU.

use super::{Case, Data, Expected, Inputs, KernelCheck, Value};
use crate::{Kernel, Result};

const INPUTS: Inputs = Inputs { seed: 53 };
const EPS: f64 = 1e-5;
/// Rows of a case: no multiple of any tile.
const N: usize = 37;

pub(super) struct NormForward;
pub(super) struct NormBackward;
pub(super) struct SwigluForward;
pub(super) struct SwigluBackward;

/// Numbers in a type, and what they are then.
fn numbers(dtype: &str, stream: u64, len: usize) -> Result<(Data, Vec<f64>)> {
    let data = Data::round(dtype, &INPUTS.uniform(stream, len, -1.5, 1.5))?;
    let values = data.to_f64();
    Ok((data, values))
}

fn out(dtype: &'static str, like: &str, values: Vec<f64>) -> Value {
    Value::Out { dtype, expected: Expected::of(like, values) }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// What a norm's kernel is: tile height, layer norm, gate.
struct Norm {
    rows: usize,
    mean: bool,
    gate: i64,
}

impl Norm {
    fn of(kernel: &Kernel) -> Result<Norm> {
        Ok(Norm {
            rows: kernel.need_generic("R")? as usize,
            mean: kernel.need_generic("MEAN")? == 1,
            gate: kernel.need_generic("GATE")?,
        })
    }

    /// (mean, 1 / deviation) of each row.
    fn stats(&self, x: &[f64], d: usize) -> (Vec<f64>, Vec<f64>) {
        x.chunks_exact(d)
            .map(|row| {
                let mean = if self.mean { row.iter().sum::<f64>() / d as f64 } else { 0.0 };
                let square = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / d as f64;
                (mean, (square + EPS).sqrt().recip())
            })
            .unzip()
    }

    /// The gate's factor and its slope.
    fn gate(&self, g: f64) -> (f64, f64) {
        let s = sigmoid(g);
        match self.gate {
            0 => (1.0, 0.0),
            1 => (s * g, s * (1.0 + g * (1.0 - s))),
            _ => (s, s * (1.0 - s)),
        }
    }
}

/// The widths of a tile's cases: the whole tile, and 8 less.
fn widths(kernel: &Kernel) -> Result<Vec<usize>> {
    let tile = kernel.need_generic("DT")? as usize;
    Ok(if tile >= 32 { vec![tile, tile - 8] } else { vec![tile] })
}

impl KernelCheck for NormForward {
    fn kernel(&self) -> &'static str {
        "norm_fwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let mut out = Vec::new();
        for d in widths(kernel)? {
            out.push(norm_forward(kernel, d, true)?);
            out.push(norm_forward(kernel, d, false)?);
        }
        Ok(out)
    }
}

/// `full`: with a residual, weight and bias.
fn norm_forward(kernel: &Kernel, d: usize, full: bool) -> Result<Case> {
    let (norm, dtype) = (Norm::of(kernel)?, kernel.dtype.as_str());
    let (x, xs) = numbers(dtype, 1, N * d)?;
    let (res, rs) = numbers(dtype, 2, N * d)?;
    let (gate, gs) = numbers(dtype, 3, N * d)?;
    let (w, ws) = numbers(dtype, 4, d)?;
    let (bias, bs) = numbers(dtype, 5, d)?;
    let e = x.dtype();
    // What is normalised is what was stored.
    let sums: Vec<f64> = xs.iter().zip(&rs).map(|(x, r)| x + r).collect();
    let input = if full { Data::round(dtype, &sums)?.to_f64() } else { xs };
    let (mean, rstd) = norm.stats(&input, d);
    let value = |i: usize| {
        let (row, col) = (i / d, i % d);
        let hat = (input[i] - mean[row]) * rstd[row];
        let y = if full { hat * ws[col] + bs[col] } else { hat };
        y * norm.gate(gs[i]).0
    };
    let y: Vec<f64> = (0..N * d).map(value).collect();
    let optional = |wanted: bool, dtype, values: Vec<f64>| {
        if wanted { out(dtype, dtype, values) } else { Value::Scratch(N * d * 4) }
    };
    let flag = Value::size(usize::from(full));
    let args = vec![
        ("x", Value::In(x)),
        ("res", Value::In(res)),
        ("gate", Value::In(gate)),
        ("w", Value::In(w)),
        ("bias", Value::In(bias)),
        ("y", out(e, e, y)),
        ("sum", optional(full, e, input.clone())),
        ("rstd", out("f32", "f32", rstd)),
        ("mean", optional(norm.mean, "f32", mean)),
        ("n", Value::size(N)),
        ("d", Value::size(d)),
        ("has_res", flag.clone()),
        ("has_w", flag.clone()),
        ("has_bias", flag),
        ("eps", Value::F32(EPS as f32)),
    ];
    let label = format!("width {d}{}", if full { ", residual, weight, bias" } else { "" });
    Ok(Case { label, args, grid: [N.div_ceil(norm.rows) as u32, 1, 1] })
}

impl KernelCheck for NormBackward {
    fn kernel(&self) -> &'static str {
        "norm_bwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let mut out = Vec::new();
        for d in widths(kernel)? {
            out.push(norm_backward(kernel, d, 2, true)?);
            out.push(norm_backward(kernel, d, 1, false)?);
        }
        Ok(out)
    }
}

/// `full`: with a gradient of the sum, weight and bias.
fn norm_backward(kernel: &Kernel, d: usize, steps: usize, full: bool) -> Result<Case> {
    let (norm, dtype) = (Norm::of(kernel)?, kernel.dtype.as_str());
    let (x, xs) = numbers(dtype, 1, N * d)?;
    let (gate, gs) = numbers(dtype, 3, N * d)?;
    let (w, ws) = numbers(dtype, 4, d)?;
    let (bias, bs) = numbers(dtype, 5, d)?;
    let (dy, dys) = numbers(dtype, 6, N * d)?;
    let (dsum, dss) = numbers(dtype, 7, N * d)?;
    let e = x.dtype();
    let (mean, rstd) = norm.stats(&xs, d);
    let blocks = N.div_ceil(norm.rows * steps);
    let (mut dx, mut dgate) = (vec![0.0; N * d], vec![0.0; N * d]);
    let (mut dw, mut db) = (vec![0.0; blocks * d], vec![0.0; blocks * d]);
    for row in 0..N {
        let block = row / (norm.rows * steps);
        let hat: Vec<f64> = (0..d).map(|c| (xs[row * d + c] - mean[row]) * rstd[row]).collect();
        let mut wd = vec![0.0; d];
        for c in 0..d {
            let i = row * d + c;
            let (weight, shift) = if full { (ws[c], bs[c]) } else { (1.0, 0.0) };
            let (factor, slope) = norm.gate(gs[i]);
            dgate[i] = dys[i] * (hat[c] * weight + shift) * slope;
            let dy = dys[i] * factor;
            dw[block * d + c] += dy * hat[c];
            db[block * d + c] += dy;
            wd[c] = dy * weight;
        }
        let average = |f: &dyn Fn(usize) -> f64| (0..d).map(f).sum::<f64>() / d as f64;
        let (along, level) =
            (average(&|c| wd[c] * hat[c]), if norm.mean { average(&|c| wd[c]) } else { 0.0 });
        for c in 0..d {
            let i = row * d + c;
            dx[i] = rstd[row] * (wd[c] - level - hat[c] * along) + if full { dss[i] } else { 0.0 };
        }
    }
    let optional = |wanted: bool, dtype, like: &str, values: Vec<f64>| {
        if wanted { out(dtype, like, values) } else { Value::Scratch(N * d * 4) }
    };
    let flag = Value::size(usize::from(full));
    let args = vec![
        ("x", Value::In(x)),
        ("gate", Value::In(gate)),
        ("w", Value::In(w)),
        ("bias", Value::In(bias)),
        ("dy", Value::In(dy)),
        ("dsum", Value::In(dsum)),
        ("rstd", Value::In(Data::round("f32", &rstd)?)),
        ("mean", Value::In(Data::round("f32", &mean)?)),
        ("dx", out(e, e, dx)),
        ("dgate", optional(norm.gate > 0, e, e, dgate)),
        ("dw", optional(full, "f32", e, dw)),
        ("db", optional(full, "f32", e, db)),
        ("n", Value::size(N)),
        ("d", Value::size(d)),
        ("steps", Value::size(steps)),
        ("has_dsum", flag.clone()),
        ("has_w", flag.clone()),
        ("has_bias", flag),
    ];
    let label = format!("width {d}, {steps} steps{}", if full { ", all gradients" } else { "" });
    Ok(Case { label, args, grid: [blocks as u32, 1, 1] })
}

/// Tile blocks of an elementwise kernel.
fn blocks(kernel: &Kernel, d: usize) -> Result<[u32; 3]> {
    let [width, height] = [kernel.need_generic("DT")?, kernel.need_generic("R")?];
    Ok([d.div_ceil(width as usize) as u32, N.div_ceil(height as usize) as u32, 1])
}

impl KernelCheck for SwigluForward {
    fn kernel(&self) -> &'static str {
        "swiglu_fwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let d = 2 * kernel.need_generic("DT")? as usize - 8;
        // Two arrays, and the halves of one projection.
        [d, 2 * d].into_iter().map(|ld| swiglu_forward(kernel, d, ld)).collect()
    }
}

fn swiglu_forward(kernel: &Kernel, d: usize, ld: usize) -> Result<Case> {
    let len = (N - 1) * ld + d;
    let (a, xs) = numbers(&kernel.dtype, 1, len)?;
    let (b, bs) = numbers(&kernel.dtype, 2, len)?;
    let e = a.dtype();
    let at = |i: usize| i / d * ld + i % d;
    let y = (0..N * d).map(|i| xs[at(i)] * sigmoid(xs[at(i)]) * bs[at(i)]).collect();
    let args = vec![
        ("a", Value::In(a)),
        ("b", Value::In(b)),
        ("y", out(e, e, y)),
        ("n", Value::size(N)),
        ("d", Value::size(d)),
        ("lda", Value::size(ld)),
        ("ldb", Value::size(ld)),
    ];
    Ok(Case { label: format!("width {d}, rows {ld} apart"), args, grid: blocks(kernel, d)? })
}

impl KernelCheck for SwigluBackward {
    fn kernel(&self) -> &'static str {
        "swiglu_bwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let d = 2 * kernel.need_generic("DT")? as usize - 8;
        let (a, xs) = numbers(&kernel.dtype, 1, N * d)?;
        let (b, bs) = numbers(&kernel.dtype, 2, N * d)?;
        let (dy, ds) = numbers(&kernel.dtype, 3, N * d)?;
        let e = a.dtype();
        let slope = |x: f64| sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)));
        let da = (0..N * d).map(|i| ds[i] * bs[i] * slope(xs[i])).collect();
        let db = (0..N * d).map(|i| ds[i] * xs[i] * sigmoid(xs[i])).collect();
        let args = vec![
            ("a", Value::In(a)),
            ("b", Value::In(b)),
            ("dy", Value::In(dy)),
            ("da", out(e, e, da)),
            ("db", out(e, e, db)),
            ("n", Value::size(N)),
            ("d", Value::size(d)),
            ("lda", Value::size(d)),
            ("ldb", Value::size(d)),
        ];
        Ok(vec![Case { label: format!("width {d}"), args, grid: blocks(kernel, d)? }])
    }
}
