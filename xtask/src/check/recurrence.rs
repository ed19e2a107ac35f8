//! The kernels of the recurrent families: the decay family's and the delta rule's chunked pipelines, and the decoding step.

use anyhow::Result;
use flashlin_kernels::{Bundle, Kernel};
use flashlin_ops::decay::reference as decay;
use flashlin_ops::delta::reference::{Dims, Gate, Grads, Problem, backward, forward};

use super::Select;
use super::gpu::{Bufs, Gpu};
use super::host::{Noise, encode, relative, round, size};
use super::report::Errors;

/// Chunk length of every kernel here.
const C: usize = 64;
const EPS: f64 = 1e-6;

/// Which recurrence.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Decay,
    Delta,
}

impl Family {
    fn of(kernel: &Kernel) -> Family {
        if kernel.family == "decay" { Family::Decay } else { Family::Delta }
    }

    /// Before everything else.
    fn first(self) -> &'static [&'static str] {
        match self {
            Family::Decay => &["cumsum"],
            Family::Delta => &["gates", "intra"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Family::Decay => "decay",
            Family::Delta => "delta",
        }
    }
}

/// A batch: `lens` packed sequences, or `lens.len()` of one length side by side.
#[derive(Clone)]
struct Case {
    family: Family,
    name: &'static str,
    packed: bool,
    lens: Vec<usize>,
    h: usize,
    hv: usize,
    norm: bool,
    gate: bool,
    beta: bool,
    state: bool,
}

/// Inputs, as rounded to their dtypes.
struct Inputs {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    g: Vec<f64>,
    beta: Vec<f64>,
    h0: Vec<f64>,
    d_o: Vec<f64>,
    dht: Vec<f64>,
}

/// Sizes that every launch of a case shares.
struct Shape {
    dtype: String,
    k: usize,
    v: usize,
    tokens: usize,
    chunks: usize,
    seqs: usize,
    longest: usize,
}

impl Case {
    fn shape(&self, dtype: &str, k: usize, v: usize) -> Shape {
        Shape {
            dtype: dtype.into(),
            k,
            v,
            tokens: self.lens.iter().sum(),
            chunks: self.lens.iter().map(|l| l.div_ceil(C)).sum(),
            seqs: self.lens.len(),
            longest: self.lens.iter().copied().max().unwrap_or(0),
        }
    }
}

fn inputs(case: &Case, s: &Shape) -> Inputs {
    let mut n = Noise::new(7);
    let (t, d) = (s.tokens, &s.dtype);
    // Unnormalised keys must have |k|^2 beta < 2, or the recurrence itself diverges.
    let key = if case.norm { 1.0 } else { (3.0 / s.k as f64).sqrt() * 0.9 };
    let states = s.seqs * case.hv * s.k * s.v;
    Inputs {
        q: round(d, &n.vec(t * case.h * s.k, key)),
        k: round(d, &n.vec(t * case.h * s.k, key)),
        v: round(d, &n.vec(t * case.hv * s.v, 1.0)),
        g: round("f32", &n.vec(t * case.hv, 1.0).iter().map(|x| -0.3 * x * x).collect::<Vec<_>>()),
        beta: round("f32", &n.vec(t * case.hv, 1.0).iter().map(|x| (x + 1.0) / 2.0).collect::<Vec<_>>()),
        h0: round("f32", &n.vec(states, 0.3)),
        d_o: round(d, &n.vec(t * case.hv * s.v, 1.0)),
        dht: round("f32", &n.vec(states, 0.3)),
    }
}

fn upload(gpu: &Gpu<'_>, case: &Case, s: &Shape, x: &Inputs) -> Result<Bufs> {
    let mut b = Bufs::default();
    let mut put = |name: &str, dtype: &str, data: &[f64]| -> Result<()> {
        b.0.insert(name.into(), gpu.upload(&encode(dtype, data))?);
        Ok(())
    };
    for (name, data) in [("q", &x.q), ("k", &x.k), ("v", &x.v), ("d_o", &x.d_o)] {
        put(name, &s.dtype, data)?;
    }
    for (name, data) in [("g", &x.g), ("beta", &x.beta), ("h0", &x.h0), ("dht", &x.dht)] {
        put(name, "f32", data)?;
    }
    let (mut chunks, mut seqs, mut first, mut chunk) = (Vec::new(), Vec::new(), 0, 0);
    for (n, len) in case.lens.iter().enumerate() {
        seqs.extend([first as f64, *len as f64, chunk as f64, 0.0]);
        for i in 0..len.div_ceil(C) {
            chunks.extend([first as f64, *len as f64, i as f64, n as f64]);
        }
        first += len;
        chunk += len.div_ceil(C);
    }
    put("chunks", "i32", &chunks)?;
    put("seqs", "i32", &seqs)?;
    workspaces(gpu, s, case.hv, &mut b)?;
    Ok(b)
}

