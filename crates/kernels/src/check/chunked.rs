//! Checks of the chunked recurrences, `decay` and `delta`: every array that passes between their kernels, computed in f64 from the equations, each rounded to its type where a kernel
//! stores it.
//!
//! A kernel's case takes its inputs from these arrays by the names in its ABI and expects its outputs among them, so that each kernel is checked by itself. Rows of a chunk past its sequence's
//! end count as zeros.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use super::{Case, Data, Expected, Inputs, KernelCheck, Value, tolerance};
use crate::{ArgKind, Error, Kernel, Result, load::lock, plan::CHUNK as C};

const INPUTS: Inputs = Inputs { seed: 77 };
const EPS: f64 = 1e-6;

/// One shape with its options.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    label: &'static str,
    lens: Vec<usize>,
    packed: bool,
    h: usize,
    hv: usize,
    k: usize,
    v: usize,
    norm: bool,
    gate: Gate,
    beta: bool,
    state: bool,
    delta: bool,
    /// Type of the main arrays; none leaves everything in f64.
    dtype: Option<&'static str>,
}

/// What decays.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gate {
    None,
    /// One value a head.
    Head,
    /// One value a token and head.
    Token,
}

/// Arrays by name: (type, values).
type Arrays = BTreeMap<&'static str, (&'static str, Vec<f64>)>;

/// The value that a store in this type leaves; exact without one.
fn rounded(dtype: Option<&str>, values: &[f64]) -> Vec<f64> {
    dtype.and_then(|d| Data::round(d, values).ok()).map_or_else(|| values.to_vec(), |d| d.to_f64())
}

/// A matrix of `cols` columns.
#[derive(Clone)]
struct Mat {
    cols: usize,
    x: Vec<f64>,
}

impl Mat {
    fn zeros(rows: usize, cols: usize) -> Mat {
        Mat { cols, x: vec![0.0; rows * cols] }
    }

    fn of(cols: usize, x: Vec<f64>) -> Mat {
        Mat { cols, x }
    }

    fn rows(&self) -> usize {
        self.x.len() / self.cols
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.x[i * self.cols + j]
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.x[i * self.cols..][..self.cols]
    }

    fn t(&self) -> Mat {
        let x = (0..self.cols).flat_map(|j| (0..self.rows()).map(move |i| self.at(i, j))).collect();
        Mat { cols: self.rows(), x }
    }

    fn mul(&self, b: &Mat) -> Mat {
        let mut out = Mat::zeros(self.rows(), b.cols);
        for i in 0..self.rows() {
            for (l, a) in self.row(i).iter().enumerate().filter(|(_, a)| **a != 0.0) {
                let to = &mut out.x[i * b.cols..][..b.cols];
                to.iter_mut().zip(b.row(l)).for_each(|(c, b)| *c += a * b);
            }
        }
        out
    }

    /// Each row times its factor.
    fn scale_rows(&self, f: &[f64]) -> Mat {
        let x = self.x.iter().enumerate().map(|(i, x)| x * f[i / self.cols]).collect();
        Mat { cols: self.cols, x }
    }

    fn zip(&self, b: &Mat, f: impl Fn(f64, f64) -> f64) -> Mat {
        Mat { cols: self.cols, x: self.x.iter().zip(&b.x).map(|(a, b)| f(*a, *b)).collect() }
    }

    fn add(&self, b: &Mat) -> Mat {
        self.zip(b, |a, b| a + b)
    }

    fn sub(&self, b: &Mat) -> Mat {
        self.zip(b, |a, b| a - b)
    }

    fn times(&self, f: f64) -> Mat {
        Mat { cols: self.cols, x: self.x.iter().map(|x| x * f).collect() }
    }

    /// Elements where `keep(row, col)`, times the factor there.
    fn masked(&self, keep: impl Fn(usize, usize) -> Option<f64>) -> Mat {
        let f = |i: usize| keep(i / self.cols, i % self.cols).unwrap_or(0.0);
        Mat {
            cols: self.cols,
            x: self.x.iter().enumerate().map(|(i, x)| if f(i) == 0.0 { 0.0 } else { x * f(i) }).collect(),
        }
    }

