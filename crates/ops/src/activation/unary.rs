//! Activations of one input.

use std::marker::PhantomData;

use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Real, Result, Tensor, Var};

use super::{
    Activation, cuda,
    functions::{Function, LogSigmoid, with_function},
};
use crate::rows::{Pointwise, input, pointwise, with_rows};

/// Value of F(x) / temperature.
struct Value<F>(PhantomData<F>, f64);
impl<F: Function> Pointwise<1, 1> for Value<F> {
    #[inline(always)]
    fn call<R: Real>(&self, [x]: [R; 1]) -> [R; 1] {
        [F::value(x) * R::from_f64(self.1)]
    }
}

/// Gradient of F(x) / temperature.
struct Slope<F>(PhantomData<F>, f64);
impl<F: Function> Pointwise<2, 1> for Slope<F> {
    #[inline(always)]
    fn call<R: Real>(&self, [x, dy]: [R; 2]) -> [R; 1] {
        [F::slope(x) * R::from_f64(self.1) * dy]
    }
}

/// Runs a pointwise function in the compute type of `inputs[0]`, giving outputs of its shape and dtype.
pub(super) fn run<const N: usize, const M: usize>(
    inputs: [&Tensor; N],
    f: &impl Pointwise<N, M>,
) -> Result<[Tensor; M]> {
    let x = inputs[0];
    let mut outs = Vec::with_capacity(M);
    for _ in 0..M {
        outs.push(Tensor::empty(x.dims(), x.dtype(), &x.device())?);
    }
    let mut outs: [Tensor; M] = match outs.try_into() {
        Ok(outs) => outs,
        Err(_) => unreachable!("M outputs were made"),
    };
    match x.dtype() {
        DType::F64 => pointwise::<f64, N, M>(inputs, outs.each_mut(), f)?,
        _ => pointwise::<f32, N, M>(inputs, outs.each_mut(), f)?,
    }
    Ok(outs)
}

fn unary<F: Function + Send + 'static>(
    op: &'static str,
    x: &Var,
    factor: f64,
    gpu: cuda::Function,
) -> Result<Var> {
    let xt = input(op, "x", x.tensor())?;
    let y = match xt.device() {
        Device::Cpu => {
            let [y] = run([&xt], &Value::<F>(PhantomData, factor))?;
            y
        }
        _ => cuda::forward(op, &xt, gpu)?,
    };
    Ok(Var::from_op1(op, &[x], y, || -> Box<dyn Backward> {
        Box::new(move |_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let Some(dy) = g[0].take() else { return Ok(vec![None]) };
            if xt.device() != Device::Cpu {
                return Ok(vec![Some(cuda::backward(op, &xt, &dy, gpu)?)]);
            }
            let dy = with_rows(op, "gradient", &dy)?;
            let [dx] = run([&xt, &dy], &Slope::<F>(PhantomData, factor))?;
            Ok(vec![Some(dx)])
        })
    }))
}

/// y = act(x), elementwise, in the dtype of `x`; half precision is computed in f32.
///
/// # Errors
/// For integer tensors, and for f64 on a GPU.
pub fn activate(x: &Var, act: Activation) -> Result<Var> {
    with_function!(act, F => unary::<F>("activation", x, 1.0, cuda::Function::of(act)))
}

/// ln(sigmoid(x)) / temperature
///
/// # Errors
/// For integer tensors, and for a temperature that is zero or not finite.
pub fn logsigmoid(x: &Var, temperature: f64) -> Result<Var> {
    if !temperature.is_finite() || temperature == 0.0 {
        let why = format!("is {temperature}, expected a finite number other than 0");
        return Err(flashlin_tensor::Error::invalid("logsigmoid", "temperature", why));
    }
    let factor = 1.0 / temperature;
    unary::<LogSigmoid>("logsigmoid", x, factor, cuda::Function::log_sigmoid(factor, None))
}