/// Outputs and workspaces, poisoned.
fn workspaces(gpu: &Gpu<'_>, s: &Shape, hv: usize, b: &mut Bufs) -> Result<()> {
    let e = size(&s.dtype);
    let (n, th) = (s.chunks * hv, s.tokens * hv);
    let sizes = [
        ("gvec", n * 4 * C * 4),
        ("rk", n * C * 4),
        ("rq", n * C * 4),
        ("gc", n * C * 4),
        ("tm", n * C * C * e),
        ("pm", n * C * C * e),
        ("o", th * s.v * e),
        ("hs", n * s.k * s.v * e),
        ("us", n * C * s.v * e),
        ("dh", n * s.k * s.v * e),
        ("dx", n * C * s.v * e),
        ("dq", th * s.k * e),
        ("dk", th * s.k * e),
        ("dv", th * s.v * e),
        ("dg", th * 4),
        ("dbeta", th * 4),
        ("ht", s.seqs * hv * s.k * s.v * 4),
        ("dh0", s.seqs * hv * s.k * s.v * 4),
    ];
    for (name, bytes) in sizes {
        b.0.insert(name.into(), gpu.poisoned(bytes)?);
    }
    Ok(())
}

/// The launches of a case.
struct Run<'a> {
    gpu: &'a Gpu<'a>,
    case: &'a Case,
    s: &'a Shape,
    bufs: &'a Bufs,
}

impl Run<'_> {
    fn flag(on: bool) -> f64 {
        f64::from(u8::from(on))
    }

    fn numbers(&self) -> Vec<(&'static str, f64)> {
        let (c, s) = (self.case, self.s);
        let b = s.seqs as f64;
        vec![
            ("b", b),
            ("t", s.longest as f64),
            ("h", c.h as f64),
            ("hv", c.hv as f64),
            ("nc", s.chunks as f64),
            ("nseg", 1.0),
            ("seg", s.longest.div_ceil(C).max(1) as f64),
            ("has_g", Self::flag(c.gate)),
            ("has_beta", Self::flag(c.beta)),
            ("norm", Self::flag(c.norm)),
            ("has_h0", Self::flag(c.state)),
            ("has_ht", Self::flag(c.state)),
            ("has_dht", Self::flag(c.state)),
            ("has_dh0", Self::flag(c.state)),
            ("has_dg", Self::flag(c.gate)),
            ("eps", EPS),
            ("scale", (s.k as f64).powf(-0.5)),
        ]
    }

    /// One block a chunk and head.
    fn chunked(&self) -> [usize; 3] {
        if self.case.packed {
            [self.case.hv, self.s.chunks, 1]
        } else {
            [self.case.hv, self.s.longest.div_ceil(C), self.s.seqs]
        }
    }

    /// One block a sequence, head and block of V.
    fn serial(&self, k: &Kernel) -> Result<[usize; 3]> {
        Ok([self.s.v / k.need_generic("BV")? as usize, self.case.hv, self.s.seqs])
    }

    fn stage(&self, select: &Select<'_>, stage: &str) -> Result<()> {
        let (k, v, vl) =
            (("K", self.s.k as i64), ("V", self.s.v as i64), ("VL", i64::from(self.case.packed)));
        let d = self.s.dtype.as_str();
        let family = self.case.family.name();
        let get =
            |kernel: &str, generics: &[(&str, i64)]| select.get(&format!("{family}_{kernel}"), d, generics);
        // Code that knows states serves without one too, where there is none without.
        let serial = |kernel: &str, parts: &[(&str, i64)]| {
            let with = |st: i64| get(kernel, &[&[k, v, vl, ("ST", st)], parts].concat());
            if self.case.state { with(1) } else { with(0).or_else(|_| with(1)) }
        };
        let kernel = match stage {
            "cumsum" => {
                let mode = if self.case.gate { 2 } else { 0 };
                select.get("decay_cumsum", "f32", &[("MODE", mode), vl])?
            }
            "gates" => select.get("delta_gates", "f32", &[vl])?,
            "intra" => get(stage, &[k, vl])?,
            "fwd" => serial("fwd", &[("OUT", 1), ("SAVE", 0)])?,
            "save" => serial("fwd", &[("OUT", 0), ("SAVE", 1)])?,
            "dstate" => serial("dstate", &[])?,
            other => get(other, &[k, v, vl])?,
        };
        let grid = match stage {
            "cumsum" | "intra" | "bwd" => self.chunked(),
            "gates" => {
                let [heads, chunks, batch] = self.chunked();
                [heads.div_ceil(kernel.need_generic("HB")? as usize), chunks, batch]
            }
            "out" => {
                let [heads, chunks, batch] = self.chunked();
                [heads * self.s.v / kernel.need_generic("BV")? as usize, chunks, batch]
            }
            _ => self.serial(kernel)?,
        };
        self.gpu.launch(kernel, grid, self.bufs, &[], &self.numbers())
    }

    fn stages(&self, select: &Select<'_>, stages: &[&str]) -> Result<()> {
        stages.iter().try_for_each(|s| self.stage(select, s))
    }
}

