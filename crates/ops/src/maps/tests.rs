//! The feature maps in the conformance suite, and the kernels that the polynomial ones stand for.

use flashlin_tensor::{DType, Device, Tensor, Var};

use super::*;
use crate::testing::randn;

crate::module_conformance!(suite, super::conform::Conformance);

fn dot(a: &Var, b: &Var) -> f64 {
    a.mul(b).unwrap().sum_all().unwrap().tensor().to_scalar().unwrap()
}

#[test]
fn polynomial_maps_give_their_kernels() {
    for d in [1, 2, 7, 16] {
        let of = |seed| Var::constant(randn(seed, &[d], DType::F64));
        let (q, k) = (of(1), of(2));
        let s = dot(&q, &k) / (d as f64).sqrt();
        let based = dot(&taylor(&q).unwrap(), &taylor(&k).unwrap());
        assert!((based - (1.0 + s + s * s / 2.0)).abs() < 1e-12, "{based} {s}");
        let squared = dot(&rebased(&q).unwrap(), &rebased(&k).unwrap());
        assert!((squared - s * s).abs() < 1e-12, "{squared} {s}");
    }
}

#[test]
fn large_numbers_stay_finite_and_integers_are_refused() {
    let x = Var::constant(Tensor::from_vec(vec![1e4f32, -1e4, 0.0], &[3]).unwrap());
    assert_eq!(softmax(&x).unwrap().tensor().to_f64_vec().unwrap(), [1.0, 0.0, 0.0]);
    let ints = Var::constant(Tensor::zeros(&[3], DType::I32, &Device::Cpu).unwrap());
    assert!(softmax(&ints).unwrap_err().to_string().contains("i32"));
    let none = Var::constant(Tensor::zeros(&[2, 0], DType::F32, &Device::Cpu).unwrap());
    assert!(taylor(&none).is_err());
}
