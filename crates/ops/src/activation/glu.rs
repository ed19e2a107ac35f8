//! Gated linear units: an activated gate times a second input.

use std::marker::PhantomData;

use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Error, Real, Result, Tensor, Var};

use super::{
    Activation, cuda,
    functions::{Function, with_function},
};
use crate::recurrence::recorded;
use crate::rows::{Pointwise, check_dims, input, pointwise, with_rows};

struct Glu<F>(PhantomData<F>);

impl<F: Function> Pointwise<2, 1> for Glu<F> {
    #[inline(always)]
    fn call<R: Real>(&self, [g, u]: [R; 2]) -> [R; 1] {
        [F::value(g) * u]
    }
}

/// Gradients of gate and up from gate, up and the output's.
impl<F: Function> Pointwise<3, 2> for Glu<F> {
    #[inline(always)]
    fn call<R: Real>(&self, [g, u, dy]: [R; 3]) -> [R; 2] {
        [F::slope(g) * u * dy, F::value(g) * dy]
    }
}

fn forward<F: Function>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::empty(up.dims(), up.dtype(), &up.device())?;
    match (gate.dtype(), up.dtype()) {
        (DType::F64, _) | (_, DType::F64) => {
            pointwise::<f64, 2, 1>([gate, up], [&mut y], &Glu::<F>(PhantomData))?
        }
        _ => pointwise::<f32, 2, 1>([gate, up], [&mut y], &Glu::<F>(PhantomData))?,
    }
    Ok(y)
}

fn backward<F: Function>(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<[Tensor; 2]> {
    let mut dg = Tensor::empty(gate.dims(), gate.dtype(), &gate.device())?;
    let mut du = Tensor::empty(up.dims(), up.dtype(), &up.device())?;
    let f = Glu::<F>(PhantomData);
    match (gate.dtype(), up.dtype()) {
        (DType::F64, _) | (_, DType::F64) => pointwise::<f64, 3, 2>([gate, up, dy], [&mut dg, &mut du], &f)?,
        _ => pointwise::<f32, 3, 2>([gate, up, dy], [&mut dg, &mut du], &f)?,
    }
    Ok([dg, du])
}

/// act(gate) * up, elementwise; both inputs have one shape (strided views are read in place), the output has the
/// dtype of `up`. Backward recomputes the activation from the two inputs.
///
/// # Errors
/// When the shapes differ, and for integer tensors.
pub fn glu(gate: &Var, up: &Var, act: Activation) -> Result<Var> {
    const OP: &str = "swiglu";
    check_dims(OP, "gate", gate.tensor(), up.dims())?;
    let (g, u) = (input(OP, "gate", gate.tensor())?, input(OP, "up", up.tensor())?);
    if g.device() != u.device() {
        return Err(Error::DeviceMismatch { op: OP, a: g.device(), b: u.device() });
    }
    let y = match g.device() {
        Device::Cpu => with_function!(act, F => forward::<F>(&g, &u))?,
        _ => cuda::glu_forward(OP, &g, &u, act)?,
    };
    let inputs = (g.clone(), u.clone());
    let y = Var::from_op1(OP, &[gate, up], y, || -> Box<dyn Backward> {
        Box::new(move |_: &mut BackwardCtx<'_>, mut grads: Vec<Option<Tensor>>| {
            let Some(dy) = grads[0].take() else { return Ok(vec![None, None]) };
            let both = match g.device() {
                Device::Cpu => {
                    let dy = with_rows(OP, "gradient", &dy)?;
                    with_function!(act, F => backward::<F>(&g, &u, &dy))?
                }
                _ => cuda::glu_backward(OP, &g, &u, &dy, act)?,
            };
            Ok(both.into_iter().map(Some).collect())
        })
    });
    Ok(y.made_by(move || cuda::glu_forward(OP, &inputs.0, &inputs.1, act)))
}

/// silu(gate) * up: see [`glu`].
///
/// # Errors
/// As [`glu`].
pub fn swiglu(gate: &Var, up: &Var) -> Result<Var> {
    glu(gate, up, Activation::Silu)
}

/// silu(x gate^T) * (x up^T) for weights `[n, k]`: the first half of a gated MLP, in one pass over both weights where few rows meet them on a GPU.
///
/// # Errors
/// As [`glu`] and [`Var::linear`].
pub fn swiglu_linear(x: &Var, gate: &Var, up: &Var) -> Result<Var> {
    if x.device() != Device::Cpu
        && !recorded([x, gate, up])
        && let Some(y) = cuda::thin_glu(x.tensor(), gate.tensor(), up.tensor())?
    {
        return Ok(Var::constant(y));
    }
    match x.linear_many(&[gate, up])?.as_slice() {
        [gate, up] => swiglu(gate, up),
        _ => Err(Error::invalid("swiglu", "x", "gave no output")),
    }
}
