//! Rotary position embedding at the positions of the context.

use flashlin_ops::rope::{self, Offset, Positions};
use flashlin_tensor::Var;

use crate::{Result, layer::LayerCtx};

/// Rotates pairs of channels (halves, as NeoX does) by position, going on from what each sequence has seen.
pub struct Rotary {
    inner: rope::Rotary,
}

impl Rotary {
    /// Rotation of heads of `dim` channels with this base.
    ///
    /// # Errors
    /// When `dim` is odd or the base is not positive.
    pub fn new(dim: usize, base: f64) -> Result<Self> {
        Ok(Rotary { inner: rope::Rotary::new(dim, base)? })
    }

    /// Queries and keys `[B, T, H, D]` to the same shapes.
    ///
    /// # Errors
    /// When the heads are narrower than `dim`.
    pub fn forward(&self, q: &Var, k: &Var, ctx: &LayerCtx<'_>) -> Result<(Var, Var)> {
        let seen: Vec<i64> = ctx.seen.iter().map(|&n| n as i64).collect();
        let offset = if seen.is_empty() { Offset::Same(0) } else { Offset::Each(&seen) };
        Ok(self.inner.apply(q, k, Positions { offset, seqs: ctx.seqs, max_len: None })?)
    }
}
