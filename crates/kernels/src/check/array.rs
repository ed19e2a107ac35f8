//! Checks of the `array` family: definitions in plain loops.

use super::{Case, Data, Expected, Inputs, KernelCheck, Value};
use crate::{Error, Kernel, Result};

const INPUTS: Inputs = Inputs { seed: 41 };

pub(super) struct Copy;
pub(super) struct Unary;
pub(super) struct Zip;
pub(super) struct Select;
pub(super) struct RowSum;
pub(super) struct ColumnSum;
pub(super) struct Gather;
pub(super) struct ScatterAdd;
pub(super) struct RowMax;
pub(super) struct SegmentAdd;
pub(super) struct FlatCopy;
pub(super) struct FlatZip;
pub(super) struct FlatSum;
pub(super) struct Compare;

/// A kernel's types: `f32-bf16` reads f32 and writes bf16, `f32` does both.
fn types(kernel: &Kernel) -> Result<[&'static str; 2]> {
    let (from, to) = kernel.dtype.split_once('-').unwrap_or((&kernel.dtype, &kernel.dtype));
    let known = |name: &str| {
        let all = ["f32", "bf16", "f16", "i64", "i32", "u8"];
        all.into_iter().find(|t| *t == name).ok_or_else(|| Error::Entry {
            name: kernel.name.clone(),
            why: format!("has the type {name}; the check knows {}", all.join(", ")),
        })
    };
    Ok([known(from)?, known(to)?])
}

/// Numbers of a type, exactly as the device sees them.
fn numbers(dtype: &str, stream: u64, len: usize, low: f64, high: f64) -> Result<(Data, Vec<f64>)> {
    let raw = INPUTS.uniform(stream, len, low, high);
    let data = match dtype {
        "i64" => Data::I64(raw.iter().map(|x| (x * 1e6) as i64).collect()),
        "i32" => Data::I32(raw.iter().map(|x| (x * 1e6) as i32).collect()),
        "u8" => Data::U8(raw.iter().map(|x| (x.abs() * 80.0) as u8).collect()),
        float => Data::round(float, &raw)?,
    };
    let values = data.to_f64();
    Ok((data, values))
}

/// Tile blocks for `n` elements of the kernel's `N` lanes.
fn blocks(kernel: &Kernel, n: usize) -> Result<u32> {
    Ok(n.div_ceil(kernel.need_generic("N")? as usize) as u32)
}

/// A view: five sizes and strides.
struct View {
    strides: [usize; 5],
    span: usize,
}

fn view(dims: [usize; 5], strides: [usize; 5]) -> View {
    View { strides, span: 1 + dims.iter().zip(strides).map(|(d, s)| (d - 1) * s).sum::<usize>() }
}

impl View {
    fn at(&self, dims: [usize; 5], mut i: usize) -> usize {
        (0..5).rev().fold(0, |at, k| {
            let c = i % dims[k];
            i /= dims[k];
            at + c * self.strides[k]
        })
    }
}

const SIZES: [&str; 4] = ["d1", "d2", "d3", "d4"];