    /// Row by row products with another matrix.
    fn dots(&self, b: &Mat) -> Vec<f64> {
        (0..self.rows()).map(|i| self.row(i).iter().zip(b.row(i)).map(|(a, b)| a * b).sum()).collect()
    }
}

/// One chunk of one value head.
struct Chunk {
    /// First token in the arrays, and how many are real.
    first: usize,
    real: usize,
    q: Mat,
    k: Mat,
    v: Mat,
    d_o: Mat,
    /// Cumulative log-decay.
    g: Vec<f64>,
    beta: Vec<f64>,
    rq: Vec<f64>,
    rk: Vec<f64>,
}

impl Chunk {
    /// e^(G_i - G_j).
    fn decay(&self, i: usize, j: usize) -> f64 {
        (self.g[i] - self.g[j]).exp()
    }

    /// e^G.
    fn eg(&self) -> Vec<f64> {
        self.g.iter().map(|g| g.exp()).collect()
    }

    /// e^(G_last - G).
    fn er(&self) -> Vec<f64> {
        self.g.iter().map(|g| (self.g[C - 1] - g).exp()).collect()
    }

    fn last(&self) -> f64 {
        self.g[C - 1].exp()
    }

    /// On and below the diagonal, decayed.
    fn lower(&self, m: &Mat) -> Mat {
        m.masked(|i, j| (j <= i).then(|| self.decay(i, j)))
    }
}

impl Setup {
    fn tokens(&self) -> usize {
        self.lens.iter().sum()
    }

    fn chunks(&self) -> usize {
        self.lens.iter().map(|l| l.div_ceil(C)).sum()
    }

    fn scale(&self) -> f64 {
        (self.k as f64).powf(-0.5)
    }

    /// The operands.
    fn operands(&self) -> Arrays {
        let (t, d) = (self.tokens(), self.dtype);
        let e = d.unwrap_or("f32");
        let float = d.map(|_| "f32");
        // Without normalisation keys stay short, or the recurrence diverges.
        let side = if self.norm { 1.0 } else { (3.0 / self.k as f64).sqrt() * 0.9 };
        let main = |stream, len, x: f64| (e, rounded(d, &INPUTS.uniform(stream, len, -x, x)));
        let f32s = |stream, len, low, high| ("f32", rounded(float, &INPUTS.uniform(stream, len, low, high)));
        let states = self.lens.len() * self.hv * self.k * self.v;
        let gates = if self.gate == Gate::Head { self.hv } else { t * self.hv };
        let mut out: Arrays = [
            ("q", main(1, t * self.h * self.k, side)),
            ("k", main(2, t * self.h * self.k, side)),
            ("v", main(3, t * self.hv * self.v, 1.0)),
            ("d_o", main(4, t * self.hv * self.v, 1.0)),
            ("g", f32s(5, gates, -0.3, 0.0)),
            ("beta", f32s(6, t * self.hv, 0.0, 1.0)),
            ("h0", f32s(7, states, -0.3, 0.3)),
            ("dht", f32s(8, states, -0.3, 0.3)),
        ]
        .into();
        let (mut seqs, mut chunks, mut first, mut chunk) = (Vec::new(), Vec::new(), 0, 0);
        for (n, &len) in self.lens.iter().enumerate() {
            seqs.extend([first, len, chunk, 0].map(|x| x as f64));
            chunks.extend((0..len.div_ceil(C)).flat_map(|i| [first, len, i, n].map(|x| x as f64)));
            first += len;
            chunk += len.div_ceil(C);
        }
        out.extend([("seqs", ("i32", seqs)), ("chunks", ("i32", chunks))]);
        out
    }

