//! Checks of softmax attention, by its definition in f64: every query with all the keys that it sees.

use super::{Case, Data, Expected, Inputs, KernelCheck, Value};
use crate::{Kernel, Result, plan::AttentionSpan};

const INPUTS: Inputs = Inputs { seed: 91 };
/// A window that hides nothing.
const ALL: usize = 1 << 30;

pub(super) struct Forward;
pub(super) struct Queries;
pub(super) struct Keys;
pub(super) struct Step;
pub(super) struct Merge;

/// One shape with its options.
#[derive(Clone, Debug)]
struct Problem {
    label: &'static str,
    spans: Vec<AttentionSpan>,
    /// (B, Tq, Tk) where the spans are rows of one length.
    rows: Option<[usize; 3]>,
    /// HQ and H.
    heads: [usize; 2],
    causal: bool,
    window: usize,
}

/// The numbers of a problem as the device sees them.
struct Numbers {
    d: usize,
    scale: f64,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_o: Vec<f64>,
}

/// What follows from them, rounded where a kernel stores it.
struct Results {
    o: Vec<f64>,
    lse: Vec<f64>,
    delta: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

fn problems(packed: bool) -> Vec<Problem> {
    let dense = |label, [b, tq, tk]: [usize; 3], heads, causal, window| Problem {
        label,
        spans: (0..b).map(|n| AttentionSpan { q0: n * tq, queries: tq, k0: n * tk, keys: tk }).collect(),
        rows: Some([b, tq, tk]),
        heads,
        causal,
        window,
    };
    if !packed {
        return vec![
            dense("B=2 T=270, causal, two heads a key head", [2, 270, 270], [2, 1], true, ALL),
            dense("Tq=70 Tk=200, all keys", [1, 70, 200], [2, 2], false, ALL),
            dense("T=300, window 75", [1, 300, 300], [2, 1], true, 75),
            dense("Tq=150 Tk=100: some see nothing", [1, 150, 100], [1, 1], true, ALL),
        ];
    }
    let lens = [(130, 130), (0, 5), (1, 300), (140, 260), (40, 0), (9, 9)];
    let (mut spans, mut q0, mut k0) = (Vec::new(), 0, 0);
    for (queries, keys) in lens {
        spans.push(AttentionSpan { q0, queries, k0, keys });
        (q0, k0) = (q0 + queries, k0 + keys);
    }
    let of = |label, heads, causal, window| Problem {
        label,
        spans: spans.clone(),
        rows: None,
        heads,
        causal,
        window,
    };
    vec![
        of("packed, causal, two heads a key head", [2, 1], true, ALL),
        of("packed, window 100", [1, 1], true, 100),
        of("packed, all keys", [1, 1], false, ALL),
    ]
}

impl Problem {
    fn tokens(&self) -> [usize; 2] {
        let end = |f: fn(&AttentionSpan) -> usize| self.spans.iter().map(f).max().unwrap_or(0);
        [end(|s| s.q0 + s.queries), end(|s| s.k0 + s.keys)]
    }

    fn group(&self) -> usize {
        self.heads[0] / self.heads[1]
    }

    fn numbers(&self, dtype: &str, d: usize) -> Result<Numbers> {
        let [tq, tk] = self.tokens();
        let make = |stream, tokens: usize, heads: usize| -> Result<Vec<f64>> {
            Ok(Data::round(dtype, &INPUTS.uniform(stream, tokens * heads * d, -1.7, 1.7))?.to_f64())
        };
        Ok(Numbers {
            d,
            scale: f64::from((d as f32).powf(-0.5)),
            q: make(1, tq, self.heads[0])?,
            k: make(2, tk, self.heads[1])?,
            v: make(3, tk, self.heads[1])?,
            d_o: make(4, tq, self.heads[0])?,
        })
    }

    /// Slots of `size` queries, and of each span the first.
    fn slots(&self, size: usize) -> (usize, Vec<usize>) {
        let mut next = 0;
        let first = self.spans.iter().map(|s| {
            next += s.queries.div_ceil(size);
            next - s.queries.div_ceil(size)
        });
        let first = first.collect();
        (next, first)
    }

    /// Whether query `i` of a span sees its key `j`.
    fn sees(&self, s: &AttentionSpan, i: usize, j: usize) -> bool {
        let away = (i + s.keys) as isize - s.queries as isize - j as isize;
        !self.causal || (away >= 0 && (away as usize) < self.window)
    }

