//! The checks of all kernels.

use super::{KernelCheck, array};

/// One entry a kernel of `tiles/`, by family.
pub static CHECKS: &[&dyn KernelCheck] = &[
    &array::Copy,
    &array::Unary,
    &array::Zip,
    &array::Select,
    &array::RowSum,
    &array::ColumnSum,
    &array::Gather,
    &array::ScatterAdd,
];

/// The check of a kernel, by its name in the index.
pub fn check_of(kernel: &str) -> Option<&'static dyn KernelCheck> {
    CHECKS.iter().copied().find(|c| c.kernel() == kernel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, embedded};

    #[test]
    fn every_embedded_kernel_has_cases_that_fit_its_abi() {
        let mut missing = Vec::new();
        for bundle in Arch::ALL.into_iter().filter_map(|a| embedded(a).ok()) {
            for kernel in bundle.kernels() {
                let Some(check) = check_of(&kernel.kernel) else {
                    missing.push(kernel.kernel.clone());
                    continue;
                };
                let cases = check.cases(kernel).unwrap();
                assert!(!cases.is_empty(), "{}", kernel.name);
                for case in cases {
                    case.fits(kernel).unwrap();
                }
            }
        }
        missing.dedup();
        assert!(missing.is_empty(), "no checks for {}", missing.join(", "));
    }

    #[test]
    fn a_kernel_has_one_check() {
        for (i, check) in CHECKS.iter().enumerate() {
            assert!(CHECKS[..i].iter().all(|c| c.kernel() != check.kernel()), "{}", check.kernel());
        }
    }
}
