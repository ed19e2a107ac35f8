//! Shapes, strides and broadcasting. Strides count elements and are never negative; 0 repeats.

use crate::{Error, Result};

/// Shape, strides and offset (in elements) of a view into storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub dims: Vec<usize>,
    pub strides: Vec<usize>,
    pub offset: usize,
}

impl Layout {
    pub fn contiguous(dims: &[usize]) -> Self {
        Layout { dims: dims.to_vec(), strides: row_major(dims), offset: 0 }
    }

    pub fn numel(&self) -> usize {
        self.dims.iter().product()
    }

    /// Row-major without gaps (dims of size 1 may have any stride).
    pub fn is_contiguous(&self) -> bool {
        let mut expect = 1;
        for (&d, &s) in self.dims.iter().zip(&self.strides).rev() {
            if d == 0 {
                return true;
            }
            if d != 1 && s != expect {
                return false;
            }
            expect *= d;
        }
        true
    }

    /// Elements from the offset to one past the last reachable one.
    pub fn span(&self) -> usize {
        if self.dims.contains(&0) {
            return 0;
        }
        1 + self.dims.iter().zip(&self.strides).map(|(d, s)| (d - 1) * s).sum::<usize>()
    }

    /// Offsets (relative to `self.offset`) of every row along the last dimension, in order.
    pub fn rows(&self) -> RowOffsets<'_> {
        let outer = self.dims.len().saturating_sub(1);
        RowOffsets { layout: self, outer }
    }
}

/// Random access to the start of each innermost row of a layout.
pub(crate) struct RowOffsets<'a> {
    layout: &'a Layout,
    outer: usize,
}

impl RowOffsets<'_> {
    pub fn count(&self) -> usize {
        self.layout.dims[..self.outer].iter().product()
    }

    pub fn at(&self, mut row: usize) -> usize {
        let mut off = 0;
        for i in (0..self.outer).rev() {
            let d = self.layout.dims[i];
            off += (row % d) * self.layout.strides[i];
            row /= d;
        }
        off
    }
}

/// Strides of a row-major array.
pub(crate) fn row_major(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (0..dims.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * dims[i + 1].max(1);
    }
    strides
}

/// Number of elements; an overflow is an error.
pub(crate) fn checked_numel(op: &'static str, dims: &[usize], elem: usize) -> Result<usize> {
    dims.iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|n| n.checked_mul(elem).is_some_and(|b| b <= isize::MAX as usize))
        .ok_or_else(|| Error::shape(op, "shape", dims, "a size that fits in memory"))
}

/// The common shape of two operands under NumPy's rules.
pub(crate) fn broadcast(op: &'static str, a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let n = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| if i + s.len() < n { 1 } else { s[i + s.len() - n] };
    (0..n)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Error::shape(op, "rhs", b, format!("a shape that broadcasts with {a:?}"))),
        })
        .collect()
}

/// A strided view of typed storage, for kernels that accept slices of fused projections.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, T> {
    /// Elements from the view's first one on; element `[i, j, ..]` is at `i * strides[0] + j * strides[1] + ..`.
    pub data: &'a [T],
    /// Size of each dimension.
    pub dims: &'a [usize],
    /// Distance in elements along each dimension.
    pub strides: &'a [usize],
}

impl<'a, T> Strided<'a, T> {
    /// The innermost row at the given leading index (`idx.len() + 1 == dims.len()`); its stride must be 1.
    #[inline(always)]
    pub fn row(&self, idx: &[usize]) -> &'a [T] {
        let n = self.dims[self.dims.len() - 1];
        if n == 0 {
            return &[];
        }
        let off: usize = idx.iter().zip(self.strides).map(|(i, s)| i * s).sum();
        &self.data[off..off + n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        assert_eq!(broadcast("t", &[2, 1, 3], &[4, 1]).unwrap(), [2, 4, 3]);
        assert_eq!(broadcast("t", &[], &[5]).unwrap(), [5]);
        assert_eq!(broadcast("t", &[0], &[1]).unwrap(), [0]);
        assert!(broadcast("t", &[2], &[3]).is_err());
    }

    #[test]
    fn contiguity_ignores_unit_dims() {
        let mut l = Layout::contiguous(&[3, 1, 4]);
        l.strides[1] = 77;
        assert!(l.is_contiguous());
        l.strides[0] = 8;
        assert!(!l.is_contiguous());
        assert_eq!(l.span(), 2 * 8 + 4);
    }

    #[test]
    fn huge_sizes_are_refused() {
        assert!(checked_numel("t", &[usize::MAX, 2], 4).is_err());
        assert!(checked_numel("t", &[1 << 62], 4).is_err());
        assert_eq!(checked_numel("t", &[], 4).unwrap(), 1);
    }
}
