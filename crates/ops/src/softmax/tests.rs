use flashlin_tensor::{DType, Device, Tensor, Var};

use super::*;
use crate::testing::*;

#[derive(Clone)]
struct Case {
    /// (queries, keys) of each sequence
    seqs: Vec<(usize, usize)>,
    hq: usize,
    h: usize,
    k: usize,
    v: usize,
    causal: bool,
    window: Option<usize>,
    decay: bool,
}

fn case(seqs: &[(usize, usize)], heads: (usize, usize), dims: (usize, usize)) -> Case {
    Case {
        seqs: seqs.to_vec(),
        hq: heads.0,
        h: heads.1,
        k: dims.0,
        v: dims.1,
        causal: true,
        window: None,
        decay: false,
    }
}

fn cases() -> Vec<Case> {
    let long = [(70, 70), (0, 0), (1, 1), (64, 64), (65, 130), (3, 200), (5, 0), (0, 4), (9, 6)];
    let short = [(1, 90), (4, 4), (0, 7), (2, 1), (3, 0), (1, 1500)];
    let mut all = vec![
        case(&long, (2, 2), (16, 16)),
        case(&long, (4, 2), (19, 7)),
        case(&short, (2, 2), (16, 16)),
        case(&short, (6, 2), (5, 33)),
        case(&[(700, 700)], (1, 1), (8, 8)),
        case(&[], (2, 1), (8, 8)),
    ];
    let extra: Vec<Case> = all[..4]
        .iter()
        .flat_map(|c| {
            [
                Case { window: Some(1), ..c.clone() },
                Case { window: Some(50), decay: true, ..c.clone() },
                Case { causal: false, ..c.clone() },
                Case { decay: true, ..c.clone() },
            ]
        })
        .collect();
    all.extend(extra);
    all
}

impl Case {
    fn inputs(&self, d: DType) -> Vec<Tensor> {
        let (tq, tk) = self.seqs.iter().fold((0, 0), |a, s| (a.0 + s.0, a.1 + s.1));
        let g = randn(4, &[1, tk, self.hq], DType::F64).abs().unwrap().affine(-0.1, 0.0).unwrap();
        vec![
            randn(1, &[1, tq, self.hq, self.k], d),
            randn(2, &[1, tk, self.h, self.k], d),
            randn(3, &[1, tk, self.h, self.v], d),
            g.to_dtype(d).unwrap(),
        ]
    }

    fn run(&self, v: &[Var], maps: bool) -> AttentionOutput {
        let lens = |f: fn(&(usize, usize)) -> usize| {
            PackedSeqs::from_lens(&self.seqs.iter().map(f).collect::<Vec<_>>())
        };
        let (q, k) = (lens(|s| s.0), lens(|s| s.1));
        attention(&AttentionArgs {
            decay: self.decay.then(|| &v[3]),
            causal: self.causal,
            window: self.window,
            seqs: Some(&q),
            kv_seqs: Some(&k),
            maps,
            ..AttentionArgs::new(&v[0], &v[1], &v[2])
        })
        .unwrap()
    }