fn shape_args(dims: [usize; 5], views: &[(&[&'static str; 5], &View)]) -> Vec<(&'static str, Value)> {
    let sizes = SIZES.into_iter().zip(dims[1..].iter().map(|&d| Value::size(d)));
    let strides = views.iter().flat_map(|(names, v)| names.iter().copied().zip(v.strides.map(Value::size)));
    sizes.chain(strides).collect()
}

/// Shapes of the elementwise cases: a dense one, and views that are transposed, repeated and padded.
fn shapes() -> [([usize; 5], [View; 3]); 2] {
    let dense = [1, 1, 1, 1, 1500];
    let mixed = [2, 3, 4, 5, 67];
    [
        (dense, [(); 3].map(|()| view(dense, [0, 0, 0, 0, 1]))),
        (
            mixed,
            [
                view(mixed, [4020, 1340, 335, 67, 1]),
                view(mixed, [1, 2, 6, 0, 24]),
                view(mixed, [9000, 3000, 700, 140, 2]),
            ],
        ),
    ]
}

impl KernelCheck for Copy {
    fn kernel(&self) -> &'static str {
        "array_copy"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [from, to] = types(kernel)?;
        let mut cases = Vec::new();
        for (dims, [dense, other, _]) in shapes() {
            let n: usize = dims.iter().product();
            let (data, x) = numbers(from, 1, other.span, -1.5, 1.5)?;
            let want = (0..n).map(|i| x[other.at(dims, i)]).collect();
            let mut args = vec![("x", Value::In(data)), ("y", Value::out(to, want)), ("n", Value::size(n))];
            let names = (&["xs0", "xs1", "xs2", "xs3", "xs4"], &["ys0", "ys1", "ys2", "ys3", "ys4"]);
            args.extend(shape_args(dims, &[(names.0, &other), (names.1, &dense)]));
            cases.push(Case { label: format!("{dims:?}"), args, grid: [blocks(kernel, n)?, 1, 1] });
        }
        Ok(cases)
    }
}

/// The functions of the codes of `array_unary`, with the range of their inputs.
fn unary(code: i32, x: f64, p: f64, q: f64) -> f64 {
    match code {
        0 => -x,
        1 => x.exp(),
        2 => x.ln(),
        3 => x.sqrt(),
        4 => 1.0 / x.sqrt(),
        5 => 1.0 / x,
        6 => x.abs(),
        7 => x * x,
        8 => x.sin(),
        9 => x.cos(),
        10 => x.tanh(),
        11 => 1.0 / (1.0 + (-x).exp()),
        12 => x / (1.0 + (-x).exp()),
        13 => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        14 => x.max(0.0),
        15 => p * x + q,
        _ => x.clamp(p, q),
    }
}

impl KernelCheck for Unary {
    fn kernel(&self) -> &'static str {
        "array_unary"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [dtype, _] = types(kernel)?;
        let n = 2100;
        (0..17)
            .map(|code| {
                let positive = (2..6).contains(&code);
                let (low, high) = if positive { (0.25, 4.0) } else { (-6.0, 6.0) };
                let (data, x) = numbers(dtype, code as u64, n, low, high)?;
                let (p, q) = (-1.25, 0.5);
                let want = x.iter().map(|&x| unary(code, x, p, q)).collect();
                let args = vec![
                    ("x", Value::In(data)),
                    ("y", Value::out(dtype, want)),
                    ("n", Value::size(n)),
                    ("code", Value::I32(code)),
                    ("p", Value::F32(p as f32)),
                    ("q", Value::F32(q as f32)),
                ];
                Ok(Case { label: format!("code {code}"), args, grid: [blocks(kernel, n)?, 1, 1] })
            })
            .collect()
    }
}

impl KernelCheck for Zip {
    fn kernel(&self) -> &'static str {
        "array_zip"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [dtype, _] = types(kernel)?;
        let mut cases = Vec::new();
        for code in 0..6 {
            for (dims, [_, a, b]) in shapes() {
                let n: usize = dims.iter().product();
                let (a_data, x) = numbers(dtype, 1, a.span, -3.0, 3.0)?;
                let (b_data, y) = numbers(dtype, 2, b.span, 0.5, 2.0)?;
                let of = |i| {
                    let (x, y): (f64, f64) = (x[a.at(dims, i)], y[b.at(dims, i)]);
                    [x + y, x - y, x * y, x / y, x.max(y), x.min(y)][code]
                };
                let mut args = vec![("a", Value::In(a_data)), ("b", Value::In(b_data))];
                args.extend([
                    ("y", Value::out(dtype, (0..n).map(of).collect())),
                    ("n", Value::size(n)),
                    ("code", Value::size(code)),
                ]);
                let names = (&["as0", "as1", "as2", "as3", "as4"], &["bs0", "bs1", "bs2", "bs3", "bs4"]);
                args.extend(shape_args(dims, &[(names.0, &a), (names.1, &b)]));
                let grid = [blocks(kernel, n)?, 1, 1];
                cases.push(Case { label: format!("code {code}, {dims:?}"), args, grid });
            }
        }
        Ok(cases)
    }
}

impl KernelCheck for Select {
    fn kernel(&self) -> &'static str {
        "array_select"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [dtype, _] = types(kernel)?;
        let mut cases = Vec::new();
        for (dims, [k, a, b]) in shapes() {
            let n: usize = dims.iter().product();
            let mask: Vec<u8> =
                INPUTS.uniform(3, k.span, -2.0, 2.0).iter().map(|x| x.max(0.0) as u8).collect();
            let (a_data, x) = numbers(dtype, 1, a.span, -3.0, 3.0)?;
            let (b_data, y) = numbers(dtype, 2, b.span, -3.0, 3.0)?;
            let of = |i| if mask[k.at(dims, i)] != 0 { x[a.at(dims, i)] } else { y[b.at(dims, i)] };
            let want = (0..n).map(of).collect();
            let mut args = vec![("k", Value::In(Data::U8(mask.clone()))), ("a", Value::In(a_data))];
            args.extend([("b", Value::In(b_data)), ("y", Value::out(dtype, want)), ("n", Value::size(n))]);
            let names = [
                ["ks0", "ks1", "ks2", "ks3", "ks4"],
                ["as0", "as1", "as2", "as3", "as4"],
                ["bs0", "bs1", "bs2", "bs3", "bs4"],
            ];
            args.extend(shape_args(dims, &[(&names[0], &k), (&names[1], &a), (&names[2], &b)]));
            cases.push(Case { label: format!("{dims:?}"), args, grid: [blocks(kernel, n)?, 1, 1] });
        }
        Ok(cases)
    }
}