const BACKWARD: [&str; 3] = ["save", "dstate", "bwd"];

/// Rows scaled to unit length, and the factors.
fn normalised(x: &[f64], d: usize) -> (Vec<f64>, Vec<f64>) {
    let mut y = x.to_vec();
    let mut r = Vec::new();
    for row in y.chunks_exact_mut(d) {
        let f = (row.iter().map(|v| v * v).sum::<f64>() + EPS).sqrt().recip();
        row.iter_mut().for_each(|v| *v *= f);
        r.push(f);
    }
    (y, r)
}

/// Gradient of rows from that of their normalised form.
fn through_norm(dy: &mut [f64], y: &[f64], r: &[f64], d: usize) {
    for ((dy, y), r) in dy.chunks_exact_mut(d).zip(y.chunks_exact(d)).zip(r) {
        let dot: f64 = dy.iter().zip(y).map(|(a, b)| a * b).sum();
        dy.iter_mut().zip(y).for_each(|(a, b)| *a = r * (*a - b * dot));
    }
}

/// Outputs and gradients in float64, by name.
fn reference(case: &Case, s: &Shape, x: &Inputs) -> Vec<(&'static str, Vec<f64>)> {
    if case.family == Family::Decay {
        return decay_reference(case, s, x);
    }
    let mut out: Vec<(&str, Vec<f64>)> =
        ["o", "ht", "dq", "dk", "dv", "dg", "dbeta", "dh0"].map(|n| (n, Vec::new())).into();
    let mut at = 0;
    for (n, &t) in case.lens.iter().enumerate() {
        let part = |v: &[f64], w: usize| v[at * w..(at + t) * w].to_vec();
        let (kd, vd) = (case.h * s.k, case.hv * s.v);
        let (mut q, mut k) = (part(&x.q, kd), part(&x.k, kd));
        let (v, g, beta, d_o) =
            (part(&x.v, vd), part(&x.g, case.hv), part(&x.beta, case.hv), part(&x.d_o, vd));
        let (mut rq, mut rk) = (Vec::new(), Vec::new());
        if case.norm {
            (q, rq) = normalised(&q, s.k);
            (k, rk) = normalised(&k, s.k);
        }
        let state = case.hv * s.k * s.v;
        let (h0, dht) = (&x.h0[n * state..][..state], &x.dht[n * state..][..state]);
        let problem = Problem {
            dims: Dims { t, h: case.h, hv: case.hv, k: s.k, v: s.v },
            q: &q,
            k: &k,
            erase: None,
            v: &v,
            beta: case.beta.then_some(&beta[..]),
            gate: if case.gate { Gate::Scalar(&g) } else { Gate::None },
            h0: case.state.then_some(h0),
            scale: (s.k as f64).powf(-0.5),
            erase_before_decay: false,
        };
        let (o, ht) = forward(&problem);
        let mut d: Grads<f64> = backward(&problem, &d_o, case.state.then_some(dht));
        if case.norm {
            through_norm(&mut d.q, &q, &rq, s.k);
            through_norm(&mut d.k, &k, &rk, s.k);
        }
        for ((_, all), one) in out.iter_mut().zip([o, ht, d.q, d.k, d.v, d.gate, d.beta, d.h0]) {
            all.extend(one);
        }
        at += t;
    }
    out.retain(|(n, _)| match *n {
        "ht" | "dh0" => case.state,
        "dg" => case.gate,
        "dbeta" => case.beta,
        _ => true,
    });
    out
}