    /// Output and maps in f64 by the definition: scores, mask, softmax, one query at a time.
    fn expected(&self, t: &[Tensor]) -> (Vec<f64>, Vec<f64>) {
        let [q, k, v, g] = [0, 1, 2, 3].map(|i| t[i].to_f64_vec().unwrap());
        let (tq, tk) = (t[0].dim(1), t[1].dim(1));
        let (mut o, mut maps) = (vec![0.0; tq * self.hq * self.v], vec![0.0; self.hq * tq * tk]);
        let (mut q0, mut k0) = (0, 0);
        for &(nq, nk) in &self.seqs {
            for (i, h) in (0..nq).flat_map(|i| (0..self.hq).map(move |h| (i, h))) {
                let place = i as i64 + nk as i64 - nq as i64;
                let kh = h / (self.hq / self.h);
                let score = |j: usize| -> Option<f64> {
                    let away = place - j as i64;
                    if self.causal && (away < 0 || self.window.is_some_and(|w| away >= w as i64)) {
                        return None;
                    }
                    let dot: f64 = (0..self.k)
                        .map(|d| {
                            q[((q0 + i) * self.hq + h) * self.k + d]
                                * k[((k0 + j) * self.h + kh) * self.k + d]
                        })
                        .sum();
                    // With g, every token after the key up to the query decays; before it they add up the other way.
                    let between =
                        |a: i64, b: i64| -> f64 { (a..b).map(|s| g[(k0 + s as usize) * self.hq + h]).sum() };
                    let bias = match (self.decay, j as i64 <= place) {
                        (false, _) => 0.0,
                        (true, true) => between(j as i64 + 1, place + 1),
                        (true, false) => -between(place + 1, j as i64 + 1),
                    };
                    Some(dot / (self.k as f64).sqrt() + bias)
                };
                let scores: Vec<Option<f64>> = (0..nk).map(score).collect();
                let total: f64 = scores.iter().flatten().map(|s| s.exp()).sum();
                for (j, s) in scores.iter().enumerate() {
                    let Some(s) = s else { continue };
                    let p = s.exp() / total;
                    maps[(h * tq + q0 + i) * tk + k0 + j] = p;
                    for d in 0..self.v {
                        o[((q0 + i) * self.hq + h) * self.v + d] +=
                            p * v[((k0 + j) * self.h + kh) * self.v + d];
                    }
                }
            }
            (q0, k0) = (q0 + nq, k0 + nk);
        }
        (o, maps)
    }
}

#[test]
fn matches_the_definition_in_every_dtype() {
    for c in cases() {
        for d in [DType::F64, DType::F32, DType::BF16, DType::F16] {
            let t = c.inputs(d);
            let (o, maps) = c.expected(&t);
            let v: Vec<Var> = t.iter().cloned().map(Var::constant).collect();
            let out = c.run(&v, true);
            let dims = [1, t[0].dim(1), c.hq, c.v];
            close("o", out.o.tensor(), &Tensor::from_vec(o.clone(), &dims).unwrap(), tolerance(d));
            let dims = [1, c.hq, t[0].dim(1), t[1].dim(1)];
            close("maps", &out.maps.unwrap(), &Tensor::from_vec(maps, &dims).unwrap(), 1e-5);
            let v: Vec<Var> = t.iter().map(strided).map(Var::constant).collect();
            let strided = c.run(&v, false).o;
            close("strided", strided.tensor(), out.o.tensor(), 0.0);
        }
    }
}

#[test]
fn gradients_match_differences() {
    for c in cases() {
        let t = c.inputs(DType::F64);
        let n = if c.decay { 4 } else { 3 };
        let rest = t[3].clone();
        let f = |v: &[Var]| {
            let mut v = v.to_vec();
            v.push(Var::constant(rest.clone()));
            vec![c.run(&v, false).o]
        };
        grad_check(&f, &t[..n]);
    }
}

#[test]
fn low_precision_gradients_follow_f64() {
    for c in cases().into_iter().take(5) {
        for (d, tol) in [(DType::F32, 1e-5), (DType::BF16, 3e-2)] {
            let t = c.inputs(d)[..3].to_vec();
            let wide: Vec<Tensor> = t.iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
            let f = |v: &[Var]| vec![c.run(v, false).o.to_dtype(DType::F64).unwrap()];
            for (a, b) in gradients(&f, &t).iter().zip(gradients(&f, &wide)) {
                close("gradient", a, &b, tol);
            }
        }
    }
}

#[test]
fn dense_batches_are_their_rows() {
    let t = [randn(1, &[3, 40, 2, 8], DType::F64), randn(2, &[3, 40, 1, 8], DType::F64)];
    let [q, k] = &t;
    let run = |q: &Tensor, k: &Tensor| {
        let (q, k) = (Var::constant(q.clone()), Var::constant(k.clone()));
        attention(&AttentionArgs { maps: true, ..AttentionArgs::new(&q, &k, &k) }).unwrap()
    };
    let all = run(q, k);
    for b in 0..3 {
        let one = run(&q.narrow(0, b, 1).unwrap(), &k.narrow(0, b, 1).unwrap());
        close("o", &all.o.tensor().narrow(0, b, 1).unwrap(), one.o.tensor(), 0.0);
        let map = all.maps.as_ref().unwrap().narrow(0, b, 1).unwrap();
        close("maps", &map, &one.maps.unwrap(), 0.0);
    }
    let sums = all.maps.unwrap().sum(&[3], false).unwrap();
    assert!(sums.to_f64_vec().unwrap().iter().all(|s| (s - 1.0).abs() < 1e-12));
}