impl KernelCheck for RowSum {
    fn kernel(&self) -> &'static str {
        "array_row_sum"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [dtype, _] = types(kernel)?;
        [(3, 1), (5, 1023), (2, 4097)]
            .into_iter()
            .map(|(rows, n)| {
                let (data, x) = numbers(dtype, n as u64, rows * n, -1.0, 1.5)?;
                let want = x.chunks(n).map(|r| r.iter().sum()).collect();
                let args = vec![
                    ("x", Value::In(data)),
                    ("y", Value::out(dtype, want)),
                    ("rows", Value::size(rows)),
                    ("n", Value::size(n)),
                ];
                Ok(Case { label: format!("{rows} x {n}"), args, grid: [rows as u32, 1, 1] })
            })
            .collect()
    }
}

impl KernelCheck for ColumnSum {
    fn kernel(&self) -> &'static str {
        "array_column_sum"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [from, to] = types(kernel)?;
        [(1, 5, 1), (300, 129, 256), (77, 300, 77)]
            .into_iter()
            .map(|(n, cols, step)| {
                let (data, x) = numbers(from, n as u64, n * cols, -1.0, 1.5)?;
                let piece = |rows: &[f64]| -> Vec<f64> {
                    (0..cols).map(|c| rows.iter().skip(c).step_by(cols).sum()).collect()
                };
                let want: Vec<f64> = x.chunks(step * cols).flat_map(piece).collect();
                let args = vec![
                    ("x", Value::In(data)),
                    ("y", Value::out(to, want)),
                    ("n", Value::size(n)),
                    ("cols", Value::size(cols)),
                    ("step", Value::size(step)),
                ];
                let grid = [blocks(kernel, cols)?, n.div_ceil(step) as u32, 1];
                Ok(Case { label: format!("{n} x {cols} by {step}"), args, grid })
            })
            .collect()
    }
}

/// Row numbers, some of them several times.
fn indices(count: usize, rows: usize) -> Vec<i64> {
    (0..count).map(|i| if i % 3 == 0 { 1 } else { (i * i % rows) as i64 }).collect()
}

impl KernelCheck for Gather {
    fn kernel(&self) -> &'static str {
        "array_gather"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [dtype, _] = types(kernel)?;
        [(9, 7, 3), (20, 33, 1500)]
            .into_iter()
            .map(|(count, rows, w)| {
                let (data, x) = numbers(dtype, w as u64, rows * w, -1.0, 1.0)?;
                let index = indices(count, rows);
                let want = index.iter().flat_map(|&r| x[r as usize * w..][..w].to_vec()).collect();
                let args = vec![
                    ("x", Value::In(data)),
                    ("index", Value::In(Data::I64(index))),
                    ("y", Value::out(dtype, want)),
                    ("count", Value::size(count)),
                    ("rows", Value::size(rows)),
                    ("w", Value::size(w)),
                ];
                let grid = [count as u32, blocks(kernel, w)?, 1];
                Ok(Case { label: format!("{count} of {rows} x {w}"), args, grid })
            })
            .collect()
    }
}

impl KernelCheck for ScatterAdd {
    fn kernel(&self) -> &'static str {
        "array_scatter_add"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [dtype, _] = types(kernel)?;
        [(9, 7, 3), (2100, 50, 40), (5, 3, 1100)]
            .into_iter()
            .map(|(count, rows, w)| {
                let (data, x) = numbers(dtype, w as u64, count * w, -1.0, 1.0)?;
                let mut index = indices(count, rows);
                // Outside: left out.
                (index[2], index[4]) = (-1, rows as i64);
                let before = INPUTS.uniform(9, rows * w, -1.0, 1.0);
                let old = Data::round("f32", &before)?;
                let mut want = old.to_f64();
                for (r, row) in want.chunks_mut(w).enumerate() {
                    let from = |c: &usize| index[*c] == r as i64;
                    if !(0..count).any(|c| from(&c)) {
                        continue;
                    }
                    row.fill(0.0);
                    for c in (0..count).filter(from) {
                        row.iter_mut().zip(&x[c * w..]).for_each(|(o, x)| *o += x);
                    }
                }
                let args = vec![
                    ("x", Value::In(data)),
                    ("index", Value::In(Data::I64(index))),
                    ("y", Value::InOut { data: old, expected: Expected::of("f32", want) }),
                    ("count", Value::size(count)),
                    ("rows", Value::size(rows)),
                    ("w", Value::size(w)),
                ];
                let grid = [count as u32, blocks(kernel, w)?, 1];
                Ok(Case { label: format!("{count} to {rows} x {w}"), args, grid })
            })
            .collect()
    }
}

