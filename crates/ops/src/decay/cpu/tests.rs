//! Slice-level checks of both paths against the reference in f64, and of the reference against finite differences.

use super::*;
use crate::decay::reference;
use flashlin_tensor::Philox;

/// Which gates a case has.
#[derive(Clone, Copy, Debug, Default)]
struct Gates {
    g: bool,
    gamma: bool,
    gk: bool,
    gk_shared: bool,
    gv: bool,
    bonus: bool,
}

#[derive(Clone, Debug)]
struct Case {
    seqs: Vec<Seq>,
    h: usize,
    hv: usize,
    k: usize,
    v: usize,
    gates: Gates,
    /// Gates lie in [-strength, 0].
    strength: f64,
    h0: bool,
    transposed: bool,
}

/// Random data of a case, f64.
struct Data {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    g: Vec<f64>,
    gamma: Vec<f64>,
    gk: Vec<f64>,
    gk_heads: usize,
    gv: Vec<f64>,
    u: Vec<f64>,
    h0: Vec<f64>,
    d_o: Vec<f64>,
    d_last: Vec<f64>,
}

fn randn(stream: u64, n: usize) -> Vec<f64> {
    let rng = Philox::new(7, stream);
    (0..n).map(|i| rng.normal(i as u64) as f32 as f64).collect()
}

/// Mostly weak decays with strong ones among them, down to `-strength`.
fn decays(stream: u64, n: usize, strength: f64) -> Vec<f64> {
    let rng = Philox::new(8, stream);
    (0..n).map(|i| (-strength * rng.uniform(i as u64).powi(3)) as f32 as f64).collect()
}

impl Case {
    fn data(&self) -> Data {
        let t: usize = self.seqs.iter().map(|s| s.len).sum();
        let states = self.seqs.len() * self.hv * self.k * self.v;
        let gk_heads = if self.gates.gk_shared { self.h } else { self.hv };
        Data {
            q: randn(1, t * self.h * self.k),
            k: randn(2, t * self.h * self.k),
            v: randn(3, t * self.hv * self.v),
            g: decays(4, t * self.hv, self.strength),
            gamma: decays(5, self.hv, self.strength),
            gk: decays(6, t * gk_heads * self.k, self.strength),
            gk_heads,
            gv: decays(7, t * self.hv * self.v, self.strength),
            u: randn(8, self.h * self.k),
            h0: randn(9, states),
            d_o: randn(10, t * self.hv * self.v),
            d_last: randn(11, states),
        }
    }

    fn reference(&self, d: &Data) -> (Vec<f64>, Vec<f64>, reference::Gradients<f64>) {
        let spans: Vec<_> = self.seqs.iter().map(|s| (s.row, s.len)).collect();
        let on = |b: bool, x: &'_ Vec<f64>| b.then(|| x.clone());
        let (g, gamma, gk) =
            (on(self.gates.g, &d.g), on(self.gates.gamma, &d.gamma), on(self.gates.gk, &d.gk));
        let (gv, u, h0) = (on(self.gates.gv, &d.gv), on(self.gates.bonus, &d.u), on(self.h0, &d.h0));
        let x = reference::Inputs {
            seqs: &spans,
            heads: self.h,
            value_heads: self.hv,
            key_dim: self.k,
            value_dim: self.v,
            scale: 0.3,
            q: &d.q,
            k: &d.k,
            v: &d.v,
            g: g.as_deref(),
            g_gamma: gamma.as_deref(),
            gk: gk.as_deref(),
            gv: gv.as_deref(),
            u: u.as_deref(),
            h0: h0.as_deref(),
        };
        let (o, last) = reference::forward(&x);
        let grads = reference::backward(&x, &d.d_o, Some(&d.d_last));
        (o, last, grads)
    }
}

fn turned(x: &[f64], k: usize, v: usize) -> Vec<f64> {
    x.chunks(k * v).flat_map(|s| (0..k * v).map(move |i| s[i % k * v + i / k])).collect()
}

fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut d, mut n) = (0.0, 0.0);
    for (a, b) in got.iter().zip(want) {
        d += (a - b) * (a - b);
        n += b * b;
    }
    if d == 0.0 { 0.0 } else { (d / n.max(1e-300)).sqrt() }
}