fn decay_reference(case: &Case, s: &Shape, x: &Inputs) -> Vec<(&'static str, Vec<f64>)> {
    let mut first = 0;
    let seqs: Vec<(usize, usize)> = case
        .lens
        .iter()
        .map(|&len| {
            first += len;
            (first - len, len)
        })
        .collect();
    let problem = decay::Inputs {
        seqs: &seqs,
        heads: case.h,
        value_heads: case.hv,
        key_dim: s.k,
        value_dim: s.v,
        scale: (s.k as f64).powf(-0.5),
        q: &x.q[..],
        k: &x.k,
        v: &x.v,
        g: case.gate.then_some(&x.g[..]),
        g_gamma: None,
        gk: None,
        gv: None,
        u: None,
        h0: case.state.then_some(&x.h0[..]),
    };
    let (o, ht) = decay::forward(&problem);
    let d = decay::backward(&problem, &x.d_o, case.state.then_some(&x.dht[..]));
    let mut out = vec![("o", o), ("dq", d.q), ("dk", d.k), ("dv", d.v)];
    if let Some(g) = d.g {
        out.push(("dg", g));
    }
    if case.state {
        out.extend([("ht", ht), ("dh0", d.h0)]);
    }
    out
}

/// `[T, HV, K]` summed to `[T, H, K]`.
fn group_sum(x: &[f64], h: usize, hv: usize, k: usize) -> Vec<f64> {
    let group = hv / h;
    let mut y = vec![0.0; x.len() / group];
    for (i, row) in x.chunks_exact(k).enumerate() {
        let to = i / hv * h + i % hv / group;
        row.iter().zip(&mut y[to * k..][..k]).for_each(|(a, b)| *b += a);
    }
    y
}

fn compare(
    gpu: &Gpu<'_>,
    case: &Case,
    s: &Shape,
    bufs: &Bufs,
    want: &[(&str, Vec<f64>)],
    only_forward: bool,
) -> Result<Errors> {
    let mut errors = Errors::new();
    for (name, want) in want {
        if only_forward != matches!(*name, "o" | "ht") {
            continue;
        }
        let dtype = if matches!(*name, "ht" | "dg" | "dbeta" | "dh0") { "f32" } else { &s.dtype };
        let mut got = gpu.download(&bufs.0[*name], dtype)?;
        if matches!(*name, "dq" | "dk") {
            got = group_sum(&got, case.h, case.hv, s.k);
        }
        errors.push((format!("{} {name}", case.name), relative(&got, want)));
    }
    Ok(errors)
}

fn cases(family: Family, packed: bool) -> Vec<Case> {
    let delta = family == Family::Delta;
    let case = |name, lens: &[usize], h, hv, gate, beta, state| Case {
        family,
        name,
        packed,
        lens: lens.to_vec(),
        h,
        hv,
        norm: delta && gate,
        gate,
        beta,
        state,
    };
    if packed {
        return vec![
            case("packed", &[100, 0, 1, 64, 63, 129], 1, 2, true, true, true),
            case("packed, no state", &[65, 200], 2, 2, true, true, false),
        ];
    }
    vec![
        case("tail", &[200], 2, 2, true, true, false),
        case("batch, groups, state", &[129, 129], 1, 2, true, true, true),
        case("no gate", &[128], 2, 2, false, true, true),
        case("no beta, short", &[37], 1, 1, true, false, false),
    ]
}