    /// Chunk `i` of the sequence of `len` tokens at `start`, for value head `head`.
    fn chunk(&self, x: &Arrays, start: usize, len: usize, i: usize, head: usize) -> Chunk {
        let (first, real) = (start + i * C, C.min(len - i * C));
        let group = head / (self.hv / self.h);
        let rows = |name: &str, heads: usize, head: usize, width: usize| {
            let mut m = Mat::zeros(C, width);
            for r in 0..real {
                let from = ((first + r) * heads + head) * width;
                m.x[r * width..][..width].copy_from_slice(&x[name].1[from..from + width]);
            }
            m
        };
        let of_token = |name: &str| rows(name, self.hv, head, 1).x;
        let mut sum = 0.0;
        let mut g: Vec<f64> = match self.gate {
            Gate::None => vec![0.0; C],
            Gate::Head => (0..C).map(|r| if r < real { x["g"].1[head] } else { 0.0 }).collect(),
            Gate::Token => of_token("g"),
        };
        g.iter_mut().for_each(|g| {
            sum += *g;
            *g = sum;
        });
        let (q, k) = (rows("q", self.h, group, self.k), rows("k", self.h, group, self.k));
        let factors = |m: &Mat| -> Vec<f64> {
            if self.norm {
                m.dots(m).iter().map(|s| (s + EPS).sqrt().recip()).collect()
            } else {
                vec![1.0; C]
            }
        };
        let (rq, rk) = (factors(&q), factors(&k));
        Chunk {
            first,
            real,
            q: q.scale_rows(&rq),
            k: k.scale_rows(&rk),
            v: rows("v", self.hv, head, self.v),
            d_o: rows("d_o", self.hv, head, self.v),
            g,
            beta: if self.beta { of_token("beta") } else { vec![1.0; C] },
            rq,
            rk,
        }
    }

    /// [`Setup::arrays`], made once: the kernels of a pipeline and their configurations share them.
    fn shared_arrays(&self) -> Arc<Arrays> {
        static MADE: Mutex<BTreeMap<String, Arc<Arrays>>> = Mutex::new(BTreeMap::new());
        let mut made = lock(&MADE);
        made.entry(format!("{self:?}")).or_insert_with(|| Arc::new(self.arrays())).clone()
    }

    /// Every array of the pipeline.
    fn arrays(&self) -> Arrays {
        let mut x = self.operands();
        let (t, nc, hv) = (self.tokens(), self.chunks(), self.hv);
        let (e, states) = (self.dtype.unwrap_or("f32"), self.lens.len() * hv * self.k * self.v);
        let block = nc * hv;
        for (name, dtype, len) in [
            ("gc", "f32", block * C),
            ("gvec", "f32", block * 4 * C),
            ("rk", "f32", block * C),
            ("rq", "f32", block * C),
            ("tm", e, block * C * C),
            ("pm", e, block * C * C),
            ("o", e, t * hv * self.v),
            ("hs", e, block * self.k * self.v),
            ("dh", e, block * self.k * self.v),
            ("us", e, block * C * self.v),
            ("dx", e, block * C * self.v),
            ("dq", e, t * hv * self.k),
            ("dk", e, t * hv * self.k),
            ("dv", e, t * hv * self.v),
            ("dg", "f32", t * hv),
            ("dbeta", "f32", t * hv),
            ("ht", "f32", states),
            ("dh0", "f32", states),
            ("ha", "f32", self.lens.len() * hv * self.k * self.k),
        ] {
            x.insert(name, (dtype, vec![0.0; len]));
        }
        let (mut start, mut chunk) = (0, 0);
        for (n, &len) in self.lens.iter().enumerate() {
            for head in 0..hv {
                self.sequence(&mut x, n, start, len, chunk, head);
            }
            start += len;
            chunk += len.div_ceil(C);
        }
        x
    }

