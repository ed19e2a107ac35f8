//! Helpers of the module tests: random tensors, comparison, gradients against finite differences.

use flashlin_tensor::{DType, Device, Philox, Tensor, Var, no_grad};

pub(crate) use crate::conformance::relative_l2;

/// Standard normal numbers.
pub(crate) fn randn(seed: u64, dims: &[usize], dtype: DType) -> Tensor {
    Philox::new(seed, 7).randn(0.0, 1.0, dims, dtype, &Device::Cpu).unwrap()
}

/// The same numbers behind a view whose rows lie apart, as a slice of a fused projection.
pub(crate) fn strided(t: &Tensor) -> Tensor {
    let last = t.rank() - 1;
    let pad = randn(99, t.dims(), t.dtype());
    let wide = Tensor::cat(&[&pad, t, &pad], last).unwrap();
    wide.narrow(last, t.dim(last), t.dim(last)).unwrap()
}

/// Panics unless two tensors agree to `tol` (relative L2).
#[track_caller]
pub(crate) fn close(what: &str, a: &Tensor, b: &Tensor, tol: f64) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let d = relative_l2(&a.to_f64_vec().unwrap(), &b.to_f64_vec().unwrap());
    assert!(d <= tol, "{what}: relative L2 {d:.3e} > {tol:.0e}");
}

/// Values to the accuracy of a dtype.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 2e-6,
        DType::F16 => 2e-3,
        _ => 1e-2,
    }
}

/// Random weights of the outputs; the scalar that gradients are taken of is the weighted sum.
fn weights(outputs: &[Var]) -> Vec<Tensor> {
    let w = |(i, v): (usize, &Var)| randn(1000 + i as u64, v.dims(), v.dtype());
    outputs.iter().enumerate().map(w).collect()
}

/// Gradients of the weighted sum of the outputs of `f`, one for each input.
pub(crate) fn gradients(f: &dyn Fn(&[Var]) -> Vec<Var>, inputs: &[Tensor]) -> Vec<Tensor> {
    let vars: Vec<Var> = inputs.iter().cloned().map(Var::leaf).collect();
    let outputs = f(&vars);
    let grads = Var::backward_with(outputs.iter().zip(weights(&outputs)).collect()).unwrap();
    let zero = |t: &Tensor| Tensor::zeros(t.dims(), t.dtype().accumulator(), &Device::Cpu).unwrap();
    vars.iter().map(|v| grads.get(v).cloned().unwrap_or_else(|| zero(v.tensor()))).collect()
}

/// Compares the gradients of `f` at f64 inputs with central differences (at most 48 elements an input).
#[track_caller]
pub(crate) fn grad_check(f: &dyn Fn(&[Var]) -> Vec<Var>, inputs: &[Tensor]) {
    let analytic = gradients(f, inputs);
    let loss = |inputs: &[Tensor]| -> f64 {
        let vars: Vec<Var> = inputs.iter().cloned().map(Var::constant).collect();
        let outputs = no_grad(|| f(&vars));
        let dot =
            |(o, w): (&Var, Tensor)| o.tensor().mul(&w).unwrap().sum_all().unwrap().to_scalar().unwrap();
        outputs.iter().zip(weights(&outputs)).map(dot).sum()
    };
    for (i, input) in inputs.iter().enumerate() {
        let values = input.to_vec::<f64>().unwrap();
        let grad = analytic[i].to_f64_vec().unwrap();
        let picked: Vec<usize> = (0..values.len()).step_by(values.len().div_ceil(48).max(1)).collect();
        let shifted = |j: usize, h: f64| {
            let mut v = values.clone();
            v[j] += h;
            let mut all = inputs.to_vec();
            all[i] = Tensor::from_vec(v, input.dims()).unwrap();
            loss(&all)
        };
        let h = 1e-5;
        let numeric: Vec<f64> =
            picked.iter().map(|&j| (shifted(j, h) - shifted(j, -h)) / (2.0 * h)).collect();
        let at: Vec<f64> = picked.iter().map(|&j| grad[j]).collect();
        // Gradients that vanish are compared with a floor: differences are good to about 1e-9.
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off: Vec<f64> = at.iter().zip(&numeric).map(|(a, n)| a - n).collect();
        let d = norm(&off) / norm(&numeric).max(0.1);
        assert!(d < 2e-7, "input {i}: gradient off by {d:.2e}\n{at:?}\n{numeric:?}");
    }
}

/// Asserts that `f` gives the same bits on one and on three threads.
#[track_caller]
pub(crate) fn same_bits_on_any_threads(f: impl Fn() -> Vec<Tensor> + Send + Sync) {
    let on = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&f);
    for (a, b) in on(1).iter().zip(on(3)) {
        assert_eq!(a.contiguous().unwrap().as_bytes().unwrap(), b.contiguous().unwrap().as_bytes().unwrap());
    }
}
