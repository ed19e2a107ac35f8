//! The list of operators. Listings, docs, conformance tests and benchmarks iterate it.

use flashlin_tensor::DType;

use crate::Mode;

/// What an operator is and which combinations it serves.
#[derive(Debug)]
pub struct OpInfo {
    /// Name as users write it.
    pub name: &'static str,
    /// Math family: the module it lives in.
    pub family: &'static str,
    /// The formula or a one-line description.
    pub summary: &'static str,
    /// Where the mathematics comes from.
    pub source: &'static str,
    /// Forms it has (empty for pointwise modules).
    pub modes: &'static [Mode],
    /// Input dtypes it serves.
    pub dtypes: &'static [DType],
    /// Kinds of devices it runs on.
    pub devices: &'static [&'static str],
    /// Names of the inputs that receive a gradient.
    pub grads: &'static [&'static str],
}

/// All operators, family by family.
pub static OPS: &[&OpInfo] = &[
    // One entry a line, so that families can be added side by side.
    &crate::activation::ACTIVATION,
    &crate::activation::GLU,
    &crate::delta::DELTA_RULE,
    &crate::delta::GATED_DELTA_RULE,
    &crate::delta::KDA,
    &crate::delta::COMBA,
    &crate::gate::DECAY_GATE,
    &crate::gate::LOG_SIGMOID_GATE,
    &crate::norm::NORM,
    &crate::conv::SHORT_CONV,
    &crate::decay::LINEAR_ATTN,
    &crate::decay::RETENTION,
    &crate::decay::LIGHTNING_ATTN,
    &crate::decay::SIMPLE_GLA,
    &crate::decay::GLA,
    &crate::decay::RWKV6,
    &crate::decay::SSD,
    &crate::rope::ROPE,
    &crate::loss::CROSS_ENTROPY,
    &crate::loss::LINEAR_CROSS_ENTROPY,
    &crate::softmax::ATTENTION,
    &crate::maps::FEATURE_MAP,
    &crate::scan::LINEAR_SCAN,
    &crate::scan::CUMSUM,
    &crate::scan::LOGCUMSUMEXP,
    &crate::scan::SELECTIVE_SCAN,
    &crate::slots::SLOTS,
];

/// The operator with this name.
pub fn find_op(name: &str) -> Option<&'static OpInfo> {
    OPS.iter().copied().find(|op| op.name == name)
}