    /// One sequence of one value head: forward over its chunks, then backward.
    fn sequence(&self, x: &mut Arrays, n: usize, start: usize, len: usize, chunk0: usize, head: usize) {
        let size = self.k * self.v;
        let place = (n * self.hv + head) * size;
        let given = |x: &Arrays, name: &str| {
            if self.state {
                Mat::of(self.v, x[name].1[place..place + size].to_vec())
            } else {
                Mat::zeros(self.k, self.v)
            }
        };
        let chunks: Vec<Chunk> = (0..len.div_ceil(C)).map(|i| self.chunk(x, start, len, i, head)).collect();
        let mut s = given(x, "h0");
        let mut saved = Vec::new();
        for (i, c) in chunks.iter().enumerate() {
            let block = (chunk0 + i) * self.hv + head;
            let made = self.inside(c);
            self.store_inside(x, c, &made, block);
            let before = self.put(x, "hs", block, &s);
            let (o, u) = self.forward(c, &made, &s);
            let u_stored = if self.delta { self.put(x, "us", block, &u) } else { u.clone() };
            self.put_rows(x, "o", c, head, &o);
            s = s.times(c.last()).add(&c.k.t().mul(&u.scale_rows(&c.er())));
            saved.push((made, before, u_stored));
        }
        x.get_mut("ht").expect("made above").1[place..place + size].copy_from_slice(&s.x);
        let mut ds = given(x, "dht");
        for (i, c) in chunks.iter().enumerate().rev() {
            let block = (chunk0 + i) * self.hv + head;
            let (made, before, u) = &saved[i];
            let after = self.put(x, "dh", block, &ds);
            let q_part = c.q.scale_rows(&c.eg()).t().mul(&c.d_o).times(self.scale());
            let mut next = ds.times(c.last()).add(&q_part);
            if self.delta {
                let du = c.k.scale_rows(&c.er()).mul(&ds).add(&made.p.t().mul(&c.d_o));
                let dx = made.t.t().mul(&du);
                next = next.sub(&c.k.scale_rows(&c.eg()).t().mul(&dx.scale_rows(&c.beta)));
                let dx = self.put(x, "dx", block, &dx);
                self.delta_gradients(x, c, head, [before, &after, u, &dx]);
            } else {
                self.decay_gradients(x, c, head, before, &after);
            }
            ds = next;
        }
        x.get_mut("dh0").expect("made above").1[place..place + size].copy_from_slice(&ds.x);
        if self.delta {
            self.through(x, &chunks, n * self.hv + head);
        }
    }

    /// What a sequence does to the state that enters it.
    fn through(&self, x: &mut Arrays, chunks: &[Chunk], block: usize) {
        let mut a = Mat::zeros(self.k, self.k);
        (0..self.k).for_each(|i| a.x[i * self.k + i] = 1.0);
        for c in chunks {
            let made = self.inside(c);
            let u = made.t.mul(&c.k.scale_rows(&c.eg()).mul(&a).scale_rows(&c.beta)).times(-1.0);
            a = a.times(c.last()).add(&c.k.t().mul(&u.scale_rows(&c.er())));
        }
        self.put(x, "ha", block, &a);
    }

    /// T and P of a chunk, as stored.
    fn inside(&self, c: &Chunk) -> Inside {
        let p = c.lower(&c.q.mul(&c.k.t()).times(self.scale()));
        let p = Mat::of(C, rounded(self.dtype.filter(|_| self.delta), &p.x));
        let kk = c.k.mul(&c.k.t());
        let mut t = Mat::zeros(C, C);
        for i in 0..C {
            t.x[i * C + i] = 1.0;
            for j in 0..i {
                let l = c.beta[i] * kk.at(i, j) * c.decay(i, j);
                for col in 0..=j {
                    let below = t.at(j, col);
                    t.x[i * C + col] -= l * below;
                }
            }
        }
        Inside { t: Mat::of(C, rounded(self.dtype, &t.x)), p }
    }

    fn store_inside(&self, x: &mut Arrays, c: &Chunk, made: &Inside, block: usize) {
        let log2: Vec<f64> = c.g.iter().map(|g| g / std::f64::consts::LN_2).collect();
        let gvec = [c.beta.clone(), c.eg(), c.er(), log2.clone()].concat();
        for (name, values) in [
            ("gc", &log2),
            ("gvec", &gvec),
            ("rk", &c.rk),
            ("rq", &c.rq),
            ("tm", &made.t.x),
            ("pm", &made.p.x),
        ] {
            let to = &mut x.get_mut(name).expect("made above").1;
            to[block * values.len()..][..values.len()].copy_from_slice(values);
        }
    }

    /// The outputs of a chunk and what it writes into the state.
    fn forward(&self, c: &Chunk, made: &Inside, s: &Mat) -> (Mat, Mat) {
        let from_state = c.q.scale_rows(&c.eg()).mul(s).times(self.scale());
        if !self.delta {
            return (from_state.add(&made.p.mul(&c.v)), c.v.clone());
        }
        let y = c.v.sub(&c.k.scale_rows(&c.eg()).mul(s));
        let u = made.t.mul(&y.scale_rows(&c.beta));
        (from_state.add(&made.p.mul(&u)), u)
    }

