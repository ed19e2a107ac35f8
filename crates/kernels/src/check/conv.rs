//! Checks of the `conv` family: the convolution and its reverse, token by token.

use super::{Case, Data, Expected, Inputs, KernelCheck, Value};
use crate::{Kernel, Result};

pub(super) struct Forward;
pub(super) struct LastState;
pub(super) struct BeforeActivation;
pub(super) struct WeightParts;
pub(super) struct InputGradient;
pub(super) struct StateGradient;
pub(super) struct Step;
pub(super) struct RowsForward;
pub(super) struct RowsBackward;

const INPUTS: Inputs = Inputs { seed: 43 };

/// Arguments by name, in the order of the ABI.
type Args = Vec<(&'static str, Value)>;

/// Packed sequences with weights, states and gradients; f64 of what the device sees.
struct Problem {
    lens: Vec<usize>,
    d: usize,
    w: usize,
    silu: bool,
    bias: bool,
    x: Vec<f64>,
    weight: Vec<f64>,
    b: Vec<f64>,
    state: Option<Vec<f64>>,
    dy: Vec<f64>,
    dlast: Option<Vec<f64>>,
    dtype: &'static str,
}

fn rounded(dtype: &str, stream: u64, len: usize) -> Result<Vec<f64>> {
    Ok(Data::round(dtype, &INPUTS.uniform(stream, len, -1.0, 1.0))?.to_f64())
}

/// A short sequence, an empty one, one over several chunks; with and without the optional parts.
fn problems(kernel: &Kernel) -> Result<Vec<Problem>> {
    problems_of(kernel, [(true, 4, 130), (false, 3, 7)])
}

/// The same with these options (all parts, taps, channels).
fn problems_of(kernel: &Kernel, forms: [(bool, usize, usize); 2]) -> Result<Vec<Problem>> {
    let dtype = match kernel.dtype.as_str() {
        "bf16" => "bf16",
        "f16" => "f16",
        _ => "f32",
    };
    forms
        .into_iter()
        .map(|(full, w, d)| {
            let lens = if full { vec![2, 0, 77, 1] } else { vec![70] };
            let (tokens, n) = (lens.iter().sum::<usize>(), lens.len());
            let some = |stream| full.then(|| rounded(dtype, stream, n * d * w)).transpose();
            Ok(Problem {
                x: rounded(dtype, 1, tokens * d)?,
                weight: rounded(dtype, 2, d * w)?,
                b: rounded(dtype, 3, d)?,
                state: some(4)?,
                dy: rounded(dtype, 5, tokens * d)?,
                dlast: some(6)?,
                lens,
                d,
                w,
                silu: full,
                bias: full,
                dtype,
            })
        })
        .collect()
}

impl Problem {
    fn starts(&self) -> Vec<usize> {
        self.lens.iter().scan(0, |at, &len| Some(std::mem::replace(at, *at + len))).collect()
    }

    /// The input `r` tokens from a sequence's first, before which the state is.
    fn input(&self, n: usize, r: isize, c: usize) -> f64 {
        if r >= 0 {
            return self.x[(self.starts()[n] + r as usize) * self.d + c];
        }
        let column = self.w as isize + r;
        match &self.state {
            Some(s) if column >= 0 => s[(n * self.d + c) * self.w + column as usize],
            _ => 0.0,
        }
    }

    fn z(&self, n: usize, t: usize, c: usize) -> f64 {
        let taps = (0..self.w).map(|j| {
            let r = t as isize + j as isize + 1 - self.w as isize;
            self.weight[c * self.w + j] * self.input(n, r, c)
        });
        taps.sum::<f64>() + if self.bias { self.b[c] } else { 0.0 }
    }

    /// Every (sequence, token, channel) in the order of the packed array.
    fn places(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let tokens = self.lens.iter().enumerate().flat_map(|(n, &len)| (0..len).map(move |t| (n, t)));
        tokens.flat_map(|(n, t)| (0..self.d).map(move |c| (n, t, c)))
    }

    fn y(&self) -> Vec<f64> {
        let act = |z: f64| if self.silu { z / (1.0 + (-z).exp()) } else { z };
        self.places().map(|(n, t, c)| act(self.z(n, t, c))).collect()
    }

    fn dz(&self) -> Vec<f64> {
        let slope = |z: f64| {
            let s = 1.0 / (1.0 + (-z).exp());
            if self.silu { s * (1.0 + z * (1.0 - s)) } else { 1.0 }
        };
        self.places().zip(&self.dy).map(|((n, t, c), dy)| dy * slope(self.z(n, t, c))).collect()
    }

    /// Gradients of the inputs and of the state before them, given dz.
    fn reverse(&self, dz: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut dx, mut ds) = (vec![0.0; self.x.len()], vec![0.0; self.lens.len() * self.d * self.w]);
        let starts = self.starts();
        let mut send = |n: usize, r: isize, c: usize, g: f64| match r >= 0 {
            true => dx[(starts[n] + r as usize) * self.d + c] += g,
            false => ds[(n * self.d + c) * self.w + (self.w as isize + r) as usize] += g,
        };
        for ((n, t, c), dz) in self.places().zip(dz) {
            for j in 0..self.w {
                let r = t as isize + j as isize + 1 - self.w as isize;
                send(n, r, c, dz * self.weight[c * self.w + j]);
            }
        }
        if let Some(dlast) = &self.dlast {
            for (i, g) in dlast.iter().enumerate() {
                let (n, c, j) = (i / (self.d * self.w), i / self.w % self.d, i % self.w);
                let r = self.lens[n] as isize - self.w as isize + j as isize;
                send(n, r, c, *g);
            }
        }
        (dx, ds)
    }

    fn last(&self) -> Vec<f64> {
        let place = |i: usize| (i / (self.d * self.w), i / self.w % self.d, i % self.w);
        let all = (0..self.lens.len() * self.d * self.w).map(place);
        all.map(|(n, c, j)| self.input(n, self.lens[n] as isize - self.w as isize + j as isize, c)).collect()
    }

    /// The table of chunks of at most `tokens`; one entry a sequence for `None`.
    fn table(&self, tokens: Option<usize>) -> Vec<i32> {
        let mut out = Vec::new();
        for (n, (first, &len)) in self.starts().into_iter().zip(&self.lens).enumerate() {
            let steps: Vec<usize> = match tokens {
                Some(step) => (0..len).step_by(step).collect(),
                None => vec![0],
            };
            steps.into_iter().for_each(|from| out.extend([first, len, from, n].map(|v| v as i32)));
        }
        out
    }

    fn data(&self, values: &[f64]) -> Result<Value> {
        Ok(Value::In(Data::round(self.dtype, values)?))
    }

    fn optional(&self, values: &Option<Vec<f64>>) -> Result<Value> {
        values.as_ref().map_or(Ok(Value::Null), |v| self.data(v))
    }

    fn out(&self, values: Vec<f64>) -> Value {
        Value::Out { dtype: self.dtype, expected: Expected::of(self.dtype, values) }
    }

    /// The launch of a kernel that convolves: the operands, then `own`, then sizes and options.
    fn convolving(&self, [bd, bt]: [usize; 2], own: Args) -> Result<(Args, [usize; 3])> {
        let table = self.table(Some(bt));
        let count = table.len() / 4;
        let mut args = vec![
            ("x", self.data(&self.x)?),
            ("weight", self.data(&self.weight)?),
            ("bias", self.data(&self.b)?),
            ("state", self.optional(&self.state)?),
            ("chunks", Value::In(Data::I32(table))),
        ];
        args.extend(own);
        args.extend([
            ("count", Value::size(count)),
            ("d", Value::size(self.d)),
            ("w", Value::size(self.w)),
            ("has_bias", Value::size(self.bias as usize)),
            ("has_state", Value::size(self.state.is_some() as usize)),
            ("silu", Value::size(self.silu as usize)),
        ]);
        Ok((args, [self.d.div_ceil(bd), count, 1]))
    }

    fn label(&self) -> String {
        format!("lengths {:?}, D={}, W={}", self.lens, self.d, self.w)
    }
}

