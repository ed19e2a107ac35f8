//! Which suite stands for which operators of the registry: what `flashlin verify-ops` and the tests walk over.

use flashlin_tensor::Device;

use super::checks::CHECKS;
use super::module::{MODULE_CHECKS, ModuleOp};
use super::{Report, SequenceOp};
use crate::{
    OpInfo, activation, conv, decay, delta, find_op, gate, levels, loss, maps, norm, path, rope, rwkv, scan,
    slots, softmax, solver, sparse,
};

/// An operator's face for the suite.
#[derive(Clone, Copy)]
pub enum Subject {
    /// With a recurrence.
    Sequence(&'static dyn SequenceOp),
    /// Without one.
    Module(&'static dyn ModuleOp),
}

/// A suite and the registry entries that it stands for.
pub struct Entry {
    /// What is run.
    pub subject: Subject,
    /// Names in the registry.
    pub ops: &'static [&'static str],
}

const fn module(subject: &'static dyn ModuleOp, ops: &'static [&'static str]) -> Entry {
    Entry { subject: Subject::Module(subject), ops }
}

const fn sequence(subject: &'static dyn SequenceOp, ops: &'static [&'static str]) -> Entry {
    Entry { subject: Subject::Sequence(subject), ops }
}

/// All suites. A test holds that they cover the registry, with every input that a registry entry gives a gradient.
pub static ENTRIES: &[Entry] = &[
    sequence(
        &decay::Conformance,
        &["linear_attn", "retention", "lightning_attn", "simple_gla", "gla", "rwkv6", "ssd"],
    ),
    sequence(&delta::Conformance, &["delta_rule", "gated_delta_rule", "kda", "comba"]),
    module(&softmax::conform::Conformance, &["attention"]),
    module(&conv::conform::Conformance, &["short_conv"]),
    module(&norm::conform::Conformance, &["norm"]),
    module(&rope::conform::Conformance, &["rope"]),
    module(&activation::conform::Elementwise, &["activation"]),
    module(&activation::conform::Gated, &["swiglu"]),
    module(&gate::conform::Decay, &["decay_gate"]),
    module(&gate::conform::LogSigmoid, &["log_sigmoid_gate"]),
    module(&loss::conform::Plain, &["cross_entropy"]),
    module(&loss::conform::Linear, &["linear_cross_entropy"]),
    module(&maps::conform::Conformance, &["feature_map"]),
    module(&scan::conform::Linear, &["linear_scan"]),
    module(&scan::conform::Sum, &["cumsum"]),
    module(&scan::conform::LogSum, &["logcumsumexp"]),
    module(&scan::selective::conform::Conformance, &["selective_scan"]),
    module(&slots::conform::Conformance, &["slot_attention"]),
    module(&loss::conform::Divergence, &["linear_kl_divergence"]),
    module(&levels::conform::Conformance, &["log_linear_attn"]),
    module(&solver::conform::Conformance, &["mesa"]),
    module(&path::conform::Conformance, &["path_attn"]),
    module(&sparse::conform::Conformance, &["nsa"]),
    module(&rwkv::conform::Shift, &["token_shift"]),
    module(&rwkv::conform::Pointwise, &["rwkv7_pointwise"]),
    sequence(&delta::substeps::conform::Product, &["delta_product"]),
    sequence(&delta::substeps::conform::Generalised, &["dplr", "iplr"]),
];

impl Entry {
    /// The suite's name.
    pub fn name(&self) -> &'static str {
        match self.subject {
            Subject::Sequence(op) => op.name(),
            Subject::Module(op) => op.name(),
        }
    }

    /// Names of its checks.
    pub fn checks(&self) -> Vec<&'static str> {
        match self.subject {
            Subject::Sequence(_) => CHECKS.iter().map(|c| c.0).collect(),
            Subject::Module(_) => MODULE_CHECKS.iter().map(|c| c.0).collect(),
        }
    }

    /// Runs one check; None when it has none of that name.
    pub fn run(&self, check: &str, device: &Device) -> Option<Report> {
        match self.subject {
            Subject::Sequence(op) => CHECKS.iter().find(|c| c.0 == check).map(|c| c.1(op, device)),
            Subject::Module(op) => MODULE_CHECKS.iter().find(|c| c.0 == check).map(|c| c.1(op, device)),
        }
    }

    /// The registry entries that it stands for.
    pub fn infos(&self) -> impl Iterator<Item = &'static OpInfo> {
        self.ops.iter().filter_map(|name| find_op(name))
    }

    /// Whether a user who says `name` means this: the suite, one of its operators, or their family.
    pub fn answers_to(&self, name: &str) -> bool {
        self.name() == name || self.infos().any(|op| op.name == name || op.family == name)
    }
}