impl KernelCheck for SegmentAdd {
    fn kernel(&self) -> &'static str {
        "array_segment_add"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [dtype, _] = types(kernel)?;
        [(9, 7, 3), (300, 20, 40), (5, 6, 1100)]
            .into_iter()
            .map(|(count, rows, w)| {
                let (data, x) = numbers(dtype, w as u64, count * w, -1.0, 1.0)?;
                let old = Data::round("f32", &INPUTS.uniform(9, rows * w, -1.0, 1.0))?;
                let mut want = old.to_f64();
                let index = indices(count, rows);
                let (mut order, mut segments) = (Vec::new(), Vec::new());
                for r in 0..rows {
                    let here: Vec<i32> =
                        (0..count).filter(|&c| index[c] == r as i64).map(|c| c as i32).collect();
                    if here.is_empty() {
                        continue;
                    }
                    segments.extend([r, order.len(), here.len()].map(|v| v as i32));
                    let row = &mut want[r * w..][..w];
                    row.fill(0.0);
                    here.iter()
                        .for_each(|&c| row.iter_mut().zip(&x[c as usize * w..]).for_each(|(o, x)| *o += x));
                    order.extend(here);
                }
                let u = segments.len() / 3;
                let args = vec![
                    ("x", Value::In(data)),
                    ("order", Value::In(Data::I32(order))),
                    ("segments", Value::In(Data::I32(segments))),
                    ("y", Value::InOut { data: old, expected: Expected::of("f32", want) }),
                    ("count", Value::size(count)),
                    ("u", Value::size(u)),
                    ("w", Value::size(w)),
                ];
                let grid = [u as u32, blocks(kernel, w)?, 1];
                Ok(Case { label: format!("{count} to {rows} x {w}"), args, grid })
            })
            .collect()
    }
}

/// Elements of the dense cases: more than a block with a ragged end, and fewer than one.
fn dense(kernel: &Kernel) -> [usize; 2] {
    [5003, 7].map(|n: usize| n.next_multiple_of(vector(kernel)))
}

/// Elements of which a flat kernel's lengths are multiples.
pub(super) fn vector(kernel: &Kernel) -> usize {
    kernel.generic("V").unwrap_or(1).max(1) as usize
}

impl KernelCheck for FlatCopy {
    fn kernel(&self) -> &'static str {
        "flat_copy"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [from, to] = types(kernel)?;
        let case = |n: usize| {
            let (data, x) = numbers(from, 1, n, -1.5, 1.5)?;
            let args = vec![("x", Value::In(data)), ("y", Value::out(to, x)), ("n", Value::size(n))];
            Ok(Case { label: format!("{n} elements"), args, grid: [blocks(kernel, n)?, 1, 1] })
        };
        dense(kernel).into_iter().map(case).collect()
    }
}

impl KernelCheck for FlatZip {
    fn kernel(&self) -> &'static str {
        "flat_zip"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [dtype, _] = types(kernel)?;
        let case = |(code, n): (usize, usize)| {
            let (a, x) = numbers(dtype, 1, n, -3.0, 3.0)?;
            let (b, y) = numbers(dtype, 2, n, 0.5, 2.0)?;
            let of = |(x, y): (&f64, &f64)| [x + y, x - y, x * y, x / y][code];
            let args = vec![
                ("a", Value::In(a)),
                ("b", Value::In(b)),
                ("y", Value::out(dtype, x.iter().zip(&y).map(of).collect())),
                ("n", Value::size(n)),
                ("code", Value::size(code)),
            ];
            Ok(Case { label: format!("code {code}, {n} elements"), args, grid: [blocks(kernel, n)?, 1, 1] })
        };
        (0..4).flat_map(|code| dense(kernel).map(|n| (code, n))).map(case).collect()
    }
}