    fn decay_gradients(&self, x: &mut Arrays, c: &Chunk, head: usize, s: &Mat, ds: &Mat) {
        let a = c.lower(&c.q.mul(&c.k.t()).times(self.scale()));
        let d = c.lower(&c.d_o.mul(&c.v.t()).times(self.scale()));
        let dq = c.d_o.mul(&s.t()).scale_rows(&c.eg()).times(self.scale()).add(&d.mul(&c.k));
        let write = c.v.mul(&ds.t()).scale_rows(&c.er());
        let dk = write.add(&d.t().mul(&c.q));
        let dv = c.k.mul(ds).scale_rows(&c.er()).add(&a.t().mul(&c.d_o));
        let d_g: Vec<f64> = c.q.dots(&dq).iter().zip(c.k.dots(&dk)).map(|(a, b)| a - b).collect();
        let last = c.last() * s.x.iter().zip(&ds.x).map(|(a, b)| a * b).sum::<f64>()
            + c.k.dots(&write).iter().sum::<f64>();
        self.put_rows(x, "dq", c, head, &dq);
        self.put_rows(x, "dk", c, head, &dk);
        self.put_rows(x, "dv", c, head, &dv);
        self.put_rows(x, "dg", c, head, &Mat::of(1, reverse_sums(&d_g, last)));
    }

    fn delta_gradients(&self, x: &mut Arrays, c: &Chunk, head: usize, [s, ds, u, dx]: [&Mat; 4]) {
        let a = c.lower(&c.d_o.mul(&u.t()).times(self.scale()));
        let b = dx.mul(&u.t()).masked(|i, j| (j < i).then(|| -c.decay(i, j)));
        let dq = c.d_o.mul(&s.t()).scale_rows(&c.eg()).times(self.scale()).add(&a.mul(&c.k));
        let e = b.mul(&c.k).sub(&dx.mul(&s.t()).scale_rows(&c.eg()));
        let write = u.mul(&ds.t()).scale_rows(&c.er());
        let w = write.add(&a.t().mul(&c.q)).add(&b.scale_rows(&c.beta).t().mul(&c.k));
        let dk = e.scale_rows(&c.beta).add(&w);
        let (ke, kw, qq) = (c.k.dots(&e), c.k.dots(&w), c.q.dots(&dq));
        let d_beta: Vec<f64> = dx.dots(&c.v).iter().zip(&ke).map(|(a, b)| a + b).collect();
        let d_g: Vec<f64> = (0..C).map(|i| qq[i] + c.beta[i] * ke[i] - kw[i]).collect();
        let last = c.last() * s.x.iter().zip(&ds.x).map(|(a, b)| a * b).sum::<f64>()
            + c.k.dots(&write).iter().sum::<f64>();
        let through = |d: &Mat, y: &Mat, r: &[f64]| {
            if self.norm { d.sub(&y.scale_rows(&y.dots(d))).scale_rows(r) } else { d.clone() }
        };
        self.put_rows(x, "dq", c, head, &through(&dq, &c.q, &c.rq));
        self.put_rows(x, "dk", c, head, &through(&dk, &c.k, &c.rk));
        self.put_rows(x, "dv", c, head, &dx.scale_rows(&c.beta));
        self.put_rows(x, "dbeta", c, head, &Mat::of(1, d_beta));
        self.put_rows(x, "dg", c, head, &Mat::of(1, reverse_sums(&d_g, last)));
    }

    /// Stores the block of a chunk, and gives what the next kernel reads there.
    fn put(&self, x: &mut Arrays, name: &'static str, block: usize, m: &Mat) -> Mat {
        let stored = rounded(self.dtype, &m.x);
        x.get_mut(name).expect("made above").1[block * stored.len()..][..stored.len()].copy_from_slice(&m.x);
        Mat::of(m.cols, stored)
    }

    /// Stores the real rows of a chunk in an array `[T, HV, width]`.
    fn put_rows(&self, x: &mut Arrays, name: &'static str, c: &Chunk, head: usize, m: &Mat) {
        let to = &mut x.get_mut(name).expect("made above").1;
        for r in 0..c.real {
            to[((c.first + r) * self.hv + head) * m.cols..][..m.cols].copy_from_slice(m.row(r));
        }
    }
}

