//! The checks that every sequence operator passes, as library functions over (operator, device): `#[test]`s run them on
//! the CPU, and a binary can run the same ones on a machine that has no cargo.
//!
//! # How an operator takes part
//! Implement [`SequenceOp`] on a unit struct: which variants (gate configurations) there are, the random inputs of a
//! [`Case`], one call over `Var`s, and the f64 reference with its gradients. Then, in the operator's `tests.rs`:
//!
//! ```ignore
//! crate::conformance!(gla_like, MyOp);
//! ```
//!
//! makes one `#[test]` a check, in a module of that name. [`verify`] runs all of them and returns what was measured.
//! An operator without a recurrence implements [`ModuleOp`] instead, and `crate::module_conformance!` makes its tests.
//! Either gets a line in [`ENTRIES`], which says what it stands for in the registry.
//!
//! # What is checked
//! | check | statement |
//! |---|---|
//! | [`reference_gradients`] | the backward of the f64 reference equals finite differences of its forward |
//! | [`matches_reference`] | every mode, chunk size, variant and shape (HV != H, K != V, odd dims), T in {0, 1, C-1, C, C+1, 3C+7}, dense: output, final state and all gradients equal the f64 reference; outputs start as NaN |
//! | [`strong_decays`] | the same with decays down to -20 a step (finite and exact) |
//! | [`packed_equals_separate`] | packed sequences, empty ones among them, equal the reference run one by one |
//! | [`split_continues`] | any split point: the second part, started from the first part's final state, continues |
//! | [`layouts_agree`] | both state layouts, with an initial state, also as a view with gaps |
//! | [`views_agree`] | inputs that are slices of a fused projection give the same bits as contiguous ones |
//! | [`threads_agree`] | the same bits on 1, 2 and 3 threads |
//! | [`one_gradient_at_a_time`] | tracking a single input gives the same gradient as tracking all |
//! | [`low_precision`] | bf16 and f16 inputs |
//!
//! Gradients are those of a loss that weighs the output and the final state with random non-zero numbers. Every
//! comparison is by relative L2 distance against the one table of [`tolerance`].

mod case;
mod checks;
mod compare;
mod entries;
mod grad_check;
mod module;
mod oracle;
mod run;
mod tape;
#[cfg(test)]
mod tests;

pub use case::{Arrays, Case, Fill, Input, Role, Shape};
pub use checks::{
    CHECKS, Check, layouts_agree, low_precision, matches_reference, one_gradient_at_a_time,
    packed_equals_separate, split_continues, strong_decays, threads_agree, verify, views_agree,
};
pub use compare::{Finding, Report, relative_l2, tolerance, tolerance_of_sum};
pub use entries::{ENTRIES, Entry, Subject};
pub use grad_check::{differences, grad_check};
pub use module::{MODULE_CHECKS, ModuleCheck, ModuleInput, ModuleOp};
pub use oracle::reference_gradients;
pub use run::{Outcome, Outputs, Vars, execute};
pub use tape::{Number, Traced, dot, trace};

use flashlin_tensor::{DType, Device, Tensor, poison_outputs};

use crate::{Error, Mode, Result, StateLayout};

/// An empty report for a check on a device, or one that says why the device cannot be used: every operator that the suite stands for must say that
/// it runs there. From here on outputs start as NaN: results must not rest on zeros that nobody wrote.
fn ready(op: &str, check: &str, device: &Device) -> std::result::Result<Report, Report> {
    let mut report = Report::default();
    poison_outputs(true);
    if *device == Device::Cpu {
        return Ok(report);
    }
    let entry = ENTRIES.iter().find(|e| e.name() == op);
    let mut infos = entry.into_iter().flat_map(Entry::infos).chain(crate::find_op(op)).peekable();
    let refused = match infos.peek() {
        None => Some(Error::invalid("verify-ops", "op", format!("{op} is not in the registry"))),
        Some(_) => infos.find(|info| !info.devices.contains(&"cuda")).map_or_else(
            || Tensor::zeros(&[1], DType::F32, device).err(),
            |info| {
                Some(Error::unsupported("verify-ops", format!("device {device}"), info.devices.join(", ")))
            },
        ),
    };
    match refused {
        None => Ok(report),
        Some(e) => {
            report.fail(op, check, format!("device {device}: {e}"));
            Err(report)
        }
    }
}

/// `f` on a pool of `threads` threads.
fn on_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> Result<T> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::invalid("conformance", "thread pool", e.to_string()))?;
    Ok(pool.install(f))
}

/// An operator as the suite sees it.
pub trait SequenceOp: Sync {
    /// Name for reports.
    fn name(&self) -> &'static str;

    /// Names of the configurations to go through (which gates, which options).
    fn variants(&self) -> Vec<&'static str>;

    /// Sizes to go through; T and B are set by the checks. Default: [`Shape::LIST`].
    fn shapes(&self) -> Vec<Shape> {
        Shape::LIST.to_vec()
    }

    /// Modes it has.
    fn modes(&self) -> Vec<Mode> {
        vec![Mode::Recurrent, Mode::Chunk]
    }

    /// Chunk sizes it takes.
    fn chunk_sizes(&self) -> Vec<usize> {
        vec![16, 32, 64]
    }

    /// Layouts of its state; empty when it has no state of shape `[N, HV, K, V]`.
    fn layouts(&self) -> Vec<StateLayout> {
        vec![StateLayout::KV, StateLayout::VK]
    }

    /// Random inputs of a case, without the initial state (the suite makes that: `[N, HV, K, V]` normals).
    fn inputs(&self, case: &Case) -> Vec<Input>;

    /// One call: inputs by name from `vars`, the rest (mode, chunk size, layout, sequences) from `case`. The state, in
    /// and out, has `case.layout`. Must ask for the final state.
    ///
    /// # Errors
    /// Whatever the operator reports; the suite takes an error as a failure.
    fn run(&self, case: &Case, vars: &Vars) -> Result<Outputs>;

    /// The reference in f64: outputs, and the gradients of `<o, d_o> + <state, d_state>` by input name. Arrays are
    /// contiguous with the tokens of all sequences one after another; states are `[N, HV, K, V]` whatever the layout.
    fn reference(&self, case: &Case, x: &Arrays, d_o: &[f64], d_state: &[f64]) -> Outcome;
}

/// One `#[test]` a check of the suite for an operator, on the CPU: `conformance!(module_name, OP);`.
#[macro_export]
macro_rules! conformance {
    ($module:ident, $op:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;

            $crate::conformance!(@tests $op, reference_gradients matches_reference strong_decays packed_equals_separate split_continues
                layouts_agree views_agree threads_agree one_gradient_at_a_time low_precision);
        }
    };
    (@tests $op:expr, $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                $crate::conformance::$check(&$op, &flashlin_tensor::Device::Cpu).assert();
            }
        )*
    };
}

/// One `#[test]` a check of the suite for a [`ModuleOp`], on the CPU: `module_conformance!(module_name, OP);`.
#[macro_export]
macro_rules! module_conformance {
    ($module:ident, $op:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;

            $crate::module_conformance!(@tests $op, reference_gradients matches_reference views_agree threads_agree
                one_gradient_at_a_time);
        }
    };
    (@tests $op:expr, $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                let checks = $crate::conformance::MODULE_CHECKS;
                let (_, check) = checks.iter().find(|c| c.0 == stringify!($check)).expect("a check of the suite");
                check(&$op, &flashlin_tensor::Device::Cpu).assert();
            }
        )*
    };
}
