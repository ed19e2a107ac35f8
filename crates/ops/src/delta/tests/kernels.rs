//! The CPU kernels on plain slices against the token-by-token reference in f64: every gate kind, beta shape, erase
//! order, walk, layout, and lengths around chunk borders.

use crate::delta::cpu::{
    Data, GateKind, GradsOut, Input, Inputs, SaveTo, Saved, Seq, Spec, StateStrides, States, Walk, backward,
    forward, saved_sizes, sum_groups,
};
use crate::delta::reference::{self, Dims, Gate, Problem};
use crate::simd::{self, Arch};

pub(crate) fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (s >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        })
        .collect()
}

trait Kernel: simd::Real {
    fn data(x: &[Self]) -> Data<'_>;
}
impl Kernel for f32 {
    fn data(x: &[f32]) -> Data<'_> {
        Data::F32(x)
    }
}
impl Kernel for f64 {
    fn data(x: &[f64]) -> Data<'_> {
        Data::F64(x)
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    t: usize,
    h: usize,
    hv: usize,
    k: usize,
    v: usize,
    chunk: usize,
    gate: GateKind,
    beta_channel: bool,
    erase: bool,
    before: bool,
    value_first: bool,
    strength: f64,
}

const BASE: Case = Case {
    t: 70,
    h: 1,
    hv: 2,
    k: 5,
    v: 3,
    chunk: 64,
    gate: GateKind::Scalar,
    beta_channel: false,
    erase: false,
    before: false,
    value_first: false,
    strength: 0.3,
};

fn unit_rows(x: &mut [f64], n: usize) {
    for row in x.chunks_mut(n) {
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
}

fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm: f64 = want.iter().map(|x| x * x).sum::<f64>().sqrt();
    let diff = got.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    assert!(diff.is_finite());
    if norm < 1e-30 { diff } else { diff / norm }
}

fn check<R: Kernel>(c: Case, walk: Walk, tol: f64) {
    let d = Dims { t: c.t, h: c.h, hv: c.hv, k: c.k, v: c.v };
    let mut q = noise(c.t * c.h * c.k, 1);
    let mut k = noise(c.t * c.h * c.k, 2);
    let mut p = noise(c.t * c.h * c.k, 3);
    for x in [&mut q, &mut k, &mut p] {
        unit_rows(x, c.k);
    }
    let v = noise(c.t * c.hv * c.v, 4);
    let beta: Vec<f64> =
        noise(c.t * c.hv * if c.beta_channel { c.v } else { 1 }, 5).iter().map(|x| x.abs()).collect();
    let n = match c.gate {
        GateKind::None => 0,
        GateKind::Scalar => 1,
        GateKind::Channel => c.k,
    };
    let gate: Vec<f64> = noise(c.t * c.hv * n, 6).iter().map(|x| -x.abs() * c.strength).collect();
    let h0 = noise(c.hv * c.k * c.v, 7);
    let (wo, wh) = (noise(c.t * c.hv * c.v, 8), noise(c.hv * c.k * c.v, 9));

    let cast = |x: &[f64]| x.iter().map(|&x| R::from_f64(x)).collect::<Vec<R>>();
    let back = |x: &[R]| x.iter().map(|&x| x.to_f64()).collect::<Vec<f64>>();
    let (qr, kr, pr, vr, br, gr) = (cast(&q), cast(&k), cast(&p), cast(&v), cast(&beta), cast(&gate));
    // The reference sees exactly what the kernel sees.
    let (q, k, p, v, beta, gate) = (back(&qr), back(&kr), back(&pr), back(&vr), back(&br), back(&gr));
    let problem = Problem {
        dims: d,
        q: &q,
        k: &k,
        erase: c.erase.then_some(&p[..]),
        v: &v,
        beta: Some(&beta),
        gate: match c.gate {
            GateKind::None => Gate::None,
            GateKind::Scalar => Gate::Scalar(&gate),
            GateKind::Channel => Gate::Channel(&gate),
        },
        h0: Some(&h0),
        scale: 0.6,
        erase_before_decay: c.before,
    };
    let (want_o, want_s) = reference::forward(&problem);
    let want = reference::backward(&problem, &wo, Some(&wh));

    let spec = Spec {
        arch: Arch::new(),
        h: c.h,
        hv: c.hv,
        k: c.k,
        v: c.v,
        chunk: c.chunk,
        scale: 0.6,
        l2norm: false,
        erase_before_decay: c.before,
        gate: c.gate,
        activation: None,
        beta_channel: c.beta_channel,
        beta_sigmoid: false,
        beta_factor: 1.0,
    };
    fn input<R: Kernel>(x: &[R], heads: usize, n: usize) -> Input<'_> {
        Input { data: R::data(x), strides: [0, heads * n, n], n }
    }
    let inputs = Inputs {
        q: input(&qr, c.h, c.k),
        k: input(&kr, c.h, c.k),
        erase: c.erase.then(|| input(&pr, c.h, c.k)),
        v: input(&vr, c.hv, c.v),
        beta: Some(input(&br, c.hv, spec.beta_dim())),
        gate: (n > 0).then(|| input(&gr, c.hv, n)),
        a: &[],
        dt_bias: &[],
    };
    let strides =
        if c.value_first { StateStrides { key: 1, value: c.k } } else { StateStrides { key: c.v, value: 1 } };
    let relayout = |x: &[f64], into: bool| -> Vec<f64> {
        let mut out = vec![0.0; x.len()];
        for hv in 0..c.hv {
            for a in 0..c.k {
                for b in 0..c.v {
                    let (kv, own) = (a * c.v + b, a * strides.key + b * strides.value);
                    let base = hv * c.k * c.v;
                    if into {
                        out[base + own] = x[base + kv];
                    } else {
                        out[base + kv] = x[base + own];
                    }
                }
            }
        }
        out
    };
    let (h0r, whr, wor) = (cast(&relayout(&h0, true)), cast(&relayout(&wh, true)), cast(&wo));
    let seqs = [Seq { batch: 0, start: 0, len: c.t }];
    let first = States { data: &h0r[..], strides };
    // Buffers that must be overwritten.
    let nan = |n: usize| vec![R::from_f64(f64::NAN); n];
    let (mut o, mut last) = (nan(c.t * c.hv * c.v), nan(h0r.len()));
    let [n_states, n_y] = saved_sizes(&spec, &seqs);
    let (mut states, mut y) = (nan(n_states), nan(n_y));
    let save = SaveTo { states: &mut states, y: &mut y };
    forward(&spec, &inputs, &seqs, Some(first), walk, &mut o, Some((&mut last, strides)), Some(save));
    let near = |name: &str, got: &[f64], want: &[f64]| {
        let e = error(got, want);
        assert!(e < tol, "{name}: {e:e} {c:?} {walk:?}");
    };
    near("o", &back(&o), &want_o);
    near("state", &relayout(&back(&last), false), &want_s);
    let d_last = States { data: &whr[..], strides };
    let d_o = input(&wor, c.hv, c.v);
    let keys = c.t * c.hv * c.k;
    let (mut dq, mut dk, mut dp) = (nan(keys), nan(keys), nan(if c.erase { keys } else { 0 }));
    let (mut dv, mut db, mut dg, mut dh) = (nan(vr.len()), nan(br.len()), nan(gr.len()), nan(h0r.len()));
    let out = GradsOut {
        q: Some(&mut dq),
        k: Some(&mut dk),
        erase: c.erase.then_some(&mut dp),
        v: Some(&mut dv),
        beta: Some(&mut db),
        gate: (n > 0).then_some(&mut dg),
        first: Some((&mut dh, strides)),
    };
    backward(&spec, &inputs, &seqs, Saved { states: &states, y: &y }, Some(&d_o), Some(d_last), out);
    let grouped = |x: &[R]| {
        let mut out = nan(x.len() / c.hv * c.h);
        sum_groups(&spec, x, &mut out);
        back(&out)
    };
    near("dq", &grouped(&dq), &want.q);
    near("dk", &grouped(&dk), &want.k);
    near("dp", &grouped(&dp), &want.erase);
    near("dv", &back(&dv), &want.v);
    near("dbeta", &back(&db), &want.beta);
    near("dg", &back(&dg), &want.gate);
    near("dh0", &relayout(&back(&dh), false), &want.h0);
}

