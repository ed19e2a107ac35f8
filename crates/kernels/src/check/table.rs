//! The checks of all kernels.

use super::{
    KernelCheck, array, attention, chunked::Stage, column_sum, conv, functions, gate, linear, loss, norm_any,
    optim, rope, rows, segments, step,
};

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
    &array::RowMax,
    &array::SegmentAdd,
    &array::FlatCopy,
    &array::FlatZip,
    &array::FlatSum,
    &array::Compare,
    &attention::Forward,
    &attention::Queries,
    &attention::Keys,
    &attention::Step,
    &attention::Merge,
    &conv::Forward,
    &conv::LastState,
    &conv::BeforeActivation,
    &conv::WeightParts,
    &conv::InputGradient,
    &conv::StateGradient,
    &conv::Step,
    &conv::RowsForward,
    &conv::RowsBackward,
    &linear::ThinLinear,
    &linear::ThinGlu,
    &loss::CrossEntropy,
    &optim::SumSquares,
    &optim::Decide,
    &optim::Update,
    &rows::NormForward,
    &rows::NormBackward,
    &column_sum::ColumnSum,
    &rows::SwigluForward,
    &rows::SwigluBackward,
    &norm_any::Forward,
    &norm_any::Backward,
    &functions::Activate,
    &functions::ActivateBackward,
    &functions::Glu,
    &functions::GluBackward,
    &gate::DecayGate,
    &gate::DecayGateBackward,
    &rope::Rope,
    &step::Step,
    &Stage { name: "decay_cumsum", outputs: &["gc"] },
    &Stage { name: "decay_fwd", outputs: &["o", "hs", "ht"] },
    &Stage { name: "decay_out", outputs: &["o"] },
    &Stage { name: "decay_dstate", outputs: &["dh", "dh0"] },
    &Stage { name: "decay_bwd", outputs: &["dq", "dk", "dv", "dg"] },
    &Stage { name: "delta_gates", outputs: &["gvec"] },
    &Stage { name: "delta_intra", outputs: &["tm", "rk", "pm", "rq"] },
    &Stage { name: "delta_through", outputs: &["ha"] },
    &segments::GroupSum,
    &segments::Join { delta: true },
    &segments::Join { delta: false },
    &Stage { name: "delta_fwd", outputs: &["o", "hs", "us", "ht"] },
    &Stage { name: "delta_dstate", outputs: &["dh", "dx", "dh0"] },
    &Stage { name: "delta_bwd", outputs: &["dq", "dk", "dv", "dg", "dbeta"] },
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
    fn cases_fit_the_abi_of_every_embedded_kernel() {
        for bundle in Arch::ALL.into_iter().filter_map(|a| embedded(a).ok()) {
            // A kernel without a check is refused when it is loaded, unless hardware has confirmed it by other means.
            for (kernel, check) in bundle.kernels().iter().filter_map(|k| Some((k, check_of(&k.kernel)?))) {
                let cases = check.cases(kernel).unwrap();
                assert!(!cases.is_empty(), "{}", kernel.name);
                for case in cases {
                    case.fits(kernel).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_kernel_has_one_check() {
        for (i, check) in CHECKS.iter().enumerate() {
            assert!(CHECKS[..i].iter().all(|c| c.kernel() != check.kernel()), "{}", check.kernel());
        }
    }
}
