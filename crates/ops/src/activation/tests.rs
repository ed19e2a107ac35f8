use flashlin_tensor::{DType, Tensor, Var};

use super::*;
use crate::testing::*;

/// The formulas again, written for f64 without sharing code.
fn by_hand(act: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match act {
        Activation::Relu => x.max(0.0),
        Activation::Sigmoid => sigmoid(x),
        Activation::LogSigmoid => -(1.0 + (-x).exp()).ln(),
        Activation::Silu => x * sigmoid(x),
        Activation::SqRelu => x.max(0.0).powi(2),
        Activation::Gelu => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        // Phi by the trapezoidal rule.
        Activation::GeluErf => {
            let (n, a) = (20_000, -12.0f64.max(-12.0));
            let h = (x - a) / n as f64;
            let pdf = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let inner: f64 = (1..n).map(|i| pdf(a + i as f64 * h)).sum();
            x * h * (inner + 0.5 * (pdf(a) + pdf(x)))
        }
    }
}

fn every() -> Vec<Activation> {
    Activation::names().map(|n| n.parse().unwrap()).collect()
}

#[test]
fn values_match_the_formulas_in_every_dtype_and_layout() {
    for act in every() {
        for d in FLOATS {
            let x = randn(1, &[3, 5, 40], *d);
            let want = x.to_f64_vec().unwrap().into_iter().map(|x| by_hand(act, x)).collect();
            let want = Tensor::from_vec::<f64>(want, x.dims()).unwrap();
            let tol = if act == Activation::GeluErf { 1e-6 } else { 0.0 };
            for x in [
                x.clone(),
                strided(&x),
                x.transpose(0, 2).unwrap().contiguous().unwrap().transpose(0, 2).unwrap(),
            ] {
                let y = activate(&Var::constant(x), act).unwrap();
                assert_eq!(y.dtype(), *d);
                close(&act.to_string(), y.tensor(), &want, tolerance(*d).max(tol));
            }
        }
    }
}

#[test]
fn gradients_match_differences() {
    let (x, u) = (randn(2, &[4, 30], DType::F64), randn(3, &[4, 30], DType::F64));
    for act in every() {
        grad_check(&|v| vec![activate(&v[0], act).unwrap()], &[strided(&x)]);
        grad_check(&|v| vec![glu(&v[0], &v[1], act).unwrap()], &[x.clone(), strided(&u)]);
    }
    grad_check(&|v| vec![logsigmoid(&v[0], 16.0).unwrap()], std::slice::from_ref(&x));
    for (beta, threshold) in [(1.0, 20.0), (2.5, 1.0), (0.3, 20.0)] {
        grad_check(&|v| vec![softplus(&v[0], beta, threshold).unwrap()], std::slice::from_ref(&x));
    }
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