/// Runs a path in `R` and gives the worst relative error by name.
fn run<R: crate::simd::Real>(case: &Case, d: &Data, path: Path, chunk: usize) -> Vec<(&'static str, f64)>
where
    for<'a> Elements<'a>: From<&'a [R]>,
{
    let t: usize = case.seqs.iter().map(|s| s.len).sum();
    let conv = |x: &[f64]| x.iter().map(|&v| R::from_f64(v)).collect::<Vec<R>>();
    let (q, k, v, g, gamma) = (conv(&d.q), conv(&d.k), conv(&d.v), conv(&d.g), conv(&d.gamma));
    let (gk, gv, u, d_o) = (conv(&d.gk), conv(&d.gv), conv(&d.u), conv(&d.d_o));
    let layout = |x: &[f64]| conv(&if case.transposed { turned(x, case.k, case.v) } else { x.to_vec() });
    let (h0, d_last) = (layout(&d.h0), layout(&d.d_last));
    let tt = if case.seqs.iter().any(|s| s.batch > 0) { case.seqs[0].len } else { t };
    fn src<'a, R>(x: &'a [R], tt: usize, heads: usize, dim: usize) -> Source<'a>
    where
        Elements<'a>: From<&'a [R]>,
    {
        Source::contiguous(Elements::from(x), tt, heads, dim)
    }
    let args = Args {
        seqs: &case.seqs,
        heads: case.h,
        value_heads: case.hv,
        key_dim: case.k,
        value_dim: case.v,
        scale: R::from_f64(0.3),
        q: src(&q, tt, case.h, case.k),
        k: src(&k, tt, case.h, case.k),
        v: src(&v, tt, case.hv, case.v),
        g: case.gates.g.then(|| src(&g, tt, case.hv, 1)),
        g_gamma: case.gates.gamma.then_some(&gamma[..]),
        gk: case.gates.gk.then(|| src(&gk, tt, d.gk_heads, case.k)),
        gk_heads: d.gk_heads,
        gv: case.gates.gv.then(|| src(&gv, tt, case.hv, case.v)),
        u: case.gates.bonus.then_some(&u[..]),
        h0: case.h0.then_some(&h0[..]),
        transposed: case.transposed,
        chunk,
    };
    // NaN everywhere first: whatever is wanted must be written.
    let fresh = |n: usize, on: bool| vec![R::from_f64(f64::NAN); if on { n } else { 0 }];
    let (mut o, mut last) = (fresh(v.len(), true), fresh(h0.len(), true));
    forward(path, &args, &mut o, &mut last);
    let d_src = src(&d_o, tt, case.hv, case.v);
    let gates = &case.gates;
    let (mut dq, mut dk, mut dv) = (fresh(q.len(), true), fresh(k.len(), true), fresh(v.len(), true));
    let (mut dg, mut d_gamma) = (fresh(g.len(), gates.g), fresh(gamma.len(), gates.gamma));
    let (mut dgk, mut dgv) = (fresh(gk.len(), gates.gk), fresh(gv.len(), gates.gv));
    let (mut du, mut dh0) = (fresh(u.len(), gates.bonus), fresh(h0.len(), true));
    let grads = GradsMut {
        q: &mut dq,
        k: &mut dk,
        v: &mut dv,
        g: &mut dg,
        g_gamma: &mut d_gamma,
        gk: &mut dgk,
        gv: &mut dgv,
        u: &mut du,
        h0: &mut dh0,
    };
    backward(path, &args, &d_src, Some(&d_last), grads);
    let (want_o, want_last, want) = case.reference(d);
    let back = |x: &[R]| x.iter().map(|v| v.to_f64()).collect::<Vec<f64>>();
    let state = |x: &[R]| {
        let x = back(x);
        if case.transposed { turned(&x, case.v, case.k) } else { x }
    };
    let mut out = vec![
        ("o", error(&back(&o), &want_o)),
        ("last", error(&state(&last), &want_last)),
        ("dq", error(&back(&dq), &want.q)),
        ("dk", error(&back(&dk), &want.k)),
        ("dv", error(&back(&dv), &want.v)),
        ("dh0", error(&state(&dh0), &want.h0)),
    ];
    for (name, got, want) in [
        ("dg", dg, want.g),
        ("dgamma", d_gamma, want.g_gamma),
        ("dgk", dgk, want.gk),
        ("dgv", dgv, want.gv),
        ("du", du, want.u),
    ] {
        out.push((name, error(&back(&got), &want.unwrap_or_default())));
    }
    out
}

impl<'a> From<&'a [f32]> for Elements<'a> {
    fn from(x: &'a [f32]) -> Self {
        Elements::F32(x)
    }
}

impl<'a> From<&'a [f64]> for Elements<'a> {
    fn from(x: &'a [f64]) -> Self {
        Elements::F64(x)
    }
}

fn all_gates() -> Vec<Gates> {
    let none = Gates::default();
    vec![
        none,
        Gates { g: true, ..none },
        Gates { gamma: true, ..none },
        Gates { gk: true, ..none },
        Gates { gk: true, gk_shared: true, ..none },
        Gates { gv: true, ..none },
        Gates { gk: true, gv: true, ..none },
        Gates { g: true, gv: true, ..none },
        Gates { g: true, gamma: true, gk: true, gv: true, ..none },
        Gates { gk: true, bonus: true, ..none },
        Gates { g: true, bonus: true, ..none },
        Gates { bonus: true, ..none },
        Gates { g: true, gk: true, gv: true, bonus: true, ..none },
    ]
}

#[test]
fn both_paths_match_the_reference() {
    for gates in all_gates() {
        for strength in [0.1, 3.0, 20.0] {
            for (chunk, k, v, h, hv) in [(16, 5, 19, 2, 4), (64, 33, 16, 1, 1), (32, 8, 3, 2, 2)] {
                let packed = Seq::packed(&[0, 1, 1, 17, 17 + 3 * chunk + 7, 17 + 4 * chunk + 7]);
                for (seqs, transposed, h0) in [(packed, true, true), (Seq::dense(2, chunk + 1), false, false)]
                {
                    let case = Case { seqs, h, hv, k, v, gates, strength, h0, transposed };
                    let d = case.data();
                    for path in [Path::Chunk, Path::Recurrent] {
                        for (name, e) in run::<f64>(&case, &d, path, chunk) {
                            assert!(e < 1e-11, "f64 {path:?} {name}: {e:e}\n{case:?}");
                        }
                        for (name, e) in run::<f32>(&case, &d, path, chunk) {
                            // One sum over all tokens per head may cancel: its own size says little.
                            assert!(
                                e < if name == "dgamma" { 2e-4 } else { 2e-5 },
                                "f32 {path:?} {name}: {e:e}\n{case:?}"
                            );
                        }
                    }
                }
            }
        }
    }
}