fn f32_in(values: &[f64]) -> Result<Value> {
    Ok(Value::In(Data::round("f32", values)?))
}

/// Makes a case of each problem: arguments and grid.
fn cases(
    kernel: &Kernel,
    make: impl Fn(&Problem) -> Result<(Vec<(&'static str, Value)>, [usize; 3])>,
) -> Result<Vec<Case>> {
    let one = |p: &Problem| -> Result<Case> {
        let (args, grid) = make(p)?;
        Ok(Case { label: p.label(), args, grid: grid.map(|n| n as u32) })
    };
    problems(kernel)?.iter().map(one).collect()
}

/// Channels and tokens of a block of lanes.
fn block(kernel: &Kernel) -> Result<[usize; 2]> {
    let (n, bd) = (kernel.need_generic("N")? as usize, kernel.need_generic("BD")? as usize);
    Ok([bd, n / bd])
}

impl KernelCheck for Forward {
    fn kernel(&self) -> &'static str {
        "conv_fwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let block = block(kernel)?;
        cases(kernel, |p| p.convolving(block, vec![("y", p.out(p.y()))]))
    }
}

/// Cases of the kernels that slide: channels in multiples of 8, more than one block of them.
fn sliding(kernel: &Kernel, own: impl Fn(&Problem, usize) -> Args) -> Result<Vec<Case>> {
    let [bd, bt] = [kernel.need_generic("BD")? as usize, kernel.need_generic("BT")? as usize];
    let one = |p: &mut Problem| -> Result<Case> {
        p.dlast = None;
        let mut own = own(p, bt);
        own.push(("tokens", Value::size(p.lens.iter().sum())));
        let (mut args, grid) = p.convolving([bd, bt], own)?;
        // Rows of channels: four taps, those before the first zero; the state's inputs.
        let (d, w) = (p.d, p.w);
        let taps: Vec<f64> =
            (0..4 * d).map(|i| (i / d + w).checked_sub(4).map_or(0.0, |j| p.weight[i % d * w + j])).collect();
        let turned = |s: &Vec<f64>| -> Vec<f64> {
            let at = |i: usize| i / (w * d) * w * d + i % d * w + i / d % w;
            (0..s.len()).map(|i| s[at(i)]).collect()
        };
        args[1].1 = p.data(&taps)?;
        args[3].1 = p.optional(&p.state.as_ref().map(turned))?;
        Ok(Case { label: p.label(), args, grid: grid.map(|n| n as u32) })
    };
    problems_of(kernel, [(true, 4, bd + 8), (false, 3, 24)])?.iter_mut().map(one).collect()
}

impl KernelCheck for RowsForward {
    fn kernel(&self) -> &'static str {
        "conv_rows_fwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        sliding(kernel, |p, _| vec![("y", p.out(p.y()))])
    }
}

