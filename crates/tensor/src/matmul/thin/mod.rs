//! Thin products: a few rows times the transpose of a weight, the whole of a decode step. The weight is read once, as it
//! is stored (bf16, f16 or f32), at the speed of the memory; arithmetic is f32. More rows than [`MAX_ROWS`] come here
//! only where their bits must not depend on their number.
//!
//! A sum runs over 16 lanes in one fixed order that depends on the length alone, so a row's bits do not change with
//! the number of rows beside it, with threads, or with how the weight's rows are grouped.

#[cfg(target_arch = "x86_64")]
mod avx512;

use rayon::prelude::*;

use super::panels::Stored;
use crate::{
    Element,
    cpu::{
        features::{Isa, has_fma},
        vectorized,
    },
};

/// Products with at most this many rows on the left take this path.
pub(crate) const MAX_ROWS: usize = 16;

/// Bytes of weight below which waking another thread costs more than it saves.
const SERIAL_BYTES: usize = 96 << 10;

/// Bytes of weight that a parallel task reads at least, and tasks for each thread: enough to even out a late start. The
/// bits do not depend on the cut.
const TASK_BYTES: usize = 64 << 10;
const TASKS_PER_THREAD: usize = 8;

/// Elements of one step: two vectors of 16 lanes.
const STEP: usize = 32;

/// A weight [rows, k] whose rows are contiguous and `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct WeightRows<'a, W> {
    pub data: &'a [W],
    pub rows: usize,
    pub k: usize,
    pub stride: usize,
}

impl<'a, W> WeightRows<'a, W> {
    fn row(&self, i: usize) -> &'a [W] {
        &self.data[i * self.stride..][..self.k]
    }

    /// The same rows under the name of the type that they are.
    fn cast<V: Element>(self) -> WeightRows<'a, V>
    where
        W: Element,
    {
        WeightRows { data: bytemuck::cast_slice(self.data), rows: self.rows, k: self.k, stride: self.stride }
    }
}

/// One of the products that share a left side: out [rows, weight.rows] = x weight^T.
pub(crate) struct Part<'a, W> {
    pub weight: WeightRows<'a, W>,
    pub out: &'a mut [f32],
}

/// The products of contiguous `x` [rows, k] with all weights, which have k in common; one parallel pass reads them all.
/// The sums are not rounded: the caller does that.
pub(crate) fn products<X: Stored, W: Stored>(x: &[X], parts: &mut [Part<W>]) {
    products_on(Isa::detect(), x, parts);
}

fn products_on<X: Stored, W: Stored>(isa: Isa, x: &[X], parts: &mut [Part<W>]) {
    let Some(k) = parts.first().map(|p| p.weight.k) else { return };
    assert!(k > 0 && x.len().is_multiple_of(k));
    let rows = x.len() / k;
    for Part { weight: w, out } in parts.iter() {
        assert!(w.rows > 0 && w.k == k && w.data.len() >= (w.rows - 1) * w.stride + k);
        assert!(out.len() == rows * w.rows);
    }
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() {
        return avx512::products(isa, x, k, parts);
    }
    let _ = isa;
    let x = Rows::widened::<X>(x, k, false);
    tasks(rows, parts, |w, block| portable(&x, w, block));
}

/// Runs `work` on all columns of all outputs: in pieces in parallel, or at once where there is little to read.
fn tasks<W: Stored>(rows: usize, parts: &mut [Part<W>], work: impl Fn(WeightRows<W>, &mut Block) + Sync) {
    let row_bytes = parts.first().map_or(0, |p| p.weight.k * W::DTYPE.size());
    let total: usize = parts.iter().map(|p| p.weight.rows).sum();
    if total * row_bytes <= SERIAL_BYTES {
        for Part { weight, out } in parts {
            work(*weight, &mut Block::new(out, rows, weight.rows, 0..weight.rows));
        }
        return;
    }
    let tasks = TASKS_PER_THREAD * rayon::current_num_threads();
    let per_task = total.div_ceil(tasks).max(TASK_BYTES / row_bytes).next_multiple_of(4);
    let pieces = parts.iter_mut().flat_map(|p| {
        let (weight, out) = (p.weight, Shared(p.out.as_mut_ptr()));
        (0..weight.rows).step_by(per_task).map(move |from| (weight, out, from))
    });
    pieces.collect::<Vec<_>>().into_par_iter().for_each(|(weight, out, from)| {
        let cols = from..(from + per_task).min(weight.rows);
        // SAFETY: `out` has rows * weight.rows elements (checked above); the pieces' columns do not overlap and lie
        // below weight.rows.
        work(weight, &mut unsafe { Block::from_raw(out.0, rows, weight.rows, cols) });
    });
}

