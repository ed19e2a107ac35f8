use flashlin_tensor::{DType, Tensor, Var};

use super::*;
use crate::{PackedSeqs, testing::*};

crate::module_conformance!(plain, super::conform::Plain);
crate::module_conformance!(linear, super::conform::Linear);
crate::module_conformance!(divergence, super::conform::Divergence);

const N: usize = 7;
const V: usize = 37;

fn labels(o: &LossOptions) -> Vec<i64> {
    vec![3, o.ignore_index, 0, 36, 12, o.ignore_index, 12]
}

/// Several blocks of tokens (1024 each for this vocabulary), all dtypes, with the l2 warp.
#[test]
fn linear_and_plain_agree() {
    let (n, v, h) = (2100, 48, 16);
    let y: Vec<i64> = (0..n as i64).map(|i| if i % 9 == 4 { -100 } else { i * 7 % v as i64 }).collect();
    let y = Tensor::from_vec(y, &[n]).unwrap();
    for (d, tol) in [(DType::F64, 1e-12), (DType::F32, 2e-5), (DType::BF16, 2e-2), (DType::F16, 4e-3)] {
        let t = [randn(1, &[n, h], d), randn(2, &[v, h], d), randn(3, &[v], d)];
        for o in [
            LossOptions { label_smoothing: 0.1, l2_warp: Some(1e-2), ..LossOptions::default() },
            LossOptions { reduction: Reduction::Sum, logit_softcapping: Some(5.0), ..LossOptions::default() },
        ] {
            let fused =
                |v: &[Var]| vec![linear_cross_entropy(&v[0], &v[1], Some(&v[2]), &y, &o).unwrap().loss];
            let apart = |v: &[Var]| {
                let logits = v[0].linear(&v[1]).unwrap().add(&v[2]).unwrap();
                vec![cross_entropy(&logits, &y, &o).unwrap().loss]
            };
            let vars: Vec<Var> = t.iter().cloned().map(Var::constant).collect();
            close("loss", fused(&vars)[0].tensor(), apart(&vars)[0].tensor(), tol);
            for (a, b) in gradients(&fused, &t).iter().zip(gradients(&apart, &t)) {
                close("gradient", a, &b, tol);
            }
        }
    }
}

#[test]
fn the_l2_warp_pulls_on_the_largest_logit_only() {
    let x = randn(1, &[N, V], DType::F64);
    let o = LossOptions::default();
    let y = Tensor::from_vec(labels(&o), &[N]).unwrap();
    let with = |o: LossOptions| {
        gradients(
            &|v| vec![cross_entropy(&v[0], &y, &o).unwrap().loss.affine(3.0, 0.0).unwrap()],
            std::slice::from_ref(&x),
        )
    };
    let (plain, warped) = (with(o), with(LossOptions { l2_warp: Some(1e-4), ..o }));
    let up = randn(1000, &[], DType::F64).to_scalar().unwrap() * 3.0;
    let diff = warped[0].sub(&plain[0]).unwrap().to_f64_vec().unwrap();
    for (row, diff) in x.to_f64_vec().unwrap().chunks(V).zip(diff.chunks(V)) {
        let max = row.iter().copied().fold(f64::MIN, f64::max);
        for (&x, &d) in row.iter().zip(diff) {
            let want = if x == max { up * 1e-4 * max / N as f64 } else { 0.0 };
            assert!((d - want).abs() < 1e-15, "{d} {want}");
        }
    }
}

#[test]
fn nothing_to_count_costs_nothing() {
    let x = Var::leaf(randn(1, &[3, V], DType::F32));
    let y = Tensor::from_vec(vec![-100i64; 3], &[3]).unwrap();
    let out = cross_entropy(&x, &y, &LossOptions::default()).unwrap();
    assert_eq!((out.count, out.loss.tensor().to_scalar().unwrap()), (0, 0.0));
    assert_eq!(out.loss.backward().unwrap().get(&x).unwrap().sum_squares().unwrap(), 0.0);
    let (h, w) = (Var::leaf(randn(1, &[0, 4], DType::F32)), Var::leaf(randn(1, &[V, 4], DType::F32)));
    let none = Tensor::from_vec(Vec::<i64>::new(), &[0]).unwrap();
    let out = linear_cross_entropy(&h, &w, None, &none, &LossOptions::default()).unwrap();
    assert_eq!(out.loss.backward().unwrap().get(&w).unwrap().sum_squares().unwrap(), 0.0);
}

