//! Softplus with slope and threshold, as in PyTorch.

use flashlin_tensor::{Backward, BackwardCtx, Device, Error, Real, Result, Tensor, Var, cpu::math};

use super::{cuda, unary::run};
use crate::rows::{Pointwise, input, with_rows};

#[derive(Clone, Copy)]
struct Softplus {
    beta: f64,
    threshold: f64,
}

impl Pointwise<1, 1> for Softplus {
    #[inline(always)]
    fn call<R: Real>(&self, [x]: [R; 1]) -> [R; 1] {
        let bx = x * R::from_f64(self.beta);
        [if bx > R::from_f64(self.threshold) { x } else { math::softplus(bx) / R::from_f64(self.beta) }]
    }
}

impl Pointwise<2, 1> for Softplus {
    #[inline(always)]
    fn call<R: Real>(&self, [x, dy]: [R; 2]) -> [R; 1] {
        let bx = x * R::from_f64(self.beta);
        [if bx > R::from_f64(self.threshold) { dy } else { dy * math::sigmoid(bx) }]
    }
}

/// ln(1 + e^(beta x)) / beta, and x itself where beta x > `threshold` (PyTorch's defaults: 1 and 20).
///
/// # Errors
/// For integer tensors, and for a beta that is zero or not finite.
pub fn softplus(x: &Var, beta: f64, threshold: f64) -> Result<Var> {
    const OP: &str = "softplus";
    if !beta.is_finite() || beta == 0.0 {
        return Err(Error::invalid(OP, "beta", format!("is {beta}, expected a finite number other than 0")));
    }
    let f = Softplus { beta, threshold };
    let gpu = cuda::Function::softplus(beta, threshold);
    let xt = input(OP, "x", x.tensor())?;
    let y = match xt.device() {
        Device::Cpu => {
            let [y] = run::<1, 1>([&xt], &f)?;
            y
        }
        _ => cuda::forward(OP, &xt, gpu)?,
    };
    Ok(Var::from_op1(OP, &[x], y, || -> Box<dyn Backward> {
        Box::new(move |_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let Some(dy) = g[0].take() else { return Ok(vec![None]) };
            if xt.device() != Device::Cpu {
                return Ok(vec![Some(cuda::backward(OP, &xt, &dy, gpu)?)]);
            }
            let [dx] = run::<2, 1>([&xt, &with_rows(OP, "gradient", &dy)?], &f)?;
            Ok(vec![Some(dx)])
        })
    }))
}