impl Problem {
    /// Each chunk's part of the gradients: four taps, those before the first of W zero, then the bias.
    fn parts(&self, dz: &[f64], bt: usize) -> Vec<f64> {
        let table = self.table(Some(bt));
        let chunk = |n: usize, t: usize| {
            table.chunks(4).position(|e| e[3] as usize == n && e[2] as usize == t / bt * bt).unwrap_or(0)
        };
        let mut parts = vec![0.0; table.len() / 4 * 5 * self.d];
        for ((n, t, c), dz) in self.places().zip(dz) {
            let row = &mut parts[chunk(n, t) * 5 * self.d..][..5 * self.d];
            for j in 0..self.w {
                let r = t as isize + j as isize + 1 - self.w as isize;
                row[(j + 4 - self.w) * self.d + c] += dz * self.input(n, r, c);
            }
            if self.w < 4 {
                // The kernel slides over four rows and multiplies them all.
                for j in 0..4 - self.w {
                    let r = t as isize + j as isize - 3;
                    let x = if r >= 0 { self.input(n, r, c) } else { 0.0 };
                    row[j * self.d + c] += dz * x;
                }
            }
            row[4 * self.d + c] += dz;
        }
        parts
    }
}

impl KernelCheck for RowsBackward {
    fn kernel(&self) -> &'static str {
        "conv_rows_bwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let dy = |p: &Problem| Data::round(p.dtype, &p.dy).map(Value::In);
        // Made first: whether they can be is told before.
        let made = problems_of(kernel, [(true, 4, kernel.need_generic("BD")? as usize + 8), (false, 3, 24)])?;
        let dys = made.iter().map(dy).collect::<Result<Vec<_>>>()?;
        sliding(kernel, |p, bt| {
            let dz = p.dz();
            let parts = Value::out("f32", p.parts(&dz, bt));
            vec![("dy", dys[usize::from(!p.bias)].clone()), ("dx", p.out(p.reverse(&dz).0)), ("parts", parts)]
        })
    }
}