#[test]
fn large_logits_stay_finite() {
    let x = Tensor::from_vec(vec![1e4f32, -1e4, 0.0, 88.0], &[1, 4]).unwrap();
    let y = Tensor::from_vec(vec![1i64], &[1]).unwrap();
    let loss = cross_entropy(&Var::constant(x.clone()), &y, &LossOptions::default()).unwrap().loss;
    assert_eq!(loss.tensor().to_scalar().unwrap(), 2e4);
    let capped = LossOptions { logit_softcapping: Some(30.0), ..LossOptions::default() };
    let g = gradients(&|v| vec![cross_entropy(&v[0], &y, &capped).unwrap().loss], &[x]);
    assert!(g[0].to_f64_vec().unwrap().iter().all(|g| g.is_finite()));
}

#[test]
fn labels_shift_within_documents() {
    let l = Tensor::from_vec((0i64..8).collect(), &[1, 8]).unwrap();
    let seqs = PackedSeqs::from_lens(&[3, 0, 1, 4]);
    let got = shift_labels(&l, Some(&seqs)).unwrap().to_vec::<i64>().unwrap();
    assert_eq!(got, [1, 2, -100, -100, 5, 6, 7, -100]);
    let got = shift_labels(&l.reshape(&[2, 4]).unwrap(), None).unwrap().to_vec::<i64>().unwrap();
    assert_eq!(got, [1, 2, 3, -100, 5, 6, 7, -100]);
    assert!(shift_labels(&l.reshape(&[8]).unwrap(), None).is_err());
}

#[test]
fn wrong_arguments_are_named() {
    let x = Var::constant(randn(1, &[2, 4], DType::F32));
    let y = |v: Vec<i64>| Tensor::from_vec(v, &[2]).unwrap();
    let d = LossOptions::default();
    let err = |o: LossOptions, y: Tensor| cross_entropy(&x, &y, &o).unwrap_err().to_string();
    assert!(err(d, y(vec![0, 4])).contains("4 at token 1"));
    assert!(err(d, y(vec![-1, 0])).contains("-1 at token 0"));
    assert!(err(LossOptions { label_smoothing: 1.5, ..d }, y(vec![0, 0])).contains("label_smoothing"));
    assert!(err(LossOptions { logit_softcapping: Some(0.0), ..d }, y(vec![0, 0])).contains("softcapping"));
    let none = LossOptions { reduction: Reduction::None, ..d };
    assert!(err(LossOptions { l2_warp: Some(1.0), ..none }, y(vec![0, 0])).contains("l2_warp"));
    let w = Var::constant(randn(1, &[5, 4], DType::F32));
    let e = linear_cross_entropy(&x, &w, None, &y(vec![0, 0]), &none).unwrap_err().to_string();
    assert!(e.contains("none"), "{e}");
    let e = linear_cross_entropy(&x, &w.to_dtype(DType::BF16).unwrap(), None, &y(vec![0, 0]), &d);
    assert!(e.unwrap_err().to_string().contains("weight"));
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (n, v, h) = (1500, 300, 40);
    let y = Tensor::from_vec((0..n as i64).map(|i| i * 31 % v as i64).collect(), &[n]).unwrap();
    let t = [randn(1, &[n, h], DType::F32), randn(2, &[v, h], DType::F32), randn(3, &[v], DType::F32)];
    let o = LossOptions::default();
    same_bits_on_any_threads(|| {
        gradients(&|v| vec![linear_cross_entropy(&v[0], &v[1], Some(&v[2]), &y, &o).unwrap().loss], &t)
    });
}
