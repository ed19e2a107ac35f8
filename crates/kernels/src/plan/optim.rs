//! Plans of the optimizer: the norm over a list of gradients with what is decided from it, and the updates.

use super::{Array, Machine, Plan};
use crate::Result;

/// Blocks of N elements that one block of `sum_squares` adds.
const BLOCKS: usize = 16;

/// A sum of squares for each array that is not empty (`sizes` in elements, f32), its blocks' results one after the other in the workspace
/// `part`, then the decision. Block b of the i-th launch writes at the sum of the earlier launches' grids, plus b.
///
/// # Errors
/// The bundle has no kernel, an array is too long, or memory does not suffice.
pub fn global_norm(machine: &Machine<'_>, sizes: &[usize]) -> Result<Plan> {
    let mut plan = Plan::default();
    let sum = machine.choose("sum_squares", "f32", &[], 1.0)?;
    let block = sum.need_generic("N")?.max(1) as usize * BLOCKS;
    let mut parts = 0;
    for &n in sizes.iter().filter(|n| **n > 0) {
        let blocks = n.div_ceil(block);
        plan.launch(sum, [blocks, 1, 1])?;
        parts += blocks;
    }
    plan.launch(machine.choose("adamw_decide", "f32", &[], 1.0)?, [1, 1, 1])?;
    plan.workspace.push(Array::new("part", "f32", &[parts]));
    plan.fits("the norm of the gradients", machine)
}

/// One update for each parameter that is not empty: (type of the parameter, elements).
///
/// # Errors
/// The bundle has no kernel for a type, or an array is too long.
pub fn adamw(machine: &Machine<'_>, params: &[(&str, usize)]) -> Result<Plan> {
    let mut plan = Plan::default();
    for &(dtype, n) in params.iter().filter(|(_, n)| *n > 0) {
        let kernel = machine.choose("adamw_update", dtype, &[("V", super::vector(n))], 1.0)?;
        plan.launch(kernel, [n.div_ceil(kernel.need_generic("N")?.max(1) as usize), 1, 1])?;
    }
    Ok(plan)
}