impl KernelCheck for LastState {
    fn kernel(&self) -> &'static str {
        "conv_state"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let lanes = kernel.need_generic("N")? as usize;
        cases(kernel, |p| {
            let args = vec![
                ("x", p.data(&p.x)?),
                ("state", p.optional(&p.state)?),
                ("seqs", Value::In(Data::I32(p.table(None)))),
                ("last", p.out(p.last())),
                ("count", Value::size(p.lens.len())),
                ("d", Value::size(p.d)),
                ("w", Value::size(p.w)),
                ("has_state", Value::size(p.state.is_some() as usize)),
            ];
            Ok((args, [p.d.div_ceil(lanes), p.lens.len(), 1]))
        })
    }
}

impl KernelCheck for BeforeActivation {
    fn kernel(&self) -> &'static str {
        "conv_dz"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let block = block(kernel)?;
        cases(kernel, |p| {
            p.convolving(block, vec![("dy", p.data(&p.dy)?), ("dz", Value::out("f32", p.dz()))])
        })
    }
}

impl KernelCheck for WeightParts {
    fn kernel(&self) -> &'static str {
        "conv_dw"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let (lanes, bt) = (kernel.need_generic("N")? as usize, kernel.need_generic("BT")? as usize);
        cases(kernel, |p| {
            let dz = Data::round("f32", &p.dz())?.to_f64();
            let table = p.table(Some(bt));
            let count = table.len() / 4;
            let mut parts = vec![0.0; count * (p.w + 1) * p.d];
            let starts = p.starts();
            for (k, chunk) in table.chunks(4).enumerate() {
                let [len, from, n] = [chunk[1], chunk[2], chunk[3]].map(|v| v as usize);
                for t in from..len.min(from + bt) {
                    for c in 0..p.d {
                        let dz = dz[(starts[n] + t) * p.d + c];
                        for j in 0..=p.w {
                            let r = t as isize + j as isize + 1 - p.w as isize;
                            let v = if j < p.w { p.input(n, r, c) } else { 1.0 };
                            parts[(k * (p.w + 1) + j) * p.d + c] += dz * v;
                        }
                    }
                }
            }
            let args = vec![
                ("x", p.data(&p.x)?),
                ("state", p.optional(&p.state)?),
                ("chunks", Value::In(Data::I32(table))),
                ("dz", f32_in(&dz)?),
                ("parts", Value::out("f32", parts)),
                ("count", Value::size(count)),
                ("d", Value::size(p.d)),
                ("w", Value::size(p.w)),
                ("has_state", Value::size(p.state.is_some() as usize)),
            ];
            Ok((args, [p.d.div_ceil(lanes), count, p.w + 1]))
        })
    }
}

impl KernelCheck for InputGradient {
    fn kernel(&self) -> &'static str {
        "conv_dx"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [bd, bt] = block(kernel)?;
        cases(kernel, |p| {
            let dz = Data::round("f32", &p.dz())?.to_f64();
            let table = p.table(Some(bt));
            let count = table.len() / 4;
            let args = vec![
                ("dz", f32_in(&dz)?),
                ("weight", p.data(&p.weight)?),
                ("dlast", p.optional(&p.dlast)?),
                ("chunks", Value::In(Data::I32(table))),
                ("dx", p.out(p.reverse(&dz).0)),
                ("count", Value::size(count)),
                ("d", Value::size(p.d)),
                ("w", Value::size(p.w)),
                ("has_last", Value::size(p.dlast.is_some() as usize)),
            ];
            Ok((args, [p.d.div_ceil(bd), count, 1]))
        })
    }
}

impl KernelCheck for StateGradient {
    fn kernel(&self) -> &'static str {
        "conv_dstate"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let lanes = kernel.need_generic("N")? as usize;
        cases(kernel, |p| {
            let dz = Data::round("f32", &p.dz())?.to_f64();
            let args = vec![
                ("dz", f32_in(&dz)?),
                ("weight", p.data(&p.weight)?),
                ("dlast", p.optional(&p.dlast)?),
                ("seqs", Value::In(Data::I32(p.table(None)))),
                ("dstate", p.out(p.reverse(&dz).1)),
                ("count", Value::size(p.lens.len())),
                ("d", Value::size(p.d)),
                ("w", Value::size(p.w)),
                ("has_last", Value::size(p.dlast.is_some() as usize)),
            ];
            Ok((args, [p.d.div_ceil(lanes), p.lens.len(), 1]))
        })
    }
}

/// Arguments of the convolutions that a step takes together.
const STREAMS: [[&str; 6]; 3] = [
    ["x0", "weight0", "bias0", "pool0", "y0", "d0"],
    ["x1", "weight1", "bias1", "pool1", "y1", "d1"],
    ["x2", "weight2", "bias2", "pool2", "y2", "d2"],
];

