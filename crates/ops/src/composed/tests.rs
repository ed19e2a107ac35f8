//! The general path through the suites of both families, on the CPU.

use flashlin_tensor::Device;

use super::force;
use crate::conformance::{
    Arrays, Case, Input, Outcome, Outputs, Report, SequenceOp, Vars, layouts_agree, low_precision,
    matches_reference, one_gradient_at_a_time, packed_equals_separate, split_continues, strong_decays,
    views_agree,
};
use crate::{Mode, Result, decay, delta};

/// A family without the settings that this path does not know: modes and sizes of chunks.
struct Plain<T>(T);

impl<T: SequenceOp> SequenceOp for Plain<T> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn variants(&self) -> Vec<&'static str> {
        self.0.variants()
    }

    fn modes(&self) -> Vec<Mode> {
        vec![Mode::Chunk]
    }

    fn chunk_sizes(&self) -> Vec<usize> {
        vec![super::CHUNK]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        self.0.inputs(case)
    }

    fn run(&self, case: &Case, vars: &Vars) -> Result<Outputs> {
        force(|| self.0.run(case, vars))
    }

    fn reference(&self, case: &Case, x: &Arrays, d_o: &[f64], d_state: &[f64]) -> Outcome {
        self.0.reference(case, x, d_o, d_state)
    }
}

macro_rules! suite {
    ($module:ident, $op:expr) => {
        mod $module {
            use super::*;

            suite!(@tests $op, matches_reference strong_decays packed_equals_separate split_continues layouts_agree views_agree
                one_gradient_at_a_time low_precision);
        }
    };
    (@tests $op:expr, $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                let report: Report = super::$check(&Plain($op), &Device::Cpu);
                report.assert();
            }
        )*
    };
}

suite!(decay_family, decay::Conformance);
suite!(delta_family, delta::Conformance);
