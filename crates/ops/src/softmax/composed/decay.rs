//! Sums of log decays between queries and keys as products with triangles of ones, in blocks counted from the block of the query: decays have
//! one sign, so no sum of far ones cancels against another.

use std::ops::Range;

use flashlin_tensor::{DType, Device, Result, Tensor, cuda::kept};

use super::super::plan::Span;

/// Tokens of a block.
pub(super) const BLOCK: usize = 64;

/// The decays of one sequence, summed in blocks.
pub(super) struct Sums {
    heads: usize,
    /// Sums of a block up to each token and it, `[HQ, blocks, BLOCK]`
    upto: Tensor,
    /// Sums of a block after each token, `[HQ, blocks, BLOCK]`
    after: Tensor,
    /// Sums of whole blocks, `[HQ, blocks, 1]`
    whole: Tensor,
}

/// A triangle of ones `[n, n]`: 1 where the column is at or below the row (`lower`), strictly so where `strict`; else turned round.
fn triangle(n: usize, lower: bool, strict: bool, dtype: DType, device: &Device) -> Result<Tensor> {
    let one =
        |i: usize, j: usize| if lower { j < i || (j == i && !strict) } else { j > i || (j == i && !strict) };
    let ones = (0..n * n).map(|x| f32::from(one(x / n, x % n))).collect();
    kept(&Tensor::from_vec::<f32>(ones, &[n, n])?.to_dtype(dtype)?, device)
}

/// `[rows, n]` in blocks `[rows, blocks, BLOCK]`, filled up with zeros.
fn in_blocks(x: &Tensor) -> Result<Tensor> {
    let (rows, n) = (x.dim(0), x.dim(1));
    let blocks = n.div_ceil(BLOCK);
    let rest = Tensor::zeros(&[rows, blocks * BLOCK - n], x.dtype(), &x.device())?;
    Tensor::cat(&[x, &rest], 1)?.reshape(&[rows, blocks, BLOCK])
}

impl Sums {
    /// Of decays `[keys, HQ]`, H of whose heads share keys in groups.
    pub fn new(g: &Tensor, heads: usize) -> Result<Sums> {
        let (dtype, device) = (g.dtype(), g.device());
        let g = in_blocks(&g.transpose(0, 1)?.contiguous()?)?;
        // Row vectors times triangles: column j adds the rows that the triangle shows there.
        Ok(Sums {
            heads,
            upto: g.matmul(&triangle(BLOCK, false, false, dtype, &device)?)?,
            after: g.matmul(&triangle(BLOCK, true, true, dtype, &device)?)?,
            whole: g.sum(&[2], true)?,
        })
    }

    /// c_i' - c_j of queries and keys, `[H, G, rows, keys]`.
    pub fn differences(&self, s: &Span, rows: &Range<usize>, keys: &Range<usize>) -> Result<Tensor> {
        let (q_heads, blocks) = (self.upto.dim(0), self.upto.dim(1));
        // A query before the first key counts from it: what all keys of a query share drops out of its softmax.
        let place = s.place(rows.start).unwrap_or(0);
        let middle = place / BLOCK;
        let (dtype, device) = (self.upto.dtype(), self.upto.device());
        let piece = |x: &Tensor, from, n| x.narrow(1, from, n);
        let mut parts = Vec::new();
        if middle > 0 {
            let far =
                triangle(middle, false, true, dtype, &device)?.matmul(&piece(&self.whole, 0, middle)?)?;
            parts.push(piece(&self.after, 0, middle)?.add(&far)?.neg()?);
        }
        let rest = blocks - middle;
        let far = triangle(rest, true, true, dtype, &device)?.matmul(&piece(&self.whole, middle, rest)?)?;
        parts.push(piece(&self.upto, middle, rest)?.add(&far)?);
        let c = Tensor::cat(&parts.iter().collect::<Vec<_>>(), 1)?;
        let c = c.reshape(&[self.heads, q_heads / self.heads, blocks * BLOCK])?;
        let at_keys = c.narrow(2, keys.start, keys.len())?.unsqueeze(2)?;
        if s.place(rows.start).is_none() {
            return at_keys.neg();
        }
        c.narrow(2, place, rows.len())?.unsqueeze(3)?.sub(&at_keys)
    }
}

/// The gradient of decays `[keys, HQ]` from that of their running sums at the keys, `[H, G, 1, keys]`, whose sign is turned: minus the sum from a
/// token on, which is the sum before it, since the softmax does not see what all keys share (the queries' own gradients are 0 for that reason).
pub(super) fn gradient(dc: &Tensor) -> Result<Tensor> {
    let (heads, n) = (dc.dim(0) * dc.dim(1), dc.dim(3));
    let (dtype, device) = (dc.dtype(), dc.device());
    let blocks = in_blocks(&dc.reshape(&[heads, n])?)?;
    let count = blocks.dim(1);
    let within = blocks.matmul(&triangle(BLOCK, false, true, dtype, &device)?)?;
    let before = triangle(count, true, true, dtype, &device)?.matmul(&blocks.sum(&[2], true)?)?;
    within.add(&before)?.reshape(&[heads, count * BLOCK])?.narrow(1, 0, n)?.transpose(0, 1)
}