impl KernelCheck for FlatSum {
    fn kernel(&self) -> &'static str {
        "flat_sum"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        const TERMS: [&str; 6] = ["x0", "x1", "x2", "x3", "x4", "x5"];
        let [dtype, _] = types(kernel)?;
        let case = |(count, n): (usize, usize)| {
            let mut sum = vec![0.0; n];
            let mut args = Vec::new();
            for (i, name) in TERMS.into_iter().enumerate() {
                if i >= count {
                    args.push((name, Value::Null));
                    continue;
                }
                let (data, x) = numbers(dtype, 1 + i as u64, n, -1.5, 2.0)?;
                sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
                args.push((name, Value::In(data)));
            }
            args.extend([
                ("y", Value::out(dtype, sum)),
                ("n", Value::size(n)),
                ("count", Value::size(count)),
            ]);
            Ok(Case { label: format!("{count} arrays of {n}"), args, grid: [blocks(kernel, n)?, 1, 1] })
        };
        [2, 3, 4, 5, 6].into_iter().flat_map(|count| dense(kernel).map(|n| (count, n))).map(case).collect()
    }
}

impl KernelCheck for RowMax {
    fn kernel(&self) -> &'static str {
        "array_row_max"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [dtype, _] = types(kernel)?;
        [(5, 1), (4, 37), (3, 2500)]
            .into_iter()
            .map(|(rows, n)| {
                let (_, mut x) = numbers(dtype, n as u64, rows * n, -1.0, 1.0)?;
                // Equal largest elements in one row.
                (x[n / 2], x[n - 1]) = (1.5, 1.5);
                let largest =
                    |row: &[f64]| (0..n).fold(0, |best, i| if row[i] > row[best] { i } else { best });
                let index = x.chunks(n).map(|r| largest(r) as f64).collect();
                let value = x.chunks(n).map(|r| r[largest(r)]).collect();
                let args = vec![
                    ("x", Value::In(Data::round(dtype, &x)?)),
                    ("value", Value::out(dtype, value)),
                    ("index", Value::out("i64", index)),
                    ("n", Value::size(n)),
                ];
                Ok(Case { label: format!("{rows} x {n}"), args, grid: [rows as u32, 1, 1] })
            })
            .chain([odd_rows(dtype)])
            .collect()
    }
}

/// Rows with a NaN, and with nothing but minus infinity: only the indices are compared.
fn odd_rows(dtype: &str) -> Result<Case> {
    let n = 1500;
    let mut x = INPUTS.uniform(7, 3 * n, -1.0, 1.0);
    (x[40], x[1300], x[900]) = (f64::NAN, f64::NAN, f64::INFINITY);
    x[n..2 * n].fill(f64::NEG_INFINITY);
    x[2 * n + 1499] = f64::NAN;
    let args = vec![
        ("x", Value::In(Data::round(dtype, &x)?)),
        ("value", Value::Scratch(3 * 4)),
        ("index", Value::out("i64", vec![40.0, 0.0, 1499.0])),
        ("n", Value::size(n)),
    ];
    Ok(Case { label: "NaN and infinities".into(), args, grid: [3, 1, 1] })
}

impl KernelCheck for Compare {
    fn kernel(&self) -> &'static str {
        "array_compare"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [dtype, _] = types(kernel)?;
        let n = 2100;
        (0..2)
            .map(|code| {
                let (_, mut x) = numbers(dtype, 3, n, -1.0, 1.0)?;
                x.iter_mut().step_by(7).for_each(|x| *x = 0.25);
                x[9] = f64::NAN;
                let want = x.iter().map(|&x| f64::from(x > 0.25 || (code == 1 && x == 0.25))).collect();
                let args = vec![
                    ("x", Value::In(Data::round(dtype, &x)?)),
                    ("y", Value::out("u8", want)),
                    ("n", Value::size(n)),
                    ("code", Value::I32(code)),
                    ("bound", Value::F32(0.25)),
                ];
                Ok(Case { label: format!("code {code}"), args, grid: [blocks(kernel, n)?, 1, 1] })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_place_elements_as_nested_loops_do() {
        let (dims, [dense, other, _]) = shapes().into_iter().nth(1).unwrap();
        assert_eq!(dense.at(dims, 4020 + 1340 + 3), 4020 + 1340 + 3);
        assert_eq!(other.at(dims, 4020 + 1340 + 335 * 2 + 67 + 3), 1 + 2 + 12 + 72);
        assert_eq!(other.span, 1 + 1 + 4 + 18 + 66 * 24);
    }

    #[test]
    fn unknown_types_are_named() {
        assert!(numbers("fp8", 0, 1, 0.0, 1.0).is_err());
        assert_eq!(numbers("u8", 0, 9, -1.0, 1.0).unwrap().0.dtype(), "u8");
    }
}
