//! The family on a GPU.

use flashlin_tensor::Result;

use super::api::{DecayArgs, Sizes};
use super::composed;
use crate::{PackedSeqs, SeqOutput};

/// A checked call.
pub(super) fn run(a: &DecayArgs<'_>, s: Sizes, seqs: &PackedSeqs) -> Result<SeqOutput> {
    composed::run(a, s, seqs)
}