/// Decoding with a cache, in pieces of any size, equals one pass; with and without window; and forks are independent.
#[test]
fn a_cache_continues_what_one_pass_computes() {
    for (window, d) in
        [(None, DType::F64), (Some(5), DType::F64), (Some(1), DType::F64), (Some(9), DType::BF16)]
    {
        let (q, k, v) =
            (randn(1, &[2, 60, 4, 8], d), randn(2, &[2, 60, 2, 8], d), randn(3, &[2, 60, 2, 6], d));
        let [qv, kv, vv] = [&q, &k, &v].map(|t| Var::constant(t.clone()));
        let whole = attention(&AttentionArgs { window, ..AttentionArgs::new(&qv, &kv, &vv) }).unwrap().o;
        let mut cache = KvCache::new(2, 2, 8, 6, d, &Device::Cpu).unwrap();
        let mut outs = Vec::new();
        let mut at = 0;
        for n in [7, 1, 1, 30, 0, 2, 1, 1, 1, 1, 1, 5, 1, 8] {
            let part = |t: &Tensor| t.narrow(1, at, n).unwrap();
            cache.append(&part(&k), &part(&v), None, window).unwrap();
            let fork = cache.clone();
            let [qv, kv, vv] = [part(&q), cache.k.clone(), cache.v.clone()].map(Var::constant);
            let args =
                AttentionArgs { window, kv_lens: Some(&cache.lens), ..AttentionArgs::new(&qv, &kv, &vv) };
            outs.push(attention(&args).unwrap().o.into_tensor());
            drop((kv, vv));
            let mut other = fork.clone();
            other.append(&part(&k), &part(&v), None, window).unwrap();
            close("the fork's source", &fork.k, &cache.k, 0.0);
            at += n;
        }
        let parts = Tensor::cat(&outs.iter().collect::<Vec<_>>(), 1).unwrap();
        close("o", &parts, whole.tensor(), if d == DType::F64 { 1e-13 } else { 1e-2 });
        if let Some(w) = window {
            assert!(cache.k.dim(1) <= 4 * (w + 8).max(16), "{}", cache.k.dim(1));
        }
    }
}

#[test]
fn cache_rows_have_lengths_of_their_own() {
    let seqs = PackedSeqs::from_lens(&[3, 0, 70]);
    let (k, v) = (randn(2, &[1, 73, 1, 8], DType::F32), randn(3, &[1, 73, 1, 8], DType::F32));
    let mut cache = KvCache::new(3, 1, 8, 8, DType::F32, &Device::Cpu).unwrap();
    cache.append(&k, &v, Some(&seqs), None).unwrap();
    cache.append(&k.narrow(1, 0, 73).unwrap(), &v, Some(&seqs), None).unwrap();
    assert_eq!(cache.lens, [6, 0, 140]);
    let q = Var::constant(randn(1, &[3, 1, 2, 8], DType::F32));
    let [kv, vv] = [&cache.k, &cache.v].map(|t| Var::constant(t.clone()));
    let out = attention(&AttentionArgs { kv_lens: Some(&cache.lens), ..AttentionArgs::new(&q, &kv, &vv) })
        .unwrap()
        .o;
    for (row, len) in [6, 0, 140].into_iter().enumerate() {
        let cut = |t: &Tensor| Var::constant(t.narrow(0, row, 1).unwrap().narrow(1, 0, len).unwrap());
        let q1 = Var::constant(q.tensor().narrow(0, row, 1).unwrap());
        let want = attention(&AttentionArgs::new(&q1, &cut(&cache.k), &cut(&cache.v))).unwrap().o;
        close("row", &out.tensor().narrow(0, row, 1).unwrap(), want.tensor(), 0.0);
    }
}

