//! Products of stored half precision through f32 `gemm`: blocks of the operands are widened as they are needed, so no
//! operand is ever held whole in f32. Serves f16 everywhere, bf16 where the processor has no dot product for it, and
//! mixed f32 and half operands.

use gemm::Parallelism;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::{Matrix, gemm_into};
use crate::{Element, Result, cpu::vectorized, storage::HostBuffer};

/// Rows and columns of the output that one task computes; k is taken in blocks of `DEPTH`, which fixes the order of
/// the sums.
const ROWS: usize = 256;
const COLS: usize = 256;
const DEPTH: usize = 512;

/// A float type that is computed in f32.
pub(super) trait Stored: Element {
    /// Widens equally long slices to f32.
    fn widen(src: &[Self], out: &mut [f32]);
    /// Rounds equally long slices from f32.
    fn narrow(src: &[f32], out: &mut [Self]);
}

impl Stored for bf16 {
    fn widen(src: &[Self], out: &mut [f32]) {
        vectorized(
            #[inline(always)]
            || out.iter_mut().zip(src).for_each(|(o, x)| *o = Element::to_f32(*x)),
        );
    }

    fn narrow(src: &[f32], out: &mut [Self]) {
        vectorized(
            #[inline(always)]
            || out.iter_mut().zip(src).for_each(|(o, x)| *o = <bf16 as Element>::from_f32(*x)),
        );
    }
}

impl Stored for f16 {
    fn widen(src: &[Self], out: &mut [f32]) {
        src.convert_to_f32_slice(out);
    }

    fn narrow(src: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(src);
    }
}

impl Stored for f32 {
    fn widen(src: &[Self], out: &mut [f32]) {
        out.copy_from_slice(src);
    }

    fn narrow(src: &[f32], out: &mut [Self]) {
        out.copy_from_slice(src);
    }
}

/// out (rows `ld` apart) = a b, or out + a b (for f32).
///
/// # Errors
/// When memory is short.
pub(super) fn gemm<A: Stored, B: Stored, O: Stored>(
    out: &mut [O],
    ld: usize,
    add: bool,
    a: Matrix<A>,
    b: Matrix<B>,
    parallel: bool,
) -> Result<()> {
    let (m, n) = (a.rows, b.cols);
    assert!(a.cols == b.rows && ld >= n && out.len() >= (m - 1) * ld + n);
    let out = &mut out[..(m - 1) * ld + n];
    // Rows of blocks are split off the output; the blocks of a row are collected and copied in, row by row.
    let band = |(i, out): (usize, &mut [O])| -> Result<()> {
        let rows = (out.len() + ld - n) / ld;
        let row = i * ROWS;
        let mut parts: Vec<(usize, HostBuffer)> = Vec::new();
        let block = |j: usize| -> Result<(usize, HostBuffer)> {
            Ok((j, sum_block(a, b, row, rows, j * COLS, COLS.min(n - j * COLS))?))
        };
        let blocks = 0..n.div_ceil(COLS);
        if parallel {
            blocks
                .into_par_iter()
                .map(block)
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .for_each(|p| parts.push(p));
        } else {
            for j in blocks {
                parts.push(block(j)?);
            }
        }
        for (j, sums) in &parts {
            let cols = COLS.min(n - j * COLS);
            let sums = bytemuck::cast_slice::<u8, f32>(sums.bytes());
            for (r, sums) in sums.chunks_exact(cols).enumerate() {
                let out = &mut out[r * ld + j * COLS..][..cols];
                if add {
                    let out = bytemuck::cast_slice_mut::<O, f32>(out);
                    out.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
                } else {
                    O::narrow(sums, out);
                }
            }
        }
        Ok(())
    };
    if parallel {
        out.par_chunks_mut(ROWS * ld).enumerate().try_for_each(band)
    } else {
        out.chunks_mut(ROWS * ld).enumerate().try_for_each(band)
    }
}

/// One block of the output, in f32.
fn sum_block<A: Stored, B: Stored>(
    a: Matrix<A>,
    b: Matrix<B>,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
) -> Result<HostBuffer> {
    let depth = DEPTH.min(a.cols);
    let mut sums = HostBuffer::scratch(rows * cols * 4)?;
    let mut wide_a = HostBuffer::scratch(rows * depth * 4)?;
    let mut wide_b = HostBuffer::scratch(cols * depth * 4)?;
    for k in (0..a.cols).step_by(depth) {
        let d = depth.min(a.cols - k);
        let pa = widened(a, (row, rows), (k, d), bytemuck::cast_slice_mut(wide_a.bytes_mut()));
        let pb = widened(b, (k, d), (col, cols), bytemuck::cast_slice_mut(wide_b.bytes_mut()));
        let out = bytemuck::cast_slice_mut(sums.bytes_mut());
        gemm_into(out, cols, k > 0, pa, pb, Parallelism::None);
    }
    Ok(sums)
}

/// The block of `x` with these (first, count) rows and columns, widened in the order it is stored in.
fn widened<'a, T: Stored>(
    x: Matrix<T>,
    (row, rows): (usize, usize),
    (col, cols): (usize, usize),
    out: &'a mut [f32],
) -> Matrix<'a, f32> {
    let start = &x.data[row * x.row_stride + col * x.col_stride..];
    let out = &mut out[..rows * cols];
    if x.row_stride == 1 && x.col_stride != 1 {
        for (j, o) in out.chunks_exact_mut(rows).enumerate() {
            T::widen(&start[j * x.col_stride..][..rows], o);
        }
        return Matrix { data: out, rows, cols, row_stride: 1, col_stride: rows };
    }
    for (i, o) in out.chunks_exact_mut(cols).enumerate() {
        let src = &start[i * x.row_stride..];
        if x.col_stride == 1 {
            T::widen(&src[..cols], o);
        } else {
            o.iter_mut().enumerate().for_each(|(j, o)| *o = src[j * x.col_stride].to_f32());
        }
    }
    Matrix { data: out, rows, cols, row_stride: cols, col_stride: 1 }
}
