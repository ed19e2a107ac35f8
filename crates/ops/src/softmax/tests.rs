use flashlin_tensor::{DType, Device, Tensor, Var};

use super::*;
use crate::conformance::{ModuleInput, ModuleOp};
use crate::testing::*;

crate::module_conformance!(suite, super::conform::Conformance);
crate::module_conformance!(composed_suite, super::Composed);

/// Attention as a GPU composes it, on the CPU.
struct Composed;

impl ModuleOp for Composed {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cases(&self) -> Vec<String> {
        conform::Conformance.cases()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        conform::Conformance.inputs(case)
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![conform::variants()[case].run(x, false, composed)?.o])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        conform::Conformance.reference(case, x)
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        conform::Conformance.reference_backward(case, x, d_out)
    }
}

fn composed(args: &AttentionArgs) -> Result<AttentionOutput> {
    let (plan, inputs) = check(args)?;
    run_composed(args, plan, inputs)
}

#[test]
fn attention_maps_are_the_probabilities() {
    for (case, v) in conform::variants().iter().enumerate() {
        let inputs = conform::Conformance.inputs(case);
        let t: Vec<Tensor> =
            inputs.iter().enumerate().map(|(i, x)| randn(i as u64, &x.dims, DType::F64)).collect();
        let x: Vec<Vec<f64>> = t.iter().map(|t| t.to_f64_vec().unwrap()).collect();
        let vars: Vec<Var> = t.into_iter().map(Var::constant).collect();
        let want = reference::forward(&v.arrays(&x)).1;
        for run in [attention, composed] {
            let maps = v.run(&vars, true, run).unwrap().maps.unwrap().to_f64_vec().unwrap();
            let d = relative_l2(&maps, &want);
            assert!(d < crate::conformance::tolerance(DType::F64), "{v:?}: {d}");
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
        Ok(vec![attention(&args)?.o])
    };
    for queries in [6, 2] {
        let dims = [[2, queries, 1, 4], [2, 80, 1, 4], [2, 80, 1, 4]];
        let x: Vec<Vec<f64>> =
            (1u64..).zip(&dims).map(|(s, d)| randn(s, d, DType::F64).to_f64_vec().unwrap()).collect();
        let inputs: Vec<(&str, &[usize], &[f64])> = ["q", "k", "v"]
            .into_iter()
            .zip(dims.iter().zip(&x))
            .map(|(n, (d, x))| (n, &d[..], &x[..]))
            .collect();
        crate::conformance::grad_check("cache", &inputs, f).unwrap().assert();
    }
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
    let t = [randn(1, &[1, 700, 4, 16], DType::F32), randn(2, &[1, 700, 2, 16], DType::F32)];
    same_bits_on_any_threads(|| {
        let f = |v: &[Var]| vec![attention(&AttentionArgs::new(&v[0], &v[1], &v[1])).unwrap().o];
        let mut all = gradients(&f, &t);
        let v: Vec<Var> = t.iter().cloned().map(Var::constant).collect();
        all.push(f(&v)[0].tensor().clone());
        all
    });
}