/// Errors of a configuration over all cases.
pub fn check(gpu: &Gpu<'_>, bundle: &Bundle, kernel: &Kernel) -> Result<Errors> {
    if kernel.kernel == "delta_step" {
        return super::step::check(gpu, kernel);
    }
    let family = Family::of(kernel);
    let packed = kernel.generic("VL") == Some(1);
    let select = Select::test(bundle, kernel);
    let (k, v) =
        (kernel.generic("K").unwrap_or(128), kernel.generic("V").or(kernel.generic("K")).unwrap_or(128));
    // What has no arrays of the inputs' type is checked where it ships.
    let dtype =
        if matches!(kernel.kernel.as_str(), "decay_cumsum" | "delta_gates") { "bf16" } else { &kernel.dtype };
    let first = matches!(kernel.kernel.as_str(), "delta_gates" | "delta_intra" | "decay_cumsum");
    let saves = kernel.generic("SAVE") == Some(1);
    let mut errors = Errors::new();
    for case in cases(family, packed) {
        let other_state = kernel.generic("ST") == Some(0) && case.state;
        if other_state || kernel.generic("MODE").is_some_and(|m| (m == 2) != case.gate) {
            continue;
        }
        let s = case.shape(dtype, k as usize, v as usize);
        let x = inputs(&case, &s);
        let want = reference(&case, &s, &x);
        let bufs = upload(gpu, &case, &s, &x)?;
        let run = Run { gpu, case: &case, s: &s, bufs: &bufs };
        run.stages(&select, family.first())?;
        if first || kernel.generic("OUT") == Some(1) {
            run.stages(&select, &["fwd"])?;
            errors.extend(compare(gpu, &case, &s, &bufs, &want, true)?);
        }
        let split = bundle.find("decay_out", dtype, &[("K", k), ("V", v)]).is_ok();
        if kernel.kernel == "decay_out" || (family == Family::Decay && saves && split) {
            let bufs = upload(gpu, &case, &s, &x)?;
            let run = Run { gpu, case: &case, s: &s, bufs: &bufs };
            run.stages(&select, &[family.first(), &["save", "out"]].concat())?;
            errors.extend(compare(gpu, &case, &s, &bufs, &want, true)?);
        }
        if first || saves || kernel.kernel.ends_with("_dstate") || kernel.kernel.ends_with("_bwd") {
            run.stages(&select, &BACKWARD)?;
            errors.extend(compare(gpu, &case, &s, &bufs, &want, false)?);
        }
    }
    Ok(errors)
}

/// (B, T, H, HV) of the benchmarks.
const SHAPES: [(usize, usize, usize, usize); 8] = [
    (1, 8192, 96, 96),
    (2, 16384, 16, 16),
    (1, 32768, 64, 64),
    (1, 8192, 64, 64),
    (1, 32768, 16, 64),
    (1, 32768, 16, 32),
    (1, 32768, 16, 8),
    (1, 32768, 2, 8),
];

/// Times every configuration at the benchmarks' shapes, then the pipelines of the fastest.
pub fn time(gpu: &Gpu<'_>, bundle: &Bundle, kernels: &[&Kernel]) -> Result<()> {
    for family in [Family::Decay, Family::Delta] {
        let mine = |k: &&&Kernel| {
            let shape = k.generic("VL") == Some(0)
                && k.generic("K").unwrap_or(128) == 128
                && k.generic("V").unwrap_or(128) == 128;
            k.family == family.name()
                && shape
                && (k.dtype == "bf16" || matches!(k.kernel.as_str(), "decay_cumsum" | "delta_gates"))
        };
        let kernels: Vec<&Kernel> = kernels.iter().filter(mine).copied().collect();
        for (b, t, h, hv) in SHAPES {
            if h <= hv && !kernels.is_empty() && (family == Family::Delta || h == hv) {
                time_shape(gpu, bundle, &kernels, family, [b, t, h, hv])?;
            }
        }
    }
    Ok(())
}

