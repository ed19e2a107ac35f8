//! Rows of one head laid out for block products: padded with zeros to whole vectors and whole blocks, and transposed
//! block by block where they are the right-hand side of scores.

use std::ops::Range;

use flashlin_tensor::cpu::vectorized;

use super::plan::{BLOCK, Plan, Span};
use crate::{
    rows::Rows,
    simd::{Arch, Real, padded, transpose},
};

/// Elements that one group of sequences may have in panels.
const PANELS: usize = 8 << 20;

/// Sequences in groups whose panels fit [`PANELS`] (at least one each), which bounds their memory.
pub(super) fn groups(plan: &Plan) -> Vec<Range<usize>> {
    let size = |s: &Span| (s.keys + s.queries) * plan.q_heads * (plan.k_dim + plan.v_dim);
    let (mut out, mut start, mut held) = (Vec::new(), 0, 0);
    for (i, s) in plan.spans.iter().enumerate() {
        if i > start && held + size(s) > PANELS {
            out.push(start..i);
            (start, held) = (i, 0);
        }
        held += size(s);
    }
    out.push(start..plan.spans.len());
    out
}

/// A `[tokens, heads, width]` operand.
pub(super) struct Operand<'a> {
    pub rows: Rows<'a>,
    pub heads: usize,
    pub width: usize,
}

impl Operand<'_> {
    /// Tokens `first..first + n` of head `h` as `[rows][padded(width)]`, times `scale`; the rest is zero.
    pub fn panel<R: Real>(&self, h: usize, first: usize, n: usize, rows: usize, scale: f64) -> Vec<R> {
        let ld = padded(self.width);
        let mut out = vec![R::ZERO; rows * ld];
        let mut buf = vec![R::ZERO; self.width];
        let scale = R::from_f64(scale);
        vectorized(
            #[inline(always)]
            || {
                for (t, out) in out.chunks_exact_mut(ld).enumerate().take(n) {
                    let row = self.rows.row((first + t) * self.heads + h, &mut buf);
                    for (o, &x) in out.iter_mut().zip(row) {
                        *o = x * scale;
                    }
                }
            },
        );
        out
    }
}

/// Each block of [`BLOCK`] rows of length `ld` transposed to `[ld][BLOCK]`.
pub(super) fn block_transposes<R: Real>(rows: &[R], ld: usize) -> Vec<R> {
    let (arch, mut out) = (Arch::new(), vec![R::ZERO; rows.len()]);
    for (src, dst) in rows.chunks_exact(BLOCK * ld).zip(out.chunks_exact_mut(BLOCK * ld)) {
        transpose(arch, src, ld, BLOCK, ld, dst, BLOCK);
    }
    out
}
