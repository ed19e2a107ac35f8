//! Helpers of the module tests: random tensors, comparison, gradients.

use flashlin_tensor::{DType, Device, Philox, Tensor, Var};

pub(crate) use crate::conformance::relative_l2;

/// Standard normal numbers.
pub(crate) fn randn(seed: u64, dims: &[usize], dtype: DType) -> Tensor {
    Philox::new(seed, 7).randn(0.0, 1.0, dims, dtype, &Device::Cpu).unwrap()
}

/// Panics unless two tensors agree to `tol` (relative L2).
#[track_caller]
pub(crate) fn close(what: &str, a: &Tensor, b: &Tensor, tol: f64) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let d = relative_l2(&a.to_f64_vec().unwrap(), &b.to_f64_vec().unwrap());
    assert!(d <= tol, "{what}: relative L2 {d:.3e} > {tol:.0e}");
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

/// Asserts that `f` gives the same bits on one and on three threads.
#[track_caller]
pub(crate) fn same_bits_on_any_threads(f: impl Fn() -> Vec<Tensor> + Send + Sync) {
    let on = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&f);
    for (a, b) in on(1).iter().zip(on(3)) {
        assert_eq!(a.contiguous().unwrap().as_bytes().unwrap(), b.contiguous().unwrap().as_bytes().unwrap());
    }
}
