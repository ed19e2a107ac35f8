use flashlin_tensor::{DType, Tensor, Var};

use super::*;
use crate::testing::*;

crate::module_conformance!(elementwise, super::conform::Elementwise);
crate::module_conformance!(gated, super::conform::Gated);

fn every() -> Vec<Activation> {
    Activation::names().map(|n| n.parse().unwrap()).collect()
}

#[test]
fn glu_takes_mixed_dtypes_and_slices_of_one_projection() {
    let both = randn(4, &[2, 7, 96], DType::F32);
    let parts = both.split(2, &[48, 48]).unwrap();
    let y = swiglu(&Var::constant(parts[0].clone()), &Var::constant(parts[1].clone())).unwrap();
    let want = parts[0].silu().unwrap().mul(&parts[1]).unwrap();
    close("slices", y.tensor(), &want, 1e-6);
    let half = parts[1].to_dtype(DType::BF16).unwrap();
    let g = gradients(&|v| vec![swiglu(&v[0], &v[1]).unwrap()], &[parts[0].clone(), half.clone()]);
    let y = swiglu(&Var::constant(parts[0].clone()), &Var::constant(half)).unwrap();
    assert_eq!(y.dtype(), DType::BF16);
    close("mixed", y.tensor(), &want, 1e-2);
    assert!(g.iter().all(|g| g.dtype() == DType::F32));
}

#[test]
fn softplus_is_linear_beyond_its_threshold() {
    let x = Var::constant(Tensor::from_vec(vec![-800.0f32, 0.0, 0.3, 100.0], &[4]).unwrap());
    let y = softplus(&x, 10.0, 2.0).unwrap().tensor().to_vec::<f32>().unwrap();
    assert_eq!((y[0], y[2], y[3]), (0.0, 0.3, 100.0));
    assert!((y[1] - 2f32.ln() / 10.0).abs() < 1e-7);
}

#[test]
fn far_out_everything_stays_finite() {
    for act in every() {
        let x = Tensor::from_vec(vec![-1e4f32, -90.0, 0.0, 90.0, 1e4], &[5]).unwrap();
        let y = activate(&Var::constant(x.clone()), act).unwrap();
        assert!(y.tensor().to_f64_vec().unwrap().iter().all(|v| v.is_finite()), "{act}: {y:?}");
        let g = gradients(&|v| vec![activate(&v[0], act).unwrap()], &[x]);
        assert!(g[0].to_f64_vec().unwrap().iter().all(|v| v.is_finite()), "{act}: {g:?}");
    }
}

#[test]
fn wrong_input_is_named() {
    let msg = "mish".parse::<Activation>().unwrap_err().to_string();
    assert!(msg.contains("mish") && msg.contains("sqrelu"), "{msg}");
    let x = Var::constant(randn(1, &[2, 8], DType::F32));
    let y = Var::constant(randn(1, &[2, 9], DType::F32));
    assert!(swiglu(&x, &y).unwrap_err().to_string().contains("gate"));
    assert!(softplus(&x, 0.0, 20.0).is_err() && logsigmoid(&x, 0.0).is_err());
    let empty = Var::constant(randn(1, &[0, 8], DType::F32));
    assert_eq!(swiglu(&empty, &empty).unwrap().dims(), [0, 8]);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (x, u) = (randn(5, &[70, 1000], DType::F32), randn(6, &[70, 1000], DType::F32));
    same_bits_on_any_threads(|| {
        let mut all = gradients(&|v| vec![swiglu(&v[0], &v[1]).unwrap()], &[x.clone(), u.clone()]);
        all.push(swiglu(&Var::constant(x.clone()), &Var::constant(u.clone())).unwrap().into_tensor());
        all
    });
}
