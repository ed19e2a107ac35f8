//! Recomputation: trade a second forward for the memory of everything in between.

use super::{GradMode, Var, backward, grad_enabled, no_grad};
use crate::{Result, Tensor};

/// Runs `f` without saving anything but its inputs; backward runs it again to rebuild what it needs.
/// Gradients of parameters that `f` captures arrive as usual. `f` must compute the same thing both times.
///
/// # Errors
/// Those of `f`.
pub fn checkpoint<F>(f: F, inputs: &[&Var]) -> Result<Vec<Var>>
where
    F: Fn(&[Var]) -> Result<Vec<Var>> + Send + Sync + 'static,
{
    let owned: Vec<Var> = inputs.iter().map(|v| v.detach()).collect();
    if !grad_enabled() {
        return f(&owned);
    }
    let outputs = no_grad(|| f(&owned))?;
    let outputs: Vec<Tensor> = outputs.into_iter().map(Var::into_tensor).collect();
    let tracked: Vec<bool> = inputs.iter().map(|v| v.is_tracked()).collect();
    let reverse = move |ctx: &mut super::BackwardCtx<'_>, grads: Vec<Option<Tensor>>| {
        let fresh = owned.into_iter().zip(&tracked);
        let inputs: Vec<Var> = fresh.map(|(v, &t)| if t { Var::leaf(v.into_tensor()) } else { v }).collect();
        let outputs = {
            let _mode = GradMode::set(true);
            f(&inputs)?
        };
        let roots = outputs.iter().zip(grads).filter_map(|(v, g)| Some((v, g?))).collect();
        backward::run(roots, ctx.leaves())?;
        Ok(inputs.iter().map(|v| ctx.leaves().take_leaf(v)).collect())
    };
    // Recorded even when no input is tracked: the parameters inside may be.
    Ok(Var::record("checkpoint", inputs, outputs, Box::new(reverse)))
}

impl super::Gradients {
    fn take_leaf(&mut self, v: &Var) -> Option<Tensor> {
        self.remove(v.edge.as_ref().filter(|e| e.node.leaf)?.node.id)
    }
}
