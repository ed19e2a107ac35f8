//! GLA's gate: `log sigmoid(x) / normalizer`, optionally not below a clamp.

use flashlin_tensor::cpu::{par_zip, par_zip2, vectorized};
use flashlin_tensor::{DType, Device, Element, Error, Real, Result, Tensor, Var};
use half::{bf16, f16};

use crate::{
    activation::cuda::{self, Function},
    rows::input,
};

use super::formulas::{log_sigmoid_gate as value, log_sigmoid_gate_derivative as derivative};

const OP: &str = "log_sigmoid_gate";

/// `max(log sigmoid(x) / normalizer, clamp_min)` elementwise, in the dtype of `x`, computed in f32 (f64 for f64). The
/// gradient is zero where the clamp holds.
///
/// # Errors
/// When `x` is no float tensor, f64 on a GPU, or the normalizer is not a finite number above 0.
pub fn log_sigmoid_gate(x: &Var, normalizer: f64, clamp_min: Option<f64>) -> Result<Var> {
    if !(normalizer.is_finite() && normalizer > 0.0) {
        let why = format!("is {normalizer}, expected a finite number above 0");
        return Err(Error::invalid(OP, "normalizer", why));
    }
    if clamp_min.is_some_and(f64::is_nan) {
        return Err(Error::invalid(OP, "clamp_min", "is NaN, expected a number"));
    }
    if x.device() != Device::Cpu {
        return on_gpu(x, Function::log_sigmoid(1.0 / normalizer, clamp_min));
    }
    let t = x.tensor().contiguous()?;
    let y = match t.dtype() {
        DType::F64 => forward::<f64, f64>(&t, normalizer, clamp_min)?,
        DType::F32 => forward::<f32, f32>(&t, normalizer, clamp_min)?,
        DType::BF16 => forward::<f32, bf16>(&t, normalizer, clamp_min)?,
        DType::F16 => forward::<f32, f16>(&t, normalizer, clamp_min)?,
        other => return Err(Error::dtype(OP, "x", other, "a float dtype")),
    };
    let reverse = move |_: &mut flashlin_tensor::BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
        let Some(g) = g[0].take() else { return Ok(vec![None]) };
        let g = g.contiguous()?;
        let dx = match t.dtype() {
            DType::F64 => backward::<f64, f64>(&t, &g, normalizer, clamp_min),
            DType::F32 => backward::<f32, f32>(&t, &g, normalizer, clamp_min),
            DType::BF16 => backward::<f32, bf16>(&t, &g, normalizer, clamp_min),
            _ => backward::<f32, f16>(&t, &g, normalizer, clamp_min),
        };
        Ok(vec![Some(dx?)])
    };
    Ok(Var::from_op1(OP, &[x], y, || Box::new(reverse)))
}

fn on_gpu(x: &Var, f: Function) -> Result<Var> {
    let t = input(OP, "x", x.tensor())?;
    let y = cuda::forward(OP, &t, f)?;
    Ok(Var::from_op1(OP, &[x], y, || {
        Box::new(move |_: &mut flashlin_tensor::BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let dx = g[0].take().map(|g| cuda::backward(OP, &t, &g, f)).transpose()?;
            Ok(vec![dx])
        })
    }))
}

/// An element in the type of the computation, and back.
#[inline(always)]
fn widen<R: Real, E: Element>(x: E) -> R {
    if R::DTYPE == DType::F64 { R::from_f64(x.to_f64()) } else { R::from_f32(x.to_f32()) }
}

#[inline(always)]
fn narrow<R: Real, E: Element>(x: R) -> E {
    if R::DTYPE == DType::F64 { E::from_f64(x.to_f64()) } else { E::from_f32(x.to_f32()) }
}

fn forward<R: Real, E: Element>(x: &Tensor, normalizer: f64, clamp: Option<f64>) -> Result<Tensor> {
    let (n, c) = (R::from_f64(normalizer), clamp.map(R::from_f64));
    let mut y = Tensor::empty(x.dims(), E::DTYPE, &x.device())?;
    par_zip(y.as_mut_slice::<E>()?, x.as_slice::<E>()?, |y, x| {
        vectorized(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, &x)| *y = narrow(value(widen::<R, E>(x), n, c))),
        )
    });
    Ok(y)
}

fn backward<R: Real, E: Element>(
    x: &Tensor,
    g: &Tensor,
    normalizer: f64,
    clamp: Option<f64>,
) -> Result<Tensor> {
    let (n, c) = (R::from_f64(normalizer), clamp.map(R::from_f64));
    let mut dx = Tensor::empty(x.dims(), E::DTYPE, &x.device())?;
    par_zip2(dx.as_mut_slice::<E>()?, x.as_slice::<E>()?, g.as_slice::<E>()?, |dx, x, g| {
        vectorized(
            #[inline(always)]
            || {
                for (d, (&x, &g)) in dx.iter_mut().zip(x.iter().zip(g)) {
                    *d = narrow(widen::<R, E>(g) * derivative(widen::<R, E>(x), n, c));
                }
            },
        )
    });
    Ok(dx)
}