#[test]
fn gradients_reach_a_padded_cache() {
    let lens = [70, 3];
    let f = |v: &[Var]| {
        let args = AttentionArgs { kv_lens: Some(&lens), ..AttentionArgs::new(&v[0], &v[1], &v[2]) };
        vec![attention(&args).unwrap().o]
    };
    let kv = |s| randn(s, &[2, 80, 1, 4], DType::F64);
    grad_check(&f, &[randn(1, &[2, 6, 1, 4], DType::F64), kv(2), kv(3)]);
    grad_check(&f, &[randn(1, &[2, 2, 1, 4], DType::F64), kv(2), kv(3)]);
}

#[test]
fn large_scores_and_strong_decays_stay_finite() {
    let q = randn(1, &[1, 200, 1, 8], DType::F32).affine(300.0, 0.0).unwrap();
    let g = Tensor::full(-20.0, &[1, 200, 1], DType::F32, &Device::Cpu).unwrap();
    let f = |v: &[Var]| {
        let args = AttentionArgs { decay: Some(&v[2]), ..AttentionArgs::new(&v[0], &v[1], &v[1]) };
        vec![attention(&args).unwrap().o]
    };
    let grads = gradients(&f, &[q, randn(2, &[1, 200, 1, 8], DType::F32), g]);
    assert!(grads.iter().all(|g| g.to_f64_vec().unwrap().iter().all(|x| x.is_finite())));
}

#[test]
fn a_nan_is_not_hidden() {
    for queries in [1, 70] {
        let mut k = randn(2, &[1, 70, 1, 8], DType::F32);
        k.as_mut_slice::<f32>().unwrap()[0] = f32::NAN;
        let q = Var::constant(randn(1, &[1, queries, 1, 8], DType::F32));
        let k = Var::constant(k);
        let o = attention(&AttentionArgs::new(&q, &k, &k)).unwrap().o;
        assert!(o.tensor().to_vec::<f32>().unwrap().iter().rev().take(8).all(|x| x.is_nan()));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let t = |d: &[usize]| Var::constant(randn(1, d, DType::F32));
    let (q, k) = (t(&[2, 3, 4, 8]), t(&[2, 3, 2, 8]));
    let bad = |args: AttentionArgs, word: &str| {
        let e = attention(&args).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    };
    let ok = AttentionArgs::new(&q, &k, &k);
    bad(AttentionArgs { k: &t(&[2, 3, 3, 8]), ..ok }, "divisor of 4");
    bad(AttentionArgs { v: &t(&[2, 4, 2, 8]), ..ok }, "`v`");
    bad(AttentionArgs { window: Some(0), ..ok }, "window");
    bad(AttentionArgs { window: Some(2), causal: false, ..ok }, "causal");
    bad(AttentionArgs { kv_lens: Some(&[3, 4]), ..ok }, "4 keys in row 1");
    bad(AttentionArgs { kv_lens: Some(&[3]), ..ok }, "kv_lens");
    bad(AttentionArgs { decay: Some(&k), ..ok }, "decay");
    bad(AttentionArgs { scale: Some(f64::NAN), ..ok }, "scale");
    let wide = t(&[1, 1, 1, 257]);
    bad(AttentionArgs::new(&wide, &wide, &wide), "256");
    let seqs = PackedSeqs::from_lens(&[3, 3]);
    bad(AttentionArgs { seqs: Some(&seqs), ..ok }, "batch of 1");
}

#[test]
fn bits_do_not_depend_on_threads() {
    let c = Case { decay: true, ..case(&[(700, 700), (1, 1), (90, 200)], (4, 2), (16, 16)) };
    let t = c.inputs(DType::F32);
    same_bits_on_any_threads(|| {
        let mut all = gradients(&|v| vec![c.run(v, false).o], &t);
        let v: Vec<Var> = t.iter().cloned().map(Var::constant).collect();
        all.push(c.run(&v, false).o.into_tensor());
        all
    });
}