    fn results(&self, x: &Numbers, dtype: &str, slot: usize) -> Result<Results> {
        let (d, [hq, h]) = (x.d, self.heads);
        let (slots, first) = self.slots(slot);
        let mut out = Results {
            o: vec![0.0; x.q.len()],
            lse: vec![0.0; slots * hq * slot],
            delta: vec![0.0; slots * hq * slot],
            dq: vec![0.0; x.q.len()],
            dk: vec![0.0; x.k.len()],
            dv: vec![0.0; x.k.len()],
        };
        for (s, first) in self.spans.iter().zip(first) {
            for (i, head) in (0..s.queries).flat_map(|i| (0..hq).map(move |head| (i, head))) {
                let row = ((s.q0 + i) * hq + head) * d;
                let at = ((first + i / slot) * hq + head) * slot + i % slot;
                let key = |j: usize| ((s.k0 + j) * h + head / self.group()) * d;
                let (q, g) = (&x.q[row..row + d], &x.d_o[row..row + d]);
                let seen: Vec<usize> = (0..s.keys).filter(|&j| self.sees(s, i, j)).collect();
                let score = |&j: &usize| dot(q, &x.k[key(j)..][..d]) * x.scale * std::f64::consts::LOG2_E;
                let scores: Vec<f64> = seen.iter().map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - top).exp2()).sum();
                if !seen.is_empty() {
                    out.lse[at] = f64::from((top + total.log2()) as f32);
                }
                for (s, &j) in scores.iter().zip(&seen) {
                    let p = (s - top).exp2() / total;
                    (0..d).for_each(|c| out.o[row + c] += p * x.v[key(j) + c]);
                }
                let o = Data::round(dtype, &out.o[row..row + d])?.to_f64();
                out.o[row..row + d].copy_from_slice(&o);
                out.delta[at] = f64::from(dot(&o, g) as f32);
                for (s, &j) in scores.iter().zip(&seen) {
                    let p = (s - out.lse[at]).exp2();
                    let ds = p * (dot(g, &x.v[key(j)..][..d]) - out.delta[at]) * x.scale;
                    for c in 0..d {
                        out.dv[key(j) + c] += p * g[c];
                        out.dk[key(j) + c] += ds * q[c];
                        out.dq[row + c] += ds * x.k[key(j) + c];
                    }
                }
            }
        }
        Ok(out)
    }

    /// The arguments that all kernels end with.
    fn sizes(&self, slots: usize, blocks: Option<usize>, scale: f64) -> Vec<(&'static str, Value)> {
        let [b, tq, tk] = self.rows.unwrap_or([0; 3]);
        let mut out = vec![
            ("b", Value::size(b)),
            ("t", Value::size(tq)),
            ("tk", Value::size(tk)),
            ("hq", Value::size(self.heads[0])),
            ("h", Value::size(self.heads[1])),
            ("count", Value::size(slots)),
        ];
        out.extend(blocks.map(|n| ("blocks", Value::size(n))));
        out.extend([
            ("causal", Value::size(self.causal as usize)),
            ("window", Value::size(self.window)),
            ("scale", Value::F32(scale as f32)),
        ]);
        out
    }

    /// Rows of 8 integers for blocks of `size` queries (`keys`: of keys); in reverse order, which no result may depend on.
    fn table(&self, size: usize, slot: usize, keys: bool) -> Vec<i32> {
        let (_, first) = self.slots(slot);
        let mut out = Vec::new();
        for (s, first) in self.spans.iter().zip(first).rev() {
            let n = if keys { s.keys } else { s.queries };
            for i in (0..n.div_ceil(size)).rev() {
                let slot = if keys { first } else { first + i };
                out.extend([s.q0, s.queries, s.k0, s.keys, i, slot, 0, 0].map(|x| x as i32));
            }
        }
        out
    }

    fn grid(&self, blocks: usize, heads: usize) -> [u32; 3] {
        let [x, z] = self.rows.map_or([blocks, 1], |r| [blocks / r[0].max(1), r[0]]);
        [x, heads, z].map(|n| n as u32)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn generic(kernel: &Kernel, name: &str) -> Result<usize> {
    Ok(kernel.need_generic(name)?.max(1) as usize)
}

/// `of` on every problem of a kernel with its numbers and results, slots of `slot` queries.
fn cases(
    kernel: &Kernel,
    slot: &str,
    of: impl Fn(&Problem, &Numbers, Results) -> Result<(Vec<(&'static str, Value)>, [u32; 3])>,
) -> Result<Vec<Case>> {
    let (d, slot) = (generic(kernel, "D")?, generic(kernel, slot)?);
    let mut out = Vec::new();
    for p in problems(kernel.need_generic("VL")? == 1) {
        let x = p.numbers(&kernel.dtype, d)?;
        let (args, grid) = of(&p, &x, p.results(&x, &kernel.dtype, slot)?)?;
        out.push(Case { label: p.label.into(), args, grid });
    }
    Ok(out)
}

fn read(kernel: &Kernel, values: &[f64]) -> Result<Value> {
    Data::round(&kernel.dtype, values).map(Value::In)
}

fn read_f32(values: &[f64]) -> Result<Value> {
    Data::round("f32", values).map(Value::In)
}

fn table(p: &Problem, rows: Vec<i32>) -> Value {
    if p.rows.is_some() { Value::Null } else { Value::In(Data::I32(rows)) }
}

fn out(kernel: &Kernel, values: Vec<f64>) -> Value {
    let dtype = if kernel.dtype == "f16" { "f16" } else { "bf16" };
    Value::out(dtype, values)
}

impl KernelCheck for Forward {
    fn kernel(&self) -> &'static str {
        "attention_fwd"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let bm = generic(kernel, "BM")?;
        cases(kernel, "BM", |p, x, r| {
            let slots = p.slots(bm).0;
            let mut args = vec![
                ("q", read(kernel, &x.q)?),
                ("k", read(kernel, &x.k)?),
                ("v", read(kernel, &x.v)?),
                ("table", table(p, p.table(bm, bm, false))),
                ("o", out(kernel, r.o)),
                ("lse", Value::out("f32", r.lse)),
            ];
            args.extend(p.sizes(slots, None, x.scale));
            Ok((args, p.grid(slots, p.heads[0])))
        })
    }
}

impl KernelCheck for Queries {
    fn kernel(&self) -> &'static str {
        "attention_dq"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let bm = generic(kernel, "BM")?;
        cases(kernel, "BM", |p, x, r| {
            let slots = p.slots(bm).0;
            let mut args = vec![
                ("q", read(kernel, &x.q)?),
                ("k", read(kernel, &x.k)?),
                ("v", read(kernel, &x.v)?),
                ("table", table(p, p.table(bm, bm, false))),
                ("o", read(kernel, &r.o)?),
                ("d_o", read(kernel, &x.d_o)?),
                ("lse", read_f32(&r.lse)?),
                ("dq", out(kernel, r.dq)),
                ("delta", Value::out("f32", r.delta)),
            ];
            args.extend(p.sizes(slots, None, x.scale));
            Ok((args, p.grid(slots, p.heads[0])))
        })
    }
}

impl KernelCheck for Keys {
    fn kernel(&self) -> &'static str {
        "attention_dkv"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let (slot, bn) = (generic(kernel, "SL")?, generic(kernel, "BN")?);
        cases(kernel, "SL", |p, x, r| {
            let (slots, rows) = (p.slots(slot).0, p.table(bn, slot, true));
            let blocks = rows.len() / 8;
            let mut args = vec![
                ("q", read(kernel, &x.q)?),
                ("k", read(kernel, &x.k)?),
                ("v", read(kernel, &x.v)?),
                ("table", table(p, rows)),
                ("d_o", read(kernel, &x.d_o)?),
                ("lse", read_f32(&r.lse)?),
                ("delta", read_f32(&r.delta)?),
                ("dk", out(kernel, r.dk)),
                ("dv", out(kernel, r.dv)),
            ];
            args.extend(p.sizes(slots, Some(blocks), x.scale));
            Ok((args, p.grid(blocks, p.heads[1])))
        })
    }
}