fn time_shape(
    gpu: &Gpu<'_>,
    bundle: &Bundle,
    kernels: &[&Kernel],
    family: Family,
    [b, t, h, hv]: [usize; 4],
) -> Result<()> {
    println!("== {} {b}x{t}, {h}/{hv} heads, K = V = 128, bf16", family.name());
    let case = Case {
        family,
        name: "",
        packed: false,
        lens: vec![t; b],
        h,
        hv,
        norm: family == Family::Delta,
        gate: true,
        beta: true,
        state: false,
    };
    let s = case.shape("bf16", 128, 128);
    let mut bufs = Bufs::default();
    workspaces(gpu, &s, hv, &mut bufs)?;
    let small = Case { lens: vec![8192], h: 1, hv: 1, ..case.clone() };
    let x = inputs(&small, &small.shape("bf16", 128, 128));
    let arrays = [
        ("q", "bf16", &x.q, s.tokens * h * 128),
        ("k", "bf16", &x.k, s.tokens * h * 128),
        ("v", "bf16", &x.v, s.tokens * hv * 128),
        ("d_o", "bf16", &x.d_o, s.tokens * hv * 128),
        ("g", "f32", &x.g, s.tokens * hv),
        ("beta", "f32", &x.beta, s.tokens * hv),
    ];
    for (name, dtype, data, n) in arrays {
        bufs.0.insert(name.into(), gpu.tiled(&encode(dtype, data), n * size(dtype))?);
    }
    let run = Run { gpu, case: &case, s: &s, bufs: &bufs };
    let mut best = Select::shipped(bundle);
    let rest: &[&str] = match family {
        Family::Decay => &["fwd", "save", "out", "dstate", "bwd"],
        Family::Delta => &["fwd", "save", "dstate", "bwd"],
    };
    let stages = [family.first(), rest].concat();
    for stage in stages {
        let mut fastest: Option<(f64, &Kernel)> = None;
        run.stage(&best, stage)?;
        for kernel in kernels.iter().filter(|k| {
            stage_of(k) == stage && k.generic("MODE").unwrap_or(2) == 2 && k.generic("ST").unwrap_or(0) == 0
        }) {
            let select = Select::test(bundle, kernel);
            let ms = gpu.time(|| run.stage(&select, stage))?;
            let rate = bytes(stage, family, &s, h, hv) / ms / 1e9;
            println!("  {stage:<7} {:<70} {ms:8.3} ms {rate:6.2} TB/s", kernel.name);
            if fastest.is_none_or(|f| ms < f.0) {
                fastest = Some((ms, kernel));
            }
        }
        if let Some((_, kernel)) = fastest {
            best.put(kernel);
        }
    }
    let mut forward = [family.first(), &["fwd"]].concat();
    let mut fwd = gpu.time(|| run.stages(&best, &forward))?;
    if family == Family::Decay {
        let split = [family.first(), &["save", "out"]].concat();
        let ms = gpu.time(|| run.stages(&best, &split))?;
        println!("  forward in one pass {fwd:.3} ms, in two {ms:.3} ms");
        if ms < fwd {
            (fwd, forward) = (ms, split);
        }
    }
    let both = gpu.time(|| run.stages(&best, &[&forward[..], &BACKWARD[..]].concat()))?;
    println!("  PIPELINE forward {fwd:.3} ms, forward + backward {both:.3} ms");
    Ok(())
}

fn stage_of(k: &Kernel) -> &str {
    match k.generic("OUT") {
        Some(1) => "fwd",
        Some(_) => "save",
        None => k.kernel.split('_').nth(1).unwrap_or_default(),
    }
}

/// Bytes that a stage must at least move.
fn bytes(stage: &str, family: Family, s: &Shape, h: usize, hv: usize) -> f64 {
    let e = size(&s.dtype) as f64;
    let (t, n) = (s.tokens as f64, (s.chunks * hv) as f64);
    let (qk, qh, vv) = (t * (h * s.k) as f64 * e, t * (hv * s.k) as f64 * e, t * (hv * s.v) as f64 * e);
    let (mat, vec, state) = (n * (C * C) as f64 * e, n * (6 * C * 4) as f64, n * (s.k * s.v) as f64 * e);
    let gates = t * hv as f64 * 4.0;
    match (family, stage) {
        (_, "cumsum") => 2.0 * gates,
        (Family::Decay, "fwd") => 2.0 * qk + 2.0 * vv + gates,
        (Family::Decay, "save") => qk + vv + state + gates,
        (Family::Decay, "out") => 2.0 * qk + 2.0 * vv + state + gates,
        (Family::Decay, "dstate") => qk + vv + state + gates,
        (Family::Decay, _) => 2.0 * qk + 3.0 * vv + 2.0 * qh + 2.0 * state + 2.0 * gates,
        (Family::Delta, "gates") => 6.0 * gates,
        (Family::Delta, "intra") => 2.0 * qk + 2.0 * mat + 4.0 * gates,
        (Family::Delta, "fwd") => 2.0 * qk + 2.0 * vv + 2.0 * mat + vec,
        (Family::Delta, "save") => qk + 2.0 * vv + mat + vec + state,
        (Family::Delta, "dstate") => 2.0 * qk + 2.0 * vv + 2.0 * mat + vec + state,
        (Family::Delta, _) => 2.0 * qk + 2.0 * qh + 5.0 * vv + vec + 2.0 * state + 2.0 * gates,
    }
}
