//! Plans of the fused modules that work on rows: norms and SwiGLU.

use super::{Array, Machine, Plan};
use crate::{Kernel, Result};

/// Blocks an SM that a norm's backward is divided into: enough to hide memory, few partial sums.
const BLOCKS_AN_SM: usize = 4;

/// The tile's height.
fn height(kernel: &Kernel) -> Result<usize> {
    Ok(kernel.need_generic("R")?.max(1) as usize)
}

/// The tile's width.
fn width_of(kernel: &Kernel) -> Result<usize> {
    Ok(kernel.need_generic("DT")?.max(1) as usize)
}

/// The kernel of a norm for rows of `width`: its tile is the power of two from there up. `mean`: layer norm. `gate`: 0 none, 1 SiLU, 2 sigmoid.
fn norm<'a>(
    machine: &Machine<'a>,
    name: &str,
    dtype: &str,
    width: usize,
    mean: bool,
    gate: i64,
) -> Result<&'a Kernel> {
    let generics = [("DT", width.next_power_of_two() as i64), ("MEAN", i64::from(mean)), ("GATE", gate)];
    machine.choose(name, dtype, &generics, 1.0)
}

/// RMS or layer norm (`mean`) of `rows` rows. `gate`: 0 none, 1 SiLU, 2 sigmoid.
///
/// # Errors
/// The bundle has no kernel for the width.
pub fn norm_forward(
    machine: &Machine<'_>,
    rows: usize,
    width: usize,
    dtype: &str,
    mean: bool,
    gate: i64,
) -> Result<Plan> {
    let mut plan = Plan::default();
    if rows == 0 {
        return Ok(plan);
    }
    let kernel = norm(machine, "norm_fwd", dtype, width, mean, gate)?;
    plan.launch(kernel, [rows.div_ceil(height(kernel)?), 1, 1])?;
    plan.saved.push(Array::new("rstd", "f32", &[rows]));
    if mean {
        plan.saved.push(Array::new("mean", "f32", &[rows]));
    }
    Ok(plan)
}

/// Its backward, and how many tiles of rows each block goes over (the kernel's `steps`). The gradients of weight and bias are summed from one part a block, in
/// order, in f32: the launches after the first, each of which may be left out.
///
/// # Errors
/// The bundle has no kernel for the width, or memory does not suffice.
pub fn norm_backward(
    machine: &Machine<'_>,
    rows: usize,
    width: usize,
    dtype: &str,
    mean: bool,
    gate: i64,
) -> Result<(Plan, usize)> {
    let mut plan = Plan::default();
    if rows == 0 {
        return Ok((plan, 0));
    }
    let kernel = norm(machine, "norm_bwd", dtype, width, mean, gate)?;
    let tiles = rows.div_ceil(height(kernel)?);
    let steps = tiles.div_ceil(machine.sm_count.max(1) * BLOCKS_AN_SM).max(1);
    let blocks = tiles.div_ceil(steps);
    plan.launch(kernel, [blocks, 1, 1])?;
    let sum = machine.choose("column_sum", "f32", &[], 1.0)?;
    let sums = width.div_ceil(width_of(sum)?);
    for name in ["dw", "db"] {
        plan.launch(sum, [sums, 1, 1])?;
        plan.workspace.push(Array::new(name, "f32", &[blocks, width]));
    }
    Ok((plan.fits("a norm's backward", machine)?, steps))
}

/// `silu(a) b` of `rows` rows.
///
/// # Errors
/// The bundle has no kernel.
pub fn swiglu_forward(machine: &Machine<'_>, rows: usize, width: usize, dtype: &str) -> Result<Plan> {
    elementwise(machine, "swiglu_fwd", rows, width, dtype)
}

/// Its backward.
///
/// # Errors
/// The bundle has no kernel.
pub fn swiglu_backward(machine: &Machine<'_>, rows: usize, width: usize, dtype: &str) -> Result<Plan> {
    elementwise(machine, "swiglu_bwd", rows, width, dtype)
}

fn elementwise(machine: &Machine<'_>, name: &str, rows: usize, width: usize, dtype: &str) -> Result<Plan> {
    let mut plan = Plan::default();
    if rows == 0 || width == 0 {
        return Ok(plan);
    }
    let kernel = machine.choose(name, dtype, &[], 1.0)?;
    plan.launch(kernel, [width.div_ceil(width_of(kernel)?), rows.div_ceil(height(kernel)?), 1])?;
    Ok(plan)
}
