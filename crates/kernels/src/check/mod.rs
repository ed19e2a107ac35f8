//! Whether a compiled kernel computes the right numbers: cases with f64 references, and the table of what is checked.
//!
//! Policy: right source is no proof of a right cubin (compilers drop masks), so every kernel of a bundle has a [`KernelCheck`] and every
//! cubin is checked by its hash on hardware. A case is data: arguments, a grid, and what must come out. It is made without a GPU, so tests on any machine see that every kernel has cases that fit its
//! ABI; [`crate::verify_kernel`] runs them: outputs begin as NaN, every input ends where the mapped page ends, and two runs must agree in every bit.

mod array;
mod attention;
mod case;
mod chunked;
mod column_sum;
mod conv;
mod functions;
mod gate;
mod linear;
mod loss;
mod norm_any;
mod optim;
mod rope;
mod rows;
mod segments;
mod step;
mod table;

pub use case::{Case, Data, Expected, Inputs, Value, relative_error, tolerance};
pub use table::{CHECKS, check_of};

use crate::{Kernel, Result};

/// Cases for one kernel of the sources, in all its configurations.
pub trait KernelCheck: Sync {
    /// The kernel's name in the index ([`Kernel::kernel`]).
    fn kernel(&self) -> &'static str;

    /// Cases for a configuration: several shapes, among them ragged tails, small enough for a reference in plain loops.
    ///
    /// # Errors
    /// A configuration that it does not know.
    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>>;
}

/// A kernel with these generics and nothing else.
#[cfg(test)]
pub(crate) fn tests_kernel(kernel: &str, dtype: &str, generics: &[(&str, i64)]) -> Kernel {
    let generics: Vec<_> = generics.iter().map(|(n, v)| (n.to_string(), *v)).collect();
    Kernel {
        name: crate::kernel_name(kernel, dtype, &generics, 4, 0),
        entry: format!("{kernel}_entry"),
        family: String::new(),
        kernel: kernel.into(),
        dtype: dtype.into(),
        generics,
        warps: 4,
        occupancy: 0,
        abi: Vec::new(),
        grid: String::new(),
        registers: 0,
        shared_bytes: 0,
        spills: 0,
        cubin: crate::index::Place::default(),
        source: String::new(),
        toolchain: String::new(),
        checked: None,
    }
}
