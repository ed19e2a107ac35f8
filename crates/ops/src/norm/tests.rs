use flashlin_tensor::{DType, Tensor, Var};

use super::*;
use crate::testing::*;

/// One row in f64, straight from the definition.
fn by_hand(kind: NormKind, groups: usize, eps: f64, x: &[f64]) -> Vec<f64> {
    let size = x.len() / groups;
    let group = |u: &[f64]| -> Vec<f64> {
        let n = u.len() as f64;
        let mean = if kind == NormKind::Layer { u.iter().sum::<f64>() / n } else { 0.0 };
        let squares: f64 = u.iter().map(|x| (x - mean).powi(2)).sum();
        let root = (if kind == NormKind::L2 { squares } else { squares / n } + eps).sqrt();
        u.iter().map(|x| (x - mean) / root).collect()
    };
    x.chunks(size).flat_map(group).collect()
}

struct Case {
    kind: NormKind,
    groups: usize,
    gate: Option<(Activation, bool)>,
    affine: bool,
    residual: bool,
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for kind in [NormKind::Rms, NormKind::Layer, NormKind::L2] {
        for gate in [
            None,
            Some((Activation::Silu, false)),
            Some((Activation::Sigmoid, false)),
            Some((Activation::Silu, true)),
        ] {
            for (groups, affine, residual) in
                [(1, true, false), (3, true, true), (1, false, true), (3, false, false)]
            {
                all.push(Case { kind, groups, gate, affine, residual });
            }
        }
    }
    all
}

/// Inputs x, weight, bias, residual, gate; D = 39 covers a tail in the lanes.
fn inputs(d: DType) -> Vec<Tensor> {
    let dims = [2, 5, 39];
    vec![randn(1, &dims, d), randn(2, &[39], d), randn(3, &[39], d), randn(4, &dims, d), randn(5, &dims, d)]
}

fn run(c: &Case, v: &[Var]) -> Vec<Var> {
    let gate = c.gate.map(|(activation, before_norm)| Gate { value: &v[4], activation, before_norm });
    let out = norm(&NormArgs {
        weight: c.affine.then_some(&v[1]),
        bias: c.affine.then_some(&v[2]),
        residual: c.residual.then_some(&v[3]),
        gate,
        kind: c.kind,
        groups: c.groups,
        eps: 1e-3,
        prenorm: c.residual,
        ..NormArgs::new(&v[0])
    })
    .unwrap();
    [Some(out.y), out.residual].into_iter().flatten().collect()
}

fn expected(c: &Case, t: &[Tensor]) -> Tensor {
    let act = |g: f64| match c.gate {
        None => 1.0,
        Some((Activation::Sigmoid, _)) => 1.0 / (1.0 + (-g).exp()),
        Some(_) => g / (1.0 + (-g).exp()),
    };
    let before = c.gate.is_some_and(|g| g.1);
    let [x, w, b, r, g] = [0, 1, 2, 3, 4].map(|i| t[i].to_f64_vec().unwrap());
    let mut out = Vec::new();
    for row in 0..x.len() / 39 {
        let at = |i: usize| row * 39 + i;
        let u: Vec<f64> = (0..39)
            .map(|i| {
                let u = x[at(i)] + if c.residual { r[at(i)] } else { 0.0 };
                if before { u * act(g[at(i)]) } else { u }
            })
            .collect();
        for (i, xhat) in by_hand(c.kind, c.groups, 1e-3, &u).into_iter().enumerate() {
            let y = if c.affine { xhat * w[i] + b[i] } else { xhat };
            out.push(if before { y } else { y * act(g[at(i)]) });
        }
    }
    Tensor::from_vec(out, t[0].dims()).unwrap()
}

#[test]
fn every_form_matches_its_definition_in_every_dtype() {
    for c in cases() {
        for d in [DType::F64, DType::F32, DType::BF16, DType::F16] {
            let t = inputs(d);
            let want = expected(&c, &t);
            let v: Vec<Var> = t.iter().cloned().map(Var::constant).collect();
            close("norm", run(&c, &v)[0].tensor(), &want, tolerance(d));
            let v: Vec<Var> = t.iter().map(strided).map(Var::constant).collect();
            close("strided", run(&c, &v)[0].tensor(), &want, tolerance(d));
        }
    }
}

#[test]
fn gradients_match_differences() {
    for c in cases() {
        grad_check(&|v| run(&c, v), &inputs(DType::F64));
    }
    // Without prenorm, with only some inputs tracked.
    let t = inputs(DType::F64);
    let r = Var::constant(t[3].clone());
    let f = |v: &[Var]| {
        vec![norm(&NormArgs { residual: Some(&r), weight: Some(&v[1]), ..NormArgs::new(&v[0]) }).unwrap().y]
    };
    grad_check(&f, &t[..2]);
    grad_check(
        &|v| vec![rms_norm_linear(&v[0], Some(&v[1]), &v[2], None, 1e-5).unwrap()],
        &[t[0].clone(), t[1].clone(), randn(9, &[7, 39], DType::F64)],
    );
}

#[test]
fn low_precision_gradients_follow_f64() {
    for c in cases() {
        for (d, tol) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
            let t = inputs(d);
            let wide: Vec<Tensor> = t.iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
            let f = |v: &[Var]| run(&c, v).into_iter().map(|v| v.to_dtype(DType::F64).unwrap()).collect();
            for (a, b) in gradients(&f, &t).iter().zip(gradients(&f, &wide)) {
                close("gradient", a, &b, tol);
            }
        }
    }
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
    let rows = |kind, groups, eps| {
        let y = x.chunks(39).flat_map(|r| by_hand(kind, groups, eps, r)).collect();
        Tensor::from_vec::<f64>(y, &[2, 5, 39]).unwrap()
    };
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

#[test]
fn bits_do_not_depend_on_threads() {
    let t = [randn(1, &[700, 96], DType::F32), randn(2, &[96], DType::F32)];
    same_bits_on_any_threads(|| gradients(&|v| vec![rms_norm(&v[0], Some(&v[1]), 1e-5).unwrap()], &t));
}
