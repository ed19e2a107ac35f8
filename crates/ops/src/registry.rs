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
    &crate::delta::DELTA_PRODUCT,
    &crate::delta::DPLR,
    &crate::delta::IPLR,
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
    &crate::levels::LOG_LINEAR_ATTN,
    &crate::rope::ROPE,
    &crate::rwkv::TOKEN_SHIFT,
    &crate::rwkv::RWKV7_POINTWISE,
    &crate::loss::CROSS_ENTROPY,
    &crate::loss::LINEAR_CROSS_ENTROPY,
    &crate::loss::LINEAR_KL_DIVERGENCE,
    &crate::softmax::ATTENTION,
    &crate::path::PATH_ATTN,
    &crate::sparse::NSA,
    &crate::solver::MESA,
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