/// What the launch before the serial one makes.
struct Inside {
    t: Mat,
    p: Mat,
}

/// For each row the sum from there to the end, plus `more`.
fn reverse_sums(x: &[f64], more: f64) -> Vec<f64> {
    let mut sum = more;
    let mut out: Vec<f64> = x
        .iter()
        .rev()
        .map(|x| {
            sum += x;
            sum
        })
        .collect();
    out.reverse();
    out
}

/// The check of one kernel of the pipeline.
pub(super) struct Stage {
    /// Its name.
    pub name: &'static str,
    /// The arrays that it writes.
    pub outputs: &'static [&'static str],
}

impl KernelCheck for Stage {
    fn kernel(&self) -> &'static str {
        self.name
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        setups(kernel)?.iter().map(|setup| self.case(kernel, setup)).collect()
    }
}

/// Every name that an ABI of these kernels may hold.
const NAMES: [&str; 44] = [
    "ha", "q", "k", "v", "d_o", "g", "beta", "h0", "dht", "seqs", "chunks", "gc", "gvec", "rk", "rq", "tm",
    "pm", "o", "hs", "dh", "us", "dx", "dq", "dk", "dv", "dg", "dbeta", "ht", "dh0", "b", "t", "h", "hv",
    "nc", "nseg", "seg", "has_g", "has_beta", "has_h0", "has_ht", "has_dht", "has_dh0", "norm", "has_dg",
];

impl Stage {
    fn case(&self, kernel: &Kernel, setup: &Setup) -> Result<Case> {
        let arrays = setup.shared_arrays();
        let mut args = Vec::new();
        for arg in &kernel.abi {
            let all = NAMES.iter().chain(&["eps", "scale"]);
            let name = *all.clone().find(|n| **n == arg.name).ok_or_else(|| unknown(kernel, &arg.name))?;
            args.push((
                name,
                match arg.kind {
                    ArgKind::Ptr => self.pointer(kernel, setup, &arrays, name)?,
                    ArgKind::F32 if name == "eps" => Value::F32(EPS as f32),
                    ArgKind::F32 => Value::F32(setup.scale() as f32),
                    _ => Value::I32(setup.number(name) as i32),
                },
            ));
        }
        Ok(Case { label: setup.label.into(), args, grid: setup.grid(kernel)? })
    }

    fn pointer(&self, kernel: &Kernel, setup: &Setup, arrays: &Arrays, name: &'static str) -> Result<Value> {
        let (dtype, values) = arrays.get(name).ok_or_else(|| unknown(kernel, name))?;
        let written = match name {
            "o" => kernel.generic("OUT").unwrap_or(1) == 1,
            "hs" | "us" => kernel.generic("SAVE") == Some(1),
            "ht" | "dh0" => setup.state,
            "dg" => setup.gate != Gate::None,
            _ => true,
        };
        if self.outputs.contains(&name) {
            // An address is there in any case: descriptors are made from it whether or not the kernel stores.
            let place = Value::Scratch(values.len().max(64) * 4);
            // Gates are judged by the type of what they are computed from.
            let limit = if kernel.dtype == "f32" { tolerance("f32") } else { tolerance(&kernel.dtype) };
            let expected = Expected { values: values.clone(), tolerance: limit };
            return Ok(if written { Value::Out { dtype, expected } } else { place });
        }
        let read = match name {
            "h0" | "dht" => setup.state,
            "g" => setup.gate != Gate::None,
            "beta" => setup.beta,
            _ => true,
        };
        Ok(match *dtype {
            // NaN, which would show if it were read.
            _ if values.is_empty() || !read => Value::Scratch(values.len().max(64) * 4),
            "i32" => Value::In(Data::I32(values.iter().map(|x| *x as i32).collect())),
            float => Value::In(Data::round(float, values)?),
        })
    }
}

fn unknown(kernel: &Kernel, name: &str) -> Error {
    Error::Entry { name: kernel.name.clone(), why: format!("its check knows no argument {name}") }
}