/// The left side as a kernel wants it: each row padded with zeros to whole steps.
struct Rows<E> {
    data: Vec<E>,
    rows: usize,
    padded: usize,
}

impl<E: Element> Rows<E> {
    fn zeros(rows: usize, k: usize) -> Self {
        let padded = k.next_multiple_of(STEP);
        Rows { data: vec![E::from_f32(0.0); rows * padded], rows, padded }
    }

    fn row(&self, r: usize) -> &[E] {
        &self.data[r * self.padded..][..self.padded]
    }
}

impl Rows<f32> {
    /// With `split`, a step of 32 holds its 16 even elements before its 16 odd ones.
    fn widened<X: Stored>(x: &[X], k: usize, split: bool) -> Self {
        let mut all = Self::zeros(x.len() / k, k);
        for (to, from) in all.data.chunks_exact_mut(all.padded).zip(x.chunks_exact(k)) {
            X::widen(from, &mut to[..k]);
            if split {
                for step in to.chunks_exact_mut(STEP) {
                    let mut old = [0f32; STEP];
                    old.copy_from_slice(step);
                    for i in 0..STEP / 2 {
                        (step[i], step[STEP / 2 + i]) = (old[2 * i], old[2 * i + 1]);
                    }
                }
            }
        }
        all
    }
}

/// A pointer that tasks share; each writes columns of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: see `Block::from_raw`: tasks never touch the same element.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// Columns `cols` of a row-major output.
struct Block<'a> {
    at: *mut f32,
    rows: usize,
    width: usize,
    cols: std::ops::Range<usize>,
    life: std::marker::PhantomData<&'a mut [f32]>,
}

impl<'a> Block<'a> {
    fn new(out: &'a mut [f32], rows: usize, width: usize, cols: std::ops::Range<usize>) -> Self {
        assert!(out.len() >= rows * width);
        // SAFETY: the slice covers all rows and is borrowed mutably for the block's life.
        unsafe { Self::from_raw(out.as_mut_ptr(), rows, width, cols) }
    }

    /// # Safety
    /// `at` is valid for rows * width elements, and nobody else touches the columns `cols` meanwhile.
    unsafe fn from_raw(at: *mut f32, rows: usize, width: usize, cols: std::ops::Range<usize>) -> Self {
        assert!(cols.end <= width);
        Block { at, rows, width, cols, life: std::marker::PhantomData }
    }

    #[inline]
    fn set(&mut self, row: usize, col: usize, x: f32) {
        assert!(row < self.rows && self.cols.contains(&col));
        // SAFETY: checked above; the columns belong to this block.
        unsafe { self.at.add(row * self.width + col).write(x) }
    }
}

/// The same for any processor: weight rows are widened piece by piece, then multiplied in 16 lanes.
fn portable<W: Stored>(x: &Rows<f32>, w: WeightRows<W>, out: &mut Block) {
    for first in (0..x.rows).step_by(MAX_ROWS) {
        portable_rows(x, first..(first + MAX_ROWS).min(x.rows), w, out);
    }
}

/// At most [`MAX_ROWS`] rows of the left side.
fn portable_rows<W: Stored>(x: &Rows<f32>, rows: std::ops::Range<usize>, w: WeightRows<W>, out: &mut Block) {
    const PIECE: usize = 1024;
    let fused = has_fma();
    let mut wide = [0f32; PIECE];
    for col in out.cols.clone() {
        let mut acc = [[0f32; 16]; MAX_ROWS];
        for (i, piece) in w.row(col).chunks(PIECE).enumerate() {
            W::widen(piece, &mut wide[..piece.len()]);
            let padded = piece.len().next_multiple_of(16);
            wide[piece.len()..padded].fill(0.0);
            for (r, acc) in rows.clone().zip(&mut acc) {
                lanes(acc, &x.row(r)[i * PIECE..][..padded], &wide[..padded], fused);
            }
        }
        for (r, mut s) in rows.clone().zip(acc) {
            for half in [8, 4, 2, 1] {
                (0..half).for_each(|i| s[i] += s[i + half]);
            }
            out.set(r, col, s[0]);
        }
    }
}

fn lanes(acc: &mut [f32; 16], x: &[f32], w: &[f32], fused: bool) {
    vectorized(
        #[inline(always)]
        || {
            let mut a = *acc;
            for (x, w) in x.chunks_exact(16).zip(w.chunks_exact(16)) {
                for i in 0..16 {
                    a[i] = if fused { x[i].mul_add(w[i], a[i]) } else { x[i] * w[i] + a[i] };
                }
            }
            *acc = a;
        },
    );
}

#[cfg(test)]
mod tests;
