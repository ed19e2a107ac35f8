//! The family on a GPU.

use flashlin_tensor::Result;

use super::args::DeltaArgs;
use super::composed;
use crate::{PackedSeqs, SeqOutput};

/// A checked call.
pub(super) fn run(a: &DeltaArgs<'_>, seqs: &PackedSeqs) -> Result<SeqOutput> {
    composed::run(a, seqs)
}