impl Setup {
    fn number(&self, name: &str) -> usize {
        let longest = self.lens.iter().copied().max().unwrap_or(0);
        match name {
            "b" => self.lens.len(),
            "t" => longest,
            "h" => self.h,
            "hv" => self.hv,
            "nc" => self.chunks(),
            "nseg" => 1,
            "seg" => longest.div_ceil(C).max(1),
            "has_g" | "has_dg" => usize::from(self.gate != Gate::None),
            "has_beta" => usize::from(self.beta),
            "norm" => usize::from(self.norm),
            _ => usize::from(self.state),
        }
    }

    /// Blocks: by chunk, by sequence, or by chunk and block of V, as the kernel's generics say.
    fn grid(&self, kernel: &Kernel) -> Result<[u32; 3]> {
        let [y, z] =
            if self.packed { [self.chunks(), 1] } else { [self.number("t").div_ceil(C), self.lens.len()] };
        let blocks = |generic| Ok::<_, Error>(self.v / kernel.need_generic(generic)? as usize);
        let grid = match kernel.kernel.as_str() {
            "decay_fwd" | "decay_dstate" | "delta_fwd" | "delta_dstate" => {
                [blocks("BV")?, self.hv, self.lens.len()]
            }
            "delta_through" => [self.k / kernel.need_generic("BV")? as usize, self.hv, self.lens.len()],
            "decay_out" => [self.hv * blocks("BV")?, y, z],
            "delta_gates" => [self.hv.div_ceil(kernel.need_generic("HB")? as usize), y, z],
            _ => [self.hv, y, z],
        };
        Ok(grid.map(|n| n as u32))
    }
}

/// The shapes for a configuration.
fn setups(kernel: &Kernel) -> Result<Vec<Setup>> {
    let delta = kernel.family == "delta";
    let dtype = ["bf16", "f16", "f32"].into_iter().find(|d| *d == kernel.dtype);
    let dtype = Some(dtype.ok_or_else(|| unknown(kernel, &kernel.dtype))?);
    let size = |name: &str, default: Option<i64>| kernel.generic(name).or(default).unwrap_or(128) as usize;
    let base = Setup {
        label: "",
        lens: vec![200],
        packed: false,
        h: 2,
        hv: 2,
        k: size("K", None),
        v: size("V", kernel.generic("K")),
        norm: delta,
        gate: Gate::Token,
        beta: true,
        state: false,
        delta,
        dtype,
    };
    let all = if kernel.generic("VL") == Some(1) {
        vec![
            Setup {
                label: "packed, state",
                lens: vec![100, 0, 1, 64, 63, 129],
                packed: true,
                h: 1,
                state: true,
                ..base.clone()
            },
            Setup { label: "packed", lens: vec![65, 200], packed: true, ..base.clone() },
        ]
    } else {
        vec![
            Setup { label: "ragged tail", ..base.clone() },
            Setup { label: "batch, groups, state", lens: vec![129, 129], h: 1, state: true, ..base.clone() },
            Setup {
                label: "no gate, state",
                lens: vec![128],
                norm: false,
                gate: Gate::None,
                state: true,
                ..base.clone()
            },
            Setup { label: "short, no beta", lens: vec![37], h: 1, hv: 1, beta: false, ..base.clone() },
        ]
    };
    let gate = match kernel.generic("MODE") {
        Some(0) => Some(Gate::None),
        Some(1) => Some(Gate::Head),
        _ => None,
    };
    let chosen = all.into_iter().map(|s| Setup { gate: gate.unwrap_or(s.gate), ..s });
    // Code without states cannot be given one; without a gate only that mode of the sum applies.
    // A pass for the states alone leaves nothing where there are none.
    let writes = |s: &Setup| s.state || kernel.generic("OUT") != Some(0) || kernel.generic("SAVE") != Some(0);
    let fits = |s: &Setup| writes(s) && !(s.state && kernel.generic("ST") == Some(0));
    let mode = |s: &Setup| kernel.generic("MODE") != Some(2) || s.gate == Gate::Token;
    Ok(chosen.filter(|s| fits(s) && mode(s)).collect())
}

#[cfg(test)]
#[path = "chunked_tests.rs"]
mod tests;
