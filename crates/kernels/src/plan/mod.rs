//! From a shape to launches: which kernels, which grids, which arrays besides the operands.
//!
//! Policy: a plan is a pure function of the shape, the type, the bundle and the GPU's size, so that it is tested without a GPU; a launch only fills in addresses. A plan
//! names kernels that are in the bundle, or is an error that says what is there. Nothing depends on T but grids and sizes.

mod attention;
mod optim;
mod recurrence;
mod rows;
mod segments;
mod sequences;

pub use attention::{
    AttentionShape, AttentionSpan, BlockLaunch, StepPlan, WIDTHS, attention_backward, attention_forward,
    attention_step,
};
pub use optim::{adamw, global_norm};
pub use recurrence::{Gate, Recurrence, RecurrentShape, backward, forward, head_dims, step};
pub use rows::{norm_backward, norm_forward, swiglu_backward, swiglu_forward};
pub use sequences::{CHUNK, Sequences};

use crate::{Bundle, Error, Kernel, Result, Tuning};

/// What a plan may use.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The kernels.
    pub bundle: &'a Bundle,
    /// Which of them are fast.
    pub tuning: &'a Tuning,
    /// Streaming multiprocessors.
    pub sm_count: usize,
    /// Memory that an allocation could get, in bytes.
    pub free_bytes: usize,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name in the bundle.
    pub kernel: String,
    /// Tile blocks.
    pub grid: [u32; 3],
    /// Arguments that this launch takes from elsewhere than from the operand of their name.
    pub bound: Vec<(&'static str, Bound)>,
}

/// Where an argument comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The operand or array of another name.
    To(&'static str),
    /// A number.
    Int(usize),
}

/// An array that a plan needs besides the operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// The kernels' name for it.
    pub name: &'static str,
    /// Type of its elements.
    pub dtype: String,
    /// Its shape.
    pub dims: Vec<usize>,
}

/// Launches in order, and what they need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they are queued.
    pub launches: Vec<Launch>,
    /// Arrays that live from the first launch to the last.
    pub workspace: Vec<Array>,
    /// Arrays that a backward reads later.
    pub saved: Vec<Array>,
}

impl Array {
    pub(crate) fn new(name: &'static str, dtype: &str, dims: &[usize]) -> Array {
        Array { name, dtype: dtype.into(), dims: dims.to_vec() }
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        let element = match self.dtype.as_str() {
            "bf16" | "f16" => 2,
            "f64" | "i64" => 8,
            "u8" => 1,
            _ => 4,
        };
        self.dims.iter().product::<usize>() * element
    }
}

impl Plan {
    /// Bytes of everything besides the operands, each array rounded to 256.
    pub fn bytes(&self) -> usize {
        self.workspace.iter().chain(&self.saved).map(|a| a.bytes().next_multiple_of(256)).sum()
    }

    /// An error unless the memory suffices.
    fn fits(self, what: &'static str, machine: &Machine<'_>) -> Result<Plan> {
        let (needed, free) = (self.bytes(), machine.free_bytes);
        if needed > free { Err(Error::Workspace { what, needed, free }) } else { Ok(self) }
    }

    fn launch(&mut self, kernel: &Kernel, grid: [usize; 3]) -> Result<()> {
        let most = [i32::MAX as usize, 65535, 65535];
        if grid.iter().zip(most).any(|(n, most)| *n > most) {
            let why = format!(
                "would need a grid of {grid:?} blocks; at most {most:?}: a shorter sequence or a smaller batch"
            );
            return Err(Error::Entry { name: kernel.name.clone(), why });
        }
        let grid = grid.map(|n| n as u32);
        self.launches.push(Launch { kernel: kernel.name.clone(), grid, bound: Vec::new() });
        Ok(())
    }

    /// [`Plan::launch`] with arguments from elsewhere.
    fn launch_bound(
        &mut self,
        kernel: &Kernel,
        grid: [usize; 3],
        bound: Vec<(&'static str, Bound)>,
    ) -> Result<()> {
        self.launch(kernel, grid)?;
        self.launches.iter_mut().last().into_iter().for_each(|l| l.bound = bound.clone());
        Ok(())
    }
}

impl<'a> Machine<'a> {
    /// The best configuration of a kernel with these generics, on a GPU filled to `fill`.
    fn choose(&self, kernel: &str, dtype: &str, generics: &[(&str, i64)], fill: f64) -> Result<&'a Kernel> {
        self.tuning.choose(self.bundle, kernel, dtype, generics, fill)
    }
}

/// Elements at a time that a dense array of n may be read by: flat kernels have a configuration for whole vectors, and one for any length.
pub fn vector(n: usize) -> i64 {
    if n.is_multiple_of(8) { 8 } else { 1 }
}

#[cfg(test)]
mod tests;