/// Rows of a cache with one query each.
struct Cache {
    label: &'static str,
    lens: [usize; 3],
    cap: usize,
    h: usize,
    /// Query heads of a key head.
    g: usize,
    window: usize,
    /// Blocks of keys of a part.
    step: usize,
}

/// What the parts of a cache's keys give, in the order of the arrays.
struct Parts {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    count: usize,
    acc: Vec<f64>,
    ml: Vec<f64>,
}

const CACHES: [Cache; 3] = [
    Cache { label: "lengths 300, 0, 77", lens: [300, 0, 77], cap: 300, h: 2, g: 3, window: ALL, step: 1 },
    Cache { label: "window 150", lens: [290, 150, 7], cap: 300, h: 1, g: 16, window: 150, step: 2 },
    Cache { label: "18 heads a key head", lens: [4, 130, 1], cap: 140, h: 1, g: 18, window: ALL, step: 1 },
];

impl Cache {
    /// (first key that counts, first key of part `p`, its end) of a row of `len`.
    fn part(&self, len: usize, p: usize, bn: usize) -> [usize; 3] {
        let from = len.saturating_sub(self.window);
        let start = (from / bn + p * self.step) * bn;
        [from, start.max(from), (start + self.step * bn).min(len)]
    }

    fn tiles(&self, gp: usize) -> usize {
        self.g.div_ceil(gp)
    }

