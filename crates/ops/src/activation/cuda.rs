//! Activations on a GPU (kernels in `tiles/src/activation`): elementwise over whole arrays, the function chosen by a code at run time. Views are
//! made dense first; inputs of two dtypes meet in f32.

use flashlin_tensor::{
    DType, Result, Tensor,
    cuda::{Arg, Launcher, plan, thin},
};

use super::Activation;

/// A function as the kernels know it, with its two parameters (see `tiles/src/tile/functions.rs`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Function {
    code: i32,
    p: f64,
    q: f64,
}

impl Function {
    /// An activation.
    pub(crate) fn of(act: Activation) -> Self {
        let code = match act {
            Activation::Relu => 0,
            Activation::Sigmoid => 1,
            Activation::LogSigmoid => 2,
            Activation::Silu => 3,
            Activation::SqRelu => 4,
            Activation::Gelu => 5,
            Activation::GeluErf => 6,
        };
        Function { code, p: 0.0, q: 0.0 }
    }

    /// ln(1 + e^(beta x)) / beta, x itself where beta x > threshold.
    pub(crate) fn softplus(beta: f64, threshold: f64) -> Self {
        Function { code: 7, p: beta, q: threshold }
    }

    /// factor ln sigmoid(x), not below `clamp`.
    pub(crate) fn log_sigmoid(factor: f64, clamp: Option<f64>) -> Self {
        Function { code: 8, p: factor, q: clamp.unwrap_or(f64::NEG_INFINITY) }
    }

    fn args(self) -> [Arg; 3] {
        [Arg::I32(self.code), Arg::F32(self.p as f32), Arg::F32(self.q as f32)]
    }
}

/// Queues a kernel over `n` elements: one block for each of its `N` lanes.
///
/// # Safety
/// The arguments are what the kernel expects, its arrays dense with n elements.
unsafe fn launch(on: &Launcher, name: &str, dtype: DType, n: usize, args: &[Arg]) -> Result<()> {
    let kernel = on.find(name, on.float("x", dtype)?, &[("V", plan::vector(n))])?;
    let lanes = kernel.need_generic("N").map_err(flashlin_tensor::Error::Kernel)?.max(1) as usize;
    // SAFETY: the caller's promise.
    unsafe { on.launch(&kernel.name, [n.div_ceil(lanes), 1, 1], args) }
}

/// f(x), in the dtype of `x`.
pub(crate) fn forward(op: &'static str, x: &Tensor, f: Function) -> Result<Tensor> {
    let on = Launcher::on(op, x)?;
    on.float("x", x.dtype())?;
    let (x, n) = (on.dense(x, x.dtype())?, x.numel());
    let y = Tensor::empty(x.dims(), x.dtype(), &x.device())?;
    let [code, p, q] = f.args();
    // SAFETY: both arrays are dense and have n elements.
    unsafe { launch(&on, "act_fwd", x.dtype(), n, &[on.at(&x)?, on.at(&y)?, on.int(n)?, code, p, q]) }?;
    Ok(y)
}

/// f'(x) dy, in the dtype of `x`.
pub(crate) fn backward(op: &'static str, x: &Tensor, dy: &Tensor, f: Function) -> Result<Tensor> {
    let on = Launcher::on(op, x)?;
    let (x, dy, n) = (on.dense(x, x.dtype())?, on.dense(dy, x.dtype())?, x.numel());
    let dx = Tensor::empty(x.dims(), x.dtype(), &x.device())?;
    let [code, p, q] = f.args();
    let args = [on.at(&x)?, on.at(&dy)?, on.at(&dx)?, on.int(n)?, code, p, q];
    // SAFETY: all arrays are dense and have n elements.
    unsafe { launch(&on, "act_bwd", x.dtype(), n, &args) }?;
    Ok(dx)
}

/// What two arrays are computed in: their dtype, or f32.
fn common(a: &Tensor, b: &Tensor) -> DType {
    if a.dtype() == b.dtype() { a.dtype() } else { DType::F32 }
}

/// act(gate) up, in the dtype of `up`.
pub(super) fn glu_forward(op: &'static str, gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
    let (on, dtype, n) = (Launcher::on(op, gate)?, common(gate, up), up.numel());
    for (arg, t) in [("gate", gate), ("up", up)] {
        on.float(arg, t.dtype())?;
    }
    let (g, u) = (on.dense(gate, dtype)?, on.dense(up, dtype)?);
    let y = Tensor::empty(up.dims(), dtype, &up.device())?;
    let args = [on.at(&g)?, on.at(&u)?, on.at(&y)?, on.int(n)?, Arg::I32(Function::of(act).code)];
    // SAFETY: all arrays are dense and have n elements.
    unsafe { launch(&on, "glu_fwd", dtype, n, &args) }?;
    y.to_dtype(up.dtype())
}

/// Gradients of gate and up, each in its dtype.
pub(super) fn glu_backward(
    op: &'static str,
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    act: Activation,
) -> Result<[Tensor; 2]> {
    let (on, dtype, n) = (Launcher::on(op, gate)?, common(gate, up), up.numel());
    let (g, u, dy) = (on.dense(gate, dtype)?, on.dense(up, dtype)?, on.dense(dy, dtype)?);
    let dg = Tensor::empty(up.dims(), dtype, &up.device())?;
    let du = Tensor::empty(up.dims(), dtype, &up.device())?;
    let mut args = vec![on.at(&g)?, on.at(&u)?, on.at(&dy)?, on.at(&dg)?, on.at(&du)?];
    args.extend([on.int(n)?, Arg::I32(Function::of(act).code)]);
    // SAFETY: all arrays are dense and have n elements.
    unsafe { launch(&on, "glu_bwd", dtype, n, &args) }?;
    Ok([dg.to_dtype(gate.dtype())?, du.to_dtype(up.dtype())?])
}

/// silu(x gate^T) * (x up^T) in one launch, if there is a kernel for so few rows.
pub(super) fn thin_glu(x: &Tensor, gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    const OP: &str = "swiglu";
    let Some((kernel, [rows, k], m)) = thin(OP, "thin_glu", x, &[gate, up])? else { return Ok(None) };
    let on = Launcher::on(OP, x)?;
    let n = gate.dim(0);
    let columns = kernel.need_generic("BN").map_err(flashlin_tensor::Error::Kernel)?.max(1) as usize;
    let (x, gate, up) = (on.dense(x, x.dtype())?, on.dense(gate, x.dtype())?, on.dense(up, x.dtype())?);
    let mut dims = x.dims().to_vec();
    dims.splice(dims.len() - 1.., [n]);
    let y = Tensor::empty(&dims, x.dtype(), &x.device())?;
    let args = [on.at(&x)?, on.at(&gate)?, on.at(&up)?, on.at(&y)?, on.int(rows)?, on.int(k)?, on.int(n)?];
    // SAFETY: x holds rows * k elements, the weights n * k each and y rows * n.
    unsafe { on.launch(&kernel.name, [n.div_ceil(columns), rows.div_ceil(m), 1], &args) }?;
    Ok(Some(y))
}
