//! The gate ops against finite differences and against f64, and what they refuse.

use flashlin_tensor::{DType, Device, Result, Tensor, Var};

use super::{DecayGate, DecayGateArgs, decay_gate, log_sigmoid_gate};
use crate::testing::{grad_check, gradients, randn, relative_l2, same_bits_on_any_threads};

fn normal(dims: &[usize], seed: u64) -> Tensor {
    randn(seed, dims, DType::F64)
}

#[test]
fn decay_gate_gradients_match_finite_differences() {
    for formula in [DecayGate::Softplus, DecayGate::LowerBound(-5.0)] {
        let head = |x: &[Var]| {
            let (a_log, dt_bias) = (Some(&x[1]), Some(&x[2]));
            vec![decay_gate(DecayGateArgs { x: &x[0], per_channel: false, formula, a_log, dt_bias }).unwrap()]
        };
        grad_check(&head, &[normal(&[2, 5, 3], 1), normal(&[3], 2), normal(&[3], 3)]);
        let channel = |x: &[Var]| {
            let a_log = Some(&x[1]);
            vec![
                decay_gate(DecayGateArgs { x: &x[0], per_channel: true, formula, a_log, dt_bias: None })
                    .unwrap(),
            ]
        };
        grad_check(&channel, &[normal(&[1, 300, 2, 3], 4), normal(&[2], 5)]);
    }
    let no_rate = |x: &[Var]| {
        let (formula, dt_bias) = (DecayGate::LowerBound(-1.5), Some(&x[1]));
        vec![
            decay_gate(DecayGateArgs { x: &x[0], per_channel: true, formula, a_log: None, dt_bias }).unwrap(),
        ]
    };
    grad_check(&no_rate, &[normal(&[4, 2, 3], 6), normal(&[6], 7)]);
}

#[test]
fn log_sigmoid_gate_gradients_match_finite_differences() {
    for clamp in [None, Some(-0.05)] {
        grad_check(&|x| vec![log_sigmoid_gate(&x[0], 16.0, clamp).unwrap()], &[normal(&[3, 40], 8)]);
    }
    let x = Var::constant(normal(&[1000], 9));
    let y = log_sigmoid_gate(&x, 16.0, Some(-0.05)).unwrap().tensor().to_f64_vec().unwrap();
    assert!(y.contains(&-0.05) && y.iter().all(|&g| (-0.05..0.0).contains(&g)));
}

#[test]
fn sums_over_tokens_do_not_depend_on_threads() {
    let inputs =
        [randn(1, &[3, 400, 2, 5], DType::F32), randn(2, &[2], DType::F32), randn(3, &[10], DType::F32)];
    let f = |x: &[Var]| {
        let (formula, a_log, dt_bias) = (DecayGate::Softplus, Some(&x[1]), Some(&x[2]));
        vec![decay_gate(DecayGateArgs { x: &x[0], per_channel: true, formula, a_log, dt_bias }).unwrap()]
    };
    same_bits_on_any_threads(|| gradients(&f, &inputs));
}

#[test]
fn lower_precision_follows_f64() {
    let (x, a, b) = (normal(&[2, 300, 2, 5], 10), normal(&[2], 11), normal(&[10], 12));
    let run = |dtype: DType| {
        let cast = |t: &Tensor, d| Var::leaf(t.to_dtype(d).unwrap());
        let (x, a, b) = (cast(&x, dtype), cast(&a, dtype.accumulator()), cast(&b, dtype.accumulator()));
        let formula = DecayGate::Softplus;
        let g = decay_gate(DecayGateArgs {
            x: &x,
            per_channel: true,
            formula,
            a_log: Some(&a),
            dt_bias: Some(&b),
        });
        let g = g.unwrap();
        assert_eq!(g.dtype(), dtype.accumulator());
        let s = log_sigmoid_gate(&x, 4.0, None).unwrap();
        assert_eq!(s.dtype(), dtype);
        let one = |v: &Var| Tensor::ones(v.dims(), v.dtype(), &Device::Cpu).unwrap();
        let grads = Var::backward_with(vec![(&g, one(&g)), (&s, one(&s))]).unwrap();
        let mut all = vec![g.tensor().clone(), s.tensor().clone()];
        all.extend([&x, &a, &b].map(|v| grads.get(v).unwrap().clone()));
        all.iter().map(|t| t.to_f64_vec().unwrap()).collect::<Vec<_>>()
    };
    let want = run(DType::F64);
    for (dtype, tol) in [(DType::F32, 1e-6), (DType::F16, 2e-3), (DType::BF16, 1e-2)] {
        for (got, want) in run(dtype).iter().zip(&want) {
            assert!(relative_l2(got, want) < tol, "{dtype}");
        }
    }
}

#[test]
fn refusals_name_the_argument() {
    let z = |dims: &[usize], dtype| Var::constant(Tensor::zeros(dims, dtype, &Device::Cpu).unwrap());
    let (x, a) = (z(&[2, 3], DType::F32), z(&[3], DType::F32));
    let args = DecayGateArgs {
        x: &x,
        per_channel: false,
        formula: DecayGate::Softplus,
        a_log: Some(&a),
        dt_bias: None,
    };
    assert!(decay_gate(args).is_ok());
    let says = |r: Result<Var>, word: &str| {
        let message = r.unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    };
    says(decay_gate(DecayGateArgs { a_log: None, ..args }), "`a_log` is missing");
    let wrong = z(&[2], DType::F32);
    says(decay_gate(DecayGateArgs { a_log: Some(&wrong), ..args }), "`a_log` has shape [2]");
    says(decay_gate(DecayGateArgs { dt_bias: Some(&wrong), ..args }), "`dt_bias` has shape [2]");
    says(decay_gate(DecayGateArgs { formula: DecayGate::LowerBound(0.0), ..args }), "`lower_bound` is 0");
    says(decay_gate(DecayGateArgs { x: &a, per_channel: true, ..args }), "[..., HV, K]");
    let ints = z(&[2, 3], DType::I32);
    says(decay_gate(DecayGateArgs { x: &ints, ..args }), "`x` has dtype i32");
    says(log_sigmoid_gate(&ints, 1.0, None), "`x` has dtype i32");
    says(log_sigmoid_gate(&x, 0.0, None), "`normalizer` is 0");
}
