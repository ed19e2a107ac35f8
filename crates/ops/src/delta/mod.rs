#![doc = include_str!("README.md")]

mod args;
mod composed;
mod conform;
mod cpu;
mod cuda;
mod flops;
pub mod reference;
mod resume;
mod run;
mod step;
pub mod substeps;
#[cfg(test)]
mod tests;

pub use args::{DeltaArgs, DeltaGate, EraseOrder, GateActivation};
pub use conform::Conformance;
pub(crate) use cpu::L2_EPS;
use flashlin_tensor::{DType, Result};
pub use flops::chunk_matrix_flops;
pub use resume::delta_step_on;
pub use step::{DeltaStep, StepInputs};
pub use substeps::{DELTA_PRODUCT, DPLR, DeltaProductArgs, DplrArgs, IPLR, Settings, delta_product, dplr};

use crate::{Mode, OpInfo, SeqOutput};

/// Runs the delta recurrence.
///
/// Gradients flow to q, k, v, the erase key, beta, the gate (logit or log-decay), `A_log`, `dt_bias` and the initial
/// state, from the outputs and from the final state.
///
/// # Errors
/// When a shape, dtype, device or option does not fit; the message names the argument, what came and what was
/// expected.
pub fn delta_rule(args: DeltaArgs<'_>) -> Result<SeqOutput> {
    run::run(&args)
}

const COMMON: OpInfo = OpInfo {
    name: "delta_rule",
    family: "delta",
    summary: "S += k (beta (v - S^T k))^T; o = scale S^T q",
    source: "arXiv:2406.06484",
    modes: &[Mode::Chunk, Mode::Recurrent],
    dtypes: &[DType::F32, DType::BF16, DType::F16, DType::F64],
    devices: &["cpu", "cuda"],
    grads: &["q", "k", "v", "beta", "initial_state"],
};

/// Registry entry of the delta rule.
pub static DELTA_RULE: OpInfo = COMMON;

/// Registry entry of the gated delta rule.
pub static GATED_DELTA_RULE: OpInfo = OpInfo {
    name: "gated_delta_rule",
    summary: "S <- e^g S; S += k (beta (v - S^T k))^T; o = scale S^T q",
    source: "arXiv:2412.06464",
    grads: &["q", "k", "v", "beta", "g", "a_log", "dt_bias", "initial_state"],
    ..COMMON
};

/// Registry entry of Kimi Delta Attention.
pub static KDA: OpInfo = OpInfo {
    name: "kda",
    summary: "S <- diag(e^g) S; S += k (beta (v - S^T k))^T; o = scale S^T q",
    source: "arXiv:2510.26692",
    grads: &["q", "k", "v", "beta", "g", "a_log", "dt_bias", "initial_state"],
    ..COMMON
};

/// Registry entry of Comba.
pub static COMBA: OpInfo = OpInfo {
    name: "comba",
    summary: "y = v - S^T p; S <- e^g S + k (beta y)^T; o = scale S^T q",
    source: "arXiv:2506.02475",
    grads: &["q", "k", "v", "erase", "beta", "g", "a_log", "dt_bias", "initial_state"],
    ..COMMON
};
