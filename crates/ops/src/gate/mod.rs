#![doc = include_str!("README.md")]

pub(crate) mod conform;
mod cuda;
mod decay_gate;
pub mod formulas;
mod log_sigmoid;
pub mod reference;
#[cfg(test)]
mod tests;

pub use decay_gate::{DecayGateArgs, decay_gate};
use flashlin_tensor::DType;
pub use formulas::DecayGate;
pub use log_sigmoid::log_sigmoid_gate;

use crate::OpInfo;

const DTYPES: &[DType] = &[DType::F32, DType::BF16, DType::F16, DType::F64];

/// Registry entry of the decay gates.
pub static DECAY_GATE: OpInfo = OpInfo {
    name: "decay_gate",
    family: "gate",
    summary: "g = -exp(A_log) softplus(x + dt_bias) | lower_bound sigmoid(exp(A_log) (x + dt_bias))",
    source: "arXiv:2412.06464, arXiv:2510.26692",
    modes: &[],
    dtypes: DTYPES,
    devices: &["cpu", "cuda"],
    grads: &["x", "a_log", "dt_bias"],
};

/// Registry entry of GLA's gate.
pub static LOG_SIGMOID_GATE: OpInfo = OpInfo {
    name: "log_sigmoid_gate",
    family: "gate",
    summary: "g = max(log sigmoid(x) / normalizer, clamp_min)",
    source: "arXiv:2312.06635",
    modes: &[],
    dtypes: DTYPES,
    devices: &["cpu", "cuda"],
    grads: &["x"],
};