const GATES: [GateKind; 3] = [GateKind::None, GateKind::Scalar, GateKind::Channel];

#[test]
fn every_gate_beta_and_erase_key() {
    for gate in GATES {
        for beta_channel in [false, true] {
            for (erase, before) in [(false, false), (true, false), (true, true), (false, true)] {
                for walk in [Walk::Chunked, Walk::TokenByToken] {
                    check::<f64>(Case { gate, beta_channel, erase, before, ..BASE }, walk, 1e-11);
                }
            }
        }
    }
}

#[test]
fn lengths_around_chunk_borders() {
    for gate in GATES {
        for chunk in [16, 32, 64] {
            for t in [1, chunk - 1, chunk, chunk + 1, 3 * chunk + 7] {
                check::<f64>(Case { gate, chunk, t, ..BASE }, Walk::Chunked, 1e-11);
            }
        }
    }
}

#[test]
fn sizes_and_layouts() {
    for gate in GATES {
        for (h, hv, k, v) in [(1, 1, 16, 16), (2, 2, 1, 1), (2, 6, 17, 33), (1, 1, 64, 48), (1, 2, 100, 7)] {
            for value_first in [false, true] {
                let case = Case { gate, h, hv, k, v, value_first, t: 37, chunk: 32, ..BASE };
                check::<f64>(case, Walk::Chunked, 1e-11);
                check::<f64>(case, Walk::TokenByToken, 1e-11);
            }
        }
    }
}

#[test]
fn f32_stays_close() {
    for gate in GATES {
        for erase in [false, true] {
            let case = Case { gate, erase, t: 200, k: 64, v: 64, h: 2, strength: 0.1, ..BASE };
            check::<f32>(case, Walk::Chunked, 2e-6);
            check::<f32>(case, Walk::TokenByToken, 2e-6);
        }
    }
}

#[test]
fn strong_decays_stay_exact() {
    for gate in GATES {
        for strength in [2.0, 20.0, 60.0] {
            for before in [false, true] {
                let case = Case { gate, before, t: 130, k: 32, v: 16, strength, ..BASE };
                check::<f32>(case, Walk::Chunked, 4e-6);
            }
        }
    }
}