impl KernelCheck for Step {
    fn kernel(&self) -> &'static str {
        "conv_step"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let lanes = kernel.need_generic("N")? as usize;
        // Rows of one token on a pool of four slots, one of which nobody uses.
        let slots = [2i32, 0, 3];
        cases(kernel, |p| {
            let mut p = Problem { lens: vec![1; 4], dlast: None, ..problem_like(p) };
            p.x = rounded(p.dtype, 1, 4 * p.d)?;
            let pool = rounded(p.dtype, 4, 4 * p.d * p.w)?;
            p.state = Some(pool.clone());
            let (y, last) = (p.y(), p.last());
            let row = p.d * p.w;
            let mut want = last;
            want[row..2 * row].copy_from_slice(&pool[row..2 * row]);
            let pick = |v: &[f64]| {
                slots.iter().flat_map(|&s| v[s as usize * p.d..][..p.d].to_vec()).collect::<Vec<_>>()
            };
            // The first and the last place compute the same thing, the one between them is empty.
            let mut args = Vec::new();
            for (i, names) in STREAMS.iter().enumerate() {
                let there = i != 1;
                let of = |v: Result<Value>| if there { v } else { Ok(Value::Null) };
                let state = || {
                    let (data, expected) =
                        (Data::round(p.dtype, &pool)?, Expected::of(p.dtype, want.clone()));
                    Ok(Value::InOut { data, expected })
                };
                args.push((names[0], of(p.data(&pick(&p.x)))?));
                args.push((names[1], of(p.data(&p.weight))?));
                args.push((names[2], of(p.data(&p.b))?));
                args.push((names[3], of(state())?));
                args.push((names[4], of(Ok(p.out(pick(&y))))?));
                args.push((names[5], Value::size(if there { p.d } else { 0 })));
            }
            args.extend([
                ("slot", Value::In(Data::I32(slots.to_vec()))),
                ("rows", Value::size(slots.len())),
                ("w", Value::size(p.w)),
                ("has_bias", Value::size(p.bias as usize)),
                ("silu", Value::size(p.silu as usize)),
            ]);
            Ok((args, [2 * p.d.div_ceil(lanes), slots.len(), 1]))
        })
    }
}

/// The weights and options of a problem, without its sequences.
fn problem_like(p: &Problem) -> Problem {
    Problem {
        lens: Vec::new(),
        x: Vec::new(),
        state: None,
        dy: Vec::new(),
        dlast: None,
        weight: p.weight.clone(),
        b: p.b.clone(),
        ..*p
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reverse against finite differences of the definition.
    #[test]
    fn the_reverse_is_the_gradient() {
        let kernel = crate::check::tests_kernel("conv_dx", "f32", &[("N", 2048), ("BD", 128)]);
        let mut p = problems(&kernel).unwrap().swap_remove(0);
        (p.d, p.lens) = (2, vec![2, 0, 5]);
        let cut = |v: &mut Vec<f64>, n| v.truncate(n);
        cut(&mut p.x, 14);
        cut(&mut p.weight, 8);
        cut(&mut p.dy, 14);
        for s in [&mut p.state, &mut p.dlast].into_iter().flatten() {
            s.truncate(24);
        }
        let loss = |p: &Problem| -> f64 {
            let dot = |a: Vec<f64>, b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            dot(p.y(), &p.dy) + dot(p.last(), p.dlast.as_ref().unwrap())
        };
        let (dx, ds) = p.reverse(&p.dz());
        for i in 0..14 {
            let (mut a, mut b) = (p.x[i] + 1e-6, p.x[i] - 1e-6);
            std::mem::swap(&mut p.x[i], &mut a);
            let up = loss(&p);
            std::mem::swap(&mut p.x[i], &mut b);
            let down = loss(&p);
            p.x[i] = a;
            assert!(((up - down) / 2e-6 - dx[i]).abs() < 1e-6, "{i}");
        }
        for i in 0..24 {
            let old = p.state.as_ref().unwrap()[i];
            let mut at = |x| {
                p.state.as_mut().unwrap()[i] = x;
                loss(&p)
            };
            let slope = (at(old + 1e-6) - at(old - 1e-6)) / 2e-6;
            at(old);
            assert!((slope - ds[i]).abs() < 1e-6, "{i}");
        }
    }
}
