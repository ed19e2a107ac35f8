//! Substitution inside a 16 x 16 diagonal block of the chunk's triangular system, forward and transposed. Written with
//! explicit vectors: the sums of a row must stay in registers while earlier rows are subtracted.

use pulp::{Simd, WithSimd};

use super::chunk::beta_row;
use super::panels::Spec;
use crate::simd::{PAD, Real};

/// `y -= Ap u` and `u = beta y` for rows `i..i + 16`, in order, within the block (`u` before row i is not read).
pub(super) struct Forward<'a, R> {
    pub s: &'a Spec,
    /// `[c, c]`, strictly lower triangular.
    pub ap: &'a [R],
    pub beta: &'a [R],
    pub c: usize,
    pub i: usize,
    pub y: &'a mut [R],
    pub u: &'a mut [R],
}

impl<R: Real> WithSimd for Forward<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Forward { s, ap, beta, c, i, y, u } = self;
        let vp = s.vp();
        for t in i..i + PAD {
            let (done, rest) = u.split_at_mut(t * vp);
            let row = &mut y[t * vp..][..vp];
            subtract_rows::<S, R>(simd, row, &ap[t * c + i..][..t - i], &done[i * vp..]);
            beta_row(s, beta, t, row, &mut rest[..vp]);
        }
    }
}

/// `du -= Ap^T dY` and `dY = beta du` for rows `i..i + 16`, from the last to the first; `z` holds `-dY`.
pub(super) struct Transposed<'a, R> {
    pub s: &'a Spec,
    /// `[c, c]`, strictly lower triangular.
    pub ap: &'a [R],
    pub beta: &'a [R],
    pub c: usize,
    pub i: usize,
    pub du: &'a mut [R],
    pub z: &'a mut [R],
}

impl<R: Real> WithSimd for Transposed<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Transposed { s, ap, beta, c, i, du, z } = self;
        let vp = s.vp();
        for t in (i..i + PAD).rev() {
            let (head, later) = z.split_at_mut((t + 1) * vp);
            let row = &mut du[t * vp..][..vp];
            let n = i + PAD - t - 1;
            let mut weights = [R::ZERO; PAD];
            for p in 0..n {
                weights[p] = -ap[(t + 1 + p) * c + t];
            }
            subtract_rows::<S, R>(simd, row, &weights[..n], later);
            let out = &mut head[t * vp..];
            beta_row(s, beta, t, row, out);
            out.iter_mut().for_each(|x| *x = -*x);
        }
    }
}

/// `row -= sum_r weights[r] rows[r]`, with `rows` as wide as `row`.
#[inline(always)]
fn subtract_rows<S: Simd, R: Real>(simd: S, row: &mut [R], weights: &[R], rows: &[R]) {
    let (lanes, width) = (R::lanes::<S>(), row.len());
    let mut col = 0;
    while col + 4 * lanes <= width {
        subtract_tile::<S, R, 4>(simd, row, weights, rows, col);
        col += 4 * lanes;
    }
    while col < width {
        subtract_tile::<S, R, 1>(simd, row, weights, rows, col);
        col += lanes;
    }
}

/// The part of N registers at column `col`.
#[inline(always)]
fn subtract_tile<S: Simd, R: Real, const N: usize>(
    simd: S,
    row: &mut [R],
    weights: &[R],
    rows: &[R],
    col: usize,
) {
    let (ld, width) = (row.len(), N * R::lanes::<S>());
    let mut sums = [R::splat(simd, R::ZERO); N];
    for (&w, other) in weights.iter().zip(rows.chunks_exact(ld)) {
        let (w, other) = (R::splat(simd, w), R::vecs::<S>(&other[col..col + width]));
        for j in 0..N {
            sums[j] = R::vfma(simd, w, other[j], sums[j]);
        }
    }
    let out = R::vecs_mut::<S>(&mut row[col..col + width]);
    for j in 0..N {
        out[j] = R::vsub(simd, out[j], sums[j]);
    }
}
