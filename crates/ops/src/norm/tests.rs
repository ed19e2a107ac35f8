use flashlin_tensor::{DType, Tensor, Var};

use super::*;
use crate::testing::*;

crate::module_conformance!(suite, super::conform::Conformance);

/// Rows of 39 numbers normalised by the reference.
fn by_hand(kind: NormKind, groups: usize, eps: f64, x: &[f64]) -> Vec<f64> {
    let spec = reference::Spec { kind, groups, eps, gate: None, width: 39 };
    let inputs = reference::Inputs { x, weight: None, bias: None, residual: None, gate: None };
    reference::forward(&spec, &inputs).0
}

/// Inputs x, weight, bias, residual, gate.
fn inputs(d: DType) -> Vec<Tensor> {
    let dims = [2, 5, 39];
    vec![randn(1, &dims, d), randn(2, &[39], d), randn(3, &[39], d), randn(4, &dims, d), randn(5, &dims, d)]
}

#[test]
fn mixed_dtypes_keep_the_dtype_of_x_and_of_the_stream() {
    let t = inputs(DType::F32);
    let x = Var::leaf(t[0].to_dtype(DType::BF16).unwrap());
    let (w, r) = (Var::leaf(t[1].clone()), Var::leaf(t[3].clone()));
    let args = NormArgs { weight: Some(&w), residual: Some(&r), prenorm: true, ..NormArgs::new(&x) };
    let out = norm(&args).unwrap();
    assert_eq!((out.y.dtype(), out.residual.as_ref().unwrap().dtype()), (DType::BF16, DType::F32));
    let grads = out.y.to_dtype(DType::F32).unwrap().sum_all().unwrap().backward().unwrap();
    assert!([&x, &w, &r].iter().all(|v| grads.get(v).unwrap().dtype() == DType::F32));
    close("one gradient for both", grads.get(&x).unwrap(), grads.get(&r).unwrap(), 1e-2);
}

#[test]
fn the_residual_stream_can_start_in_f32() {
    let x = Var::leaf(randn(1, &[3, 16], DType::BF16));
    let out = norm(&NormArgs { prenorm: true, residual_in_fp32: true, ..NormArgs::new(&x) }).unwrap();
    assert_eq!((out.y.dtype(), out.residual.unwrap().dtype()), (DType::BF16, DType::F32));
    let plain = norm(&NormArgs { prenorm: true, ..NormArgs::new(&x) }).unwrap();
    assert_eq!(plain.residual.unwrap().dtype(), DType::BF16);
}

#[test]
fn named_forms_are_the_general_one() {
    let t = inputs(DType::F64);
    let v: Vec<Var> = t.iter().cloned().map(Var::constant).collect();
    let x = t[0].to_f64_vec().unwrap();
    let rows =
        |kind, groups, eps| Tensor::from_vec::<f64>(by_hand(kind, groups, eps, &x), &[2, 5, 39]).unwrap();
    let g = t[4].silu().unwrap();
    close("rms", rms_norm(&v[0], None, 1e-5).unwrap().tensor(), &rows(NormKind::Rms, 1, 1e-5), 1e-13);
    close(
        "layer",
        layer_norm(&v[0], None, None, 1e-5).unwrap().tensor(),
        &rows(NormKind::Layer, 1, 1e-5),
        1e-13,
    );
    close("l2", l2_norm(&v[0], 1e-6).unwrap().tensor(), &rows(NormKind::L2, 1, 1e-6), 1e-13);
    let groups = group_norm(&v[0], None, None, 13, true, 1e-5).unwrap();
    close("group", groups.tensor(), &rows(NormKind::Rms, 13, 1e-5), 1e-13);
    let gated = rms_norm_gated(&v[0], &v[4], None, Activation::Silu, 1e-5).unwrap();
    close("gated", gated.tensor(), &rows(NormKind::Rms, 1, 1e-5).mul(&g).unwrap(), 1e-13);
    let mamba = rms_norm_gated_grouped(&v[0], Some(&v[4]), None, Some(13), true, 1e-5).unwrap();
    close("mamba", mamba.tensor(), &rows(NormKind::Rms, 3, 1e-5).mul(&g).unwrap(), 1e-13);
    let early = rms_norm_gated_grouped(&v[0], Some(&v[4]), None, None, false, 1e-5).unwrap();
    let want = rms_norm(&Var::constant(t[0].mul(&g).unwrap()), None, 1e-5).unwrap();
    close("gate first", early.tensor(), want.tensor(), 1e-13);
}

#[test]
fn empty_rows_zeros_and_wrong_shapes() {
    let x = Var::leaf(randn(1, &[2, 0, 8], DType::F32));
    let w = Var::leaf(randn(1, &[8], DType::F32));
    let y = rms_norm(&x, Some(&w), 1e-5).unwrap();
    assert_eq!(y.dims(), [2, 0, 8]);
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&w).unwrap().to_f64_vec().unwrap(), [0.0; 8]);
    let zero = Var::constant(Tensor::zeros(&[1, 8], DType::F32, &flashlin_tensor::Device::Cpu).unwrap());
    assert_eq!(l2_norm(&zero, 1e-6).unwrap().tensor().to_f64_vec().unwrap(), [0.0; 8]);
    let short = Var::constant(randn(1, &[7], DType::F32));
    assert!(rms_norm(&zero, Some(&short), 1e-5).unwrap_err().to_string().contains("weight"));
    assert!(group_norm(&zero, None, None, 3, true, 1e-5).unwrap_err().to_string().contains("groups"));
    let e = rms_norm_gated(&zero, &zero, None, Activation::Relu, 1e-5).unwrap_err().to_string();
    assert!(e.contains("relu") && e.contains("sigmoid"), "{e}");
}
