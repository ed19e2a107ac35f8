//! AdamW on a GPU: every gradient's sum of squares, one block that decides, an update a parameter (kernels in `tiles/src/optim`).
//!
//! Policy: nothing here waits. Norm, clip factor, the decision and the bias corrections stay on the device, where the updates read them; whoever wants to
//! see them reads [`Decided::values`] later. Sums are added in a fixed order, so a repeated step gives the same bits.

use flashlin_cuda::Arg;
use flashlin_kernels::plan::{self, Machine};

use super::Launcher;
use crate::{DType, Error, Result, Tensor};

const OP: &str = "adamw";

/// What is the same for every parameter of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwFactors {
    /// Decay rates of the running means of gradients and of squared gradients.
    pub betas: [f64; 2],
    /// Added to the root of the squared mean.
    pub eps: f64,
    /// Gradients are scaled down to this global norm; 0 does not clip.
    pub max_norm: f64,
    /// A step whose loss or gradient norm is not finite changes nothing but counters.
    pub skip_non_finite: bool,
}

/// One parameter with what belongs to it, all contiguous, of one shape, on one device.
#[derive(Debug)]
pub struct AdamwUpdate<'a> {
    /// The parameter: f32, or bf16 or f16 with `master`.
    pub param: &'a mut Tensor,
    /// f32 weights behind a half-precision parameter.
    pub master: Option<&'a mut Tensor>,
    /// Running mean of gradients, f32.
    pub mean: &'a mut Tensor,
    /// Running mean of squared gradients, f32.
    pub square: &'a mut Tensor,
    /// Gradient, f32.
    pub grad: &'a Tensor,
}

/// What a step decided, on the device.
pub struct Decided {
    on: Launcher,
    machine: Machine<'static>,
    values: Tensor,
}

impl std::fmt::Debug for Decided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decided").field("values", &self.values).finish_non_exhaustive()
    }
}

/// Norm of all gradients and what follows from it. `counters` f32 `[3]` (steps applied, skipped, skipped in a row) move on, exactly up to 2^24.
///
/// # Errors
/// Gradients that are not contiguous f32, another device, counters that somebody else holds, memory: counters are as they were then.
pub fn decide(grads: &[&Tensor], loss: &Tensor, counters: &mut Tensor, by: &AdamwFactors) -> Result<Decided> {
    let on = Launcher::on(OP, counters)?;
    let machine = on.machine()?;
    writable("counters", counters, 3)?;
    for g in grads {
        dense_f32("grad", g)?;
    }
    let loss = loss.to_dtype(DType::F32)?.contiguous()?;
    if loss.numel() != 1 {
        return Err(Error::shape(OP, "loss", loss.dims(), "a single element"));
    }
    let sizes: Vec<usize> = grads.iter().map(|g| g.numel()).collect();
    let plan = plan::global_norm(&machine, &sizes).map_err(Error::Kernel)?;
    let parts = plan.workspace.first().map_or(0, |a| a.dims[0]);
    let part = Tensor::empty(&[parts.max(1)], DType::F32, &on.device())?;
    let values = Tensor::empty(&[5], DType::F32, &on.device())?;
    let mismatch = || Error::invalid(OP, "plan", "does not fit the gradients");
    let mut launches = plan.launches.iter();
    let mut at = 0;
    for g in grads.iter().filter(|g| g.numel() > 0) {
        let launch = launches.next().ok_or_else(mismatch)?;
        let args = [on.at(g)?, on.at(&part)?, on.int(g.numel())?, on.int(at)?];
        let grid = launch.grid.map(|n| n as usize);
        // SAFETY: the gradient has n elements; the plan gives each block of the grid its place in `part` from `at` on.
        unsafe { on.launch(&launch.kernel, grid, &args) }?;
        at += grid[0];
    }
    let last = launches.next().ok_or_else(mismatch)?;
    let float = |x: f64| Arg::F32(x as f32);
    let mut args = vec![on.at(&part)?, on.at(&loss)?, on.at(counters)?, on.at(&values)?, on.int(parts)?];
    args.push(Arg::I32(by.skip_non_finite.into()));
    args.extend([float(by.max_norm), float(by.betas[0].ln()), float(by.betas[1].ln())]);
    // SAFETY: `part` holds as many sums as the plan says, the loss one element, the counters three and the values five.
    unsafe { on.launch(&last.kernel, [1, 1, 1], &args) }?;
    Ok(Decided { on, machine, values })
}

impl Decided {
    /// f32 `[5]`: the norm before clipping, the clip factor, 1 if the step is applied, and the bias corrections `1 / (1 - beta1^t)` and
    /// `1 / sqrt(1 - beta2^t)`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Updates a parameter in place at learning rate `lr`; it keeps the share `keep` of itself first. Does nothing where the step is skipped.
    ///
    /// # Errors
    /// Arrays of another type, length or device, or that somebody else holds.
    pub fn update(&self, mut u: AdamwUpdate<'_>, by: &AdamwFactors, [lr, keep]: [f64; 2]) -> Result<()> {
        let (on, n) = (&self.on, u.grad.numel());
        let plan = plan::adamw(&self.machine, &[(u.check()?, n)]).map_err(Error::Kernel)?;
        let half = u.master.is_some();
        let (p, w) = match &u.master {
            Some(master) => (on.at(u.param)?, on.at(master)?),
            None => (Arg::Ptr(0), on.at(u.param)?),
        };
        let mut args = vec![p, w, on.at(u.grad)?, on.at(u.mean)?, on.at(u.square)?, on.at(&self.values)?];
        args.extend([on.int(n)?, Arg::I32(half.into())]);
        args.extend([by.betas[0], by.betas[1], lr, by.eps, keep].map(|x| Arg::F32(x as f32)));
        for launch in &plan.launches {
            // SAFETY: all arrays have n elements and nobody else holds those that are written; there are five values.
            unsafe { on.launch(&launch.kernel, launch.grid.map(|n| n as usize), &args) }?;
        }
        Ok(())
    }
}

impl AdamwUpdate<'_> {
    /// The kernel's name of the parameter's type, once everything fits.
    fn check(&mut self) -> Result<&'static str> {
        let n = self.grad.numel();
        dense_f32("grad", self.grad)?;
        for (arg, t) in [("mean", &mut *self.mean), ("square", &mut *self.square)] {
            dense_f32(arg, t)?;
            writable(arg, t, n)?;
        }
        writable("param", self.param, n)?;
        match (self.param.dtype, &mut self.master) {
            (DType::F32, None) => Ok("f32"),
            (dtype @ (DType::BF16 | DType::F16), Some(master)) => {
                dense_f32("master", master)?;
                writable("master", master, n)?;
                Ok(if dtype == DType::BF16 { "bf16" } else { "f16" })
            }
            (other, _) => {
                Err(Error::dtype(OP, "param", other, "f32, or bf16 or f16 with f32 master weights"))
            }
        }
    }
}

fn dense_f32(arg: &'static str, t: &Tensor) -> Result<()> {
    match (t.dtype, t.is_contiguous()) {
        (DType::F32, true) => Ok(()),
        (DType::F32, false) => Err(Error::invalid(OP, arg, "is a strided view; call contiguous() first")),
        (other, _) => Err(Error::dtype(OP, arg, other, "f32")),
    }
}

fn writable(arg: &'static str, t: &mut Tensor, n: usize) -> Result<()> {
    if t.numel() != n || !t.is_contiguous() {
        return Err(Error::shape(OP, arg, t.dims(), format!("{n} elements without gaps")));
    }
    if !t.is_unique() {
        return Err(Error::Shared { op: OP });
    }
    Ok(())
}