    fn parts(&self, dtype: &str, [d, gp, bn]: [usize; 3]) -> Result<Parts> {
        let n = self.lens.len();
        let make = |stream, len| -> Result<Vec<f64>> {
            Ok(Data::round(dtype, &INPUTS.uniform(stream, len, -1.7, 1.7))?.to_f64())
        };
        let (q, rows) = (make(11, n * self.h * self.g * d)?, n * self.cap * self.h * d);
        let (k, v) = (make(12, rows)?, make(13, rows)?);
        let c = (d as f64).powf(-0.5) * std::f64::consts::LOG2_E;
        let count = (self.cap.div_ceil(bn) + 1).div_ceil(self.step);
        let (mut acc, mut ml) = (Vec::new(), Vec::new());
        let all = (0..n).flat_map(|row| (0..self.h * self.tiles(gp)).map(move |y| (row, y)));
        for (row, y) in all {
            let (head, tile) = (y / self.tiles(gp), y % self.tiles(gp));
            for p in 0..count {
                let [_, start, end] = self.part(self.lens[row], p, bn);
                let (mut sums, mut tops) = (vec![0.0; gp], vec![0.0; gp]);
                for r in 0..gp {
                    let of = tile * gp + r;
                    let zero = vec![0.0; d];
                    let query = if of < self.g {
                        &q[((row * self.h + head) * self.g + of) * d..][..d]
                    } else {
                        &zero
                    };
                    let key = |j: usize| ((row * self.cap + j) * self.h + head) * d;
                    let scores: Vec<f64> = (start..end).map(|j| dot(query, &k[key(j)..][..d])).collect();
                    let top = scores.iter().copied().reduce(f64::max).unwrap_or(0.0);
                    let mut o = vec![0.0; d];
                    for (j, s) in (start..end).zip(&scores) {
                        let w = ((s - top) * c).exp2();
                        sums[r] += w;
                        (0..d).for_each(|i| o[i] += w * v[key(j) + i]);
                    }
                    tops[r] = top;
                    acc.extend(o);
                }
                ml.extend(tops.into_iter().chain(sums));
            }
        }
        Ok(Parts { q, k, v, count, acc, ml })
    }
}

impl KernelCheck for Step {
    fn kernel(&self) -> &'static str {
        "attention_step"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [d, gp, bn] = [generic(kernel, "D")?, generic(kernel, "GP")?, generic(kernel, "BN")?];
        let case = |c: &Cache| -> Result<Case> {
            let x = c.parts(&kernel.dtype, [d, gp, bn])?;
            let like = Expected::of(&kernel.dtype, x.acc);
            let args = vec![
                ("q", read(kernel, &x.q)?),
                ("k", read(kernel, &x.k)?),
                ("v", read(kernel, &x.v)?),
                ("lens", Value::In(Data::I32(c.lens.map(|l| l as i32).to_vec()))),
                ("acc", Value::Out { dtype: "f32", expected: like }),
                ("ml", Value::out("f32", x.ml)),
                ("n", Value::size(c.lens.len())),
                ("cap", Value::size(c.cap)),
                ("h", Value::size(c.h)),
                ("g", Value::size(c.g)),
                ("parts", Value::size(x.count)),
                ("step", Value::size(c.step)),
                ("window", Value::size(c.window)),
                ("scale", Value::F32((d as f32).powf(-0.5))),
            ];
            let grid = [x.count, c.h * c.tiles(gp), c.lens.len()].map(|n| n as u32);
            Ok(Case { label: c.label.into(), args, grid })
        };
        CACHES.iter().map(case).collect()
    }
}

impl KernelCheck for Merge {
    fn kernel(&self) -> &'static str {
        "attention_merge"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let [d, gp] = [generic(kernel, "D")?, generic(kernel, "GP")?];
        let case = |c: &Cache| -> Result<Case> {
            let x = c.parts(&kernel.dtype, [d, gp, 32])?;
            // What the parts give together is what one part with all keys gives.
            let whole = Cache { step: c.cap.div_ceil(32) + 2, ..*c }.parts(&kernel.dtype, [d, gp, 32])?;
            let (n, tiles) = (c.lens.len(), c.tiles(gp));
            let mut o = Vec::new();
            for (row, of) in (0..n * c.h).flat_map(|row| (0..c.g).map(move |of| (row, of))) {
                let at = (row * tiles + of / gp) * whole.count;
                let l = whole.ml[(at * 2 + 1) * gp + of % gp];
                let acc = &whole.acc[(at * gp + of % gp) * d..][..d];
                o.extend(acc.iter().map(|x| if l == 0.0 { 0.0 } else { x / l }));
            }
            let args = vec![
                ("acc", read_f32(&x.acc)?),
                ("ml", read_f32(&x.ml)?),
                ("o", out(kernel, o)),
                ("n", Value::size(n)),
                ("h", Value::size(c.h)),
                ("g", Value::size(c.g)),
                ("parts", Value::size(x.count)),
                ("scale", Value::F32((d as f32).powf(-0.5))),
            ];
            Ok(Case { label: c.label.into(), args, grid: [c.h * tiles, n, 1].map(|n| n as u32) })
        };
        CACHES.iter().map(case).collect()
    }
}
