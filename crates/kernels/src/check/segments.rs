//! The checks of the launches that join the segments of a sequence, and the heads of a group.

use super::{Case, Data, Expected, Inputs, KernelCheck, Value};
use crate::{Kernel, Result, plan::CHUNK};

const INPUTS: Inputs = Inputs { seed: 83 };
/// Lengths of the sequences in chunks: one that ends before its last segment begins.
const CHUNKS: [usize; 2] = [7, 3];
const SEGMENTS: usize = 3;
/// Chunks of a segment.
const LENGTH: usize = 3;
const HV: usize = 2;

/// The check of `delta_join` or `decay_join`.
pub(super) struct Join {
    /// Which of the two.
    pub delta: bool,
}

impl KernelCheck for Join {
    fn kernel(&self) -> &'static str {
        if self.delta { "delta_join" } else { "decay_join" }
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        [true, false].into_iter().map(|state| self.case(kernel, state)).collect()
    }
}

impl Join {
    fn case(&self, kernel: &Kernel, state: bool) -> Result<Case> {
        let size = |name| kernel.need_generic(name).map(|n| n as usize);
        let (k, v, reverse, packed) =
            (size("K")?, size("V")?, size("REV")? == 1, kernel.generic("VL") == Some(1));
        // Rows side by side have one length.
        let chunks = if packed { CHUNKS } else { [CHUNKS[0]; 2] };
        let f32s = |stream, n, low, high| Data::round("f32", &INPUTS.uniform(stream, n, low, high));
        let all: usize = chunks.iter().sum();
        let (a, b) = (
            f32s(1, 2 * SEGMENTS * HV * k * k, -0.05, 0.05)?,
            f32s(2, 2 * SEGMENTS * HV * k * v, -1.0, 1.0)?,
        );
        let (gc, h0) = (f32s(3, all * HV * CHUNK, -0.4, 0.0)?, f32s(4, 2 * HV * k * v, -1.0, 1.0)?);
        let from = |n: usize, j: usize, head: usize, s: &[f64]| match self.delta {
            true => product(&a.to_f64()[((n * SEGMENTS + j) * HV + head) * k * k..], s, [k, v], reverse),
            false => {
                let own = (j * LENGTH).min(chunks[n])..((j + 1) * LENGTH).min(chunks[n]);
                let before: usize = chunks[..n].iter().sum();
                let last = |i| gc.to_f64()[((before + i) * HV + head) * CHUNK + CHUNK - 1];
                let decay = own.map(last).sum::<f64>().exp2();
                s.iter().map(|x| x * decay).collect()
            }
        };
        let (mut hs, mut ht) = (vec![0.0; 2 * SEGMENTS * HV * k * v], vec![0.0; 2 * HV * k * v]);
        for (n, head) in (0..2).flat_map(|n| (0..HV).map(move |head| (n, head))) {
            let place = (n * HV + head) * k * v;
            let mut s = if state { h0.to_f64()[place..][..k * v].to_vec() } else { vec![0.0; k * v] };
            for r in 0..SEGMENTS {
                let j = if reverse { SEGMENTS - 1 - r } else { r };
                let at = ((n * SEGMENTS + j) * HV + head) * k * v;
                hs[at..][..k * v].copy_from_slice(&s);
                let passed: Vec<f64> = from(n, j, head, &s);
                s = passed.iter().zip(&b.to_f64()[at..][..k * v]).map(|(x, y)| x + y).collect();
            }
            ht[place..][..k * v].copy_from_slice(&s);
        }
        // Products in TF32.
        let tolerance = if self.delta { 2e-3 } else { 1e-5 };
        let out = |values| Value::Out { dtype: "f32", expected: Expected { values, tolerance } };
        let flag = Value::I32(i32::from(state));
        let mut args = match self.delta {
            true => vec![("ha", Value::In(a.clone()))],
            false => {
                let table = [0, (CHUNKS[0] * CHUNK) as i32, 0, 0];
                let second = [table[1], (CHUNKS[1] * CHUNK - 5) as i32, CHUNKS[0] as i32, 0];
                let seqs = Data::I32(table.into_iter().chain(second).collect());
                vec![("gc", Value::In(gc.clone())), ("seqs", Value::In(seqs))]
            }
        };
        args.extend([
            ("hb", Value::In(b.clone())),
            ("h0", Value::In(h0.clone())),
            ("hs", out(hs)),
            ("ht", if state { out(ht) } else { Value::Scratch(2 * HV * k * v * 4) }),
            ("b", Value::size(2)),
        ]);
        if !self.delta {
            args.push(("t", Value::size(CHUNKS[0] * CHUNK)));
        }
        args.push(("hv", Value::size(HV)));
        if !self.delta {
            args.push(("nc", Value::size(all)));
        }
        args.push(("nseg", Value::size(SEGMENTS)));
        if !self.delta {
            args.push(("seg", Value::size(LENGTH)));
        }
        args.extend([("has_h0", flag), ("has_ht", Value::I32(i32::from(state)))]);
        let grid = [(v / size("BV")?) as u32, HV as u32, 2];
        Ok(Case { label: if state { "states" } else { "no states" }.into(), args, grid })
    }
}

/// `a s`, or `a^T s`.
fn product(a: &[f64], s: &[f64], [k, v]: [usize; 2], transposed: bool) -> Vec<f64> {
    let mut out = vec![0.0; k * v];
    for (i, j) in (0..k).flat_map(|i| (0..k).map(move |j| (i, j))) {
        let x = if transposed { a[j * k + i] } else { a[i * k + j] };
        (0..v).for_each(|c| out[i * v + c] += x * s[j * v + c]);
    }
    out
}

/// The check of `group_sum`.
pub(super) struct GroupSum;

impl KernelCheck for GroupSum {
    fn kernel(&self) -> &'static str {
        "group_sum"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let (k, r) = (kernel.need_generic("K")? as usize, kernel.need_generic("R")? as usize);
        let dtype = if kernel.dtype == "f16" { "f16" } else { "bf16" };
        let case = |(n, g): (usize, usize)| {
            let x = Data::round(dtype, &INPUTS.uniform(9, n * g * k, -1.0, 1.0))?;
            let all = x.to_f64();
            let sum = |i: usize| (0..g).map(|j| all[(i / k * g + j) * k + i % k]).sum::<f64>();
            let y = Value::out(dtype, (0..n * k).map(sum).collect());
            let args = vec![("x", Value::In(x)), ("y", y), ("n", Value::size(n)), ("g", Value::size(g))];
            Ok(Case { label: format!("{n} groups of {g}"), args, grid: [n.div_ceil(r) as u32, 1, 1] })
        };
        [(2 * r + 3, 4), (1, 3), (r, 1)].into_iter().map(case).collect()
    }
}
