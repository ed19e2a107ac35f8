//! Views (no copies): reshape, transpose, narrow, expand; and `contiguous`, the one place that copies strided data.

use rayon::prelude::*;

use crate::{
    Device, Element, Error, Result, Tensor,
    cpu::BLOCK,
    layout::{Layout, checked_numel, row_major},
    tensor::dispatch,
};

impl Tensor {
    fn with_layout(&self, layout: Layout) -> Tensor {
        Tensor { storage: self.storage.clone(), dtype: self.dtype, layout }
    }

    /// The same elements in another shape; a view when the layout is contiguous, else a copy.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&self, dims: &[usize]) -> Result<Tensor> {
        if checked_numel("reshape", dims, 1)? != self.numel() {
            let expected = format!("a shape with {} elements, as {:?}", self.numel(), self.dims());
            return Err(Error::shape("reshape", "dims", dims, expected));
        }
        if let Some(strides) = self.split_or_merge(dims) {
            let layout = Layout { dims: dims.to_vec(), strides, offset: self.layout.offset };
            return Ok(self.with_layout(layout));
        }
        let copy = self.contiguous()?;
        Ok(copy.with_layout(Layout::contiguous(dims)))
    }

    /// Strides that show the same elements under `dims` without a copy, where they exist.
    fn split_or_merge(&self, dims: &[usize]) -> Option<Vec<usize>> {
        if self.is_contiguous() {
            return Some(row_major(dims));
        }
        // Runs of old dimensions that are contiguous among themselves can be re-split freely.
        let old: Vec<(usize, usize)> = (self.dims().iter().copied().zip(self.strides().iter().copied()))
            .filter(|&(d, _)| d != 1)
            .collect();
        let mut strides = vec![0; dims.len()];
        let (mut i, mut j) = (0, 0);
        while i < old.len() {
            let (mut have, mut want) = (old[i].0, 1);
            let start = i;
            let first = j;
            loop {
                while want < have && j < dims.len() {
                    want *= dims[j];
                    j += 1;
                }
                if want == have {
                    break;
                }
                if want > have {
                    i += 1;
                    have *= old.get(i)?.0;
                } else {
                    return None;
                }
            }
            if (start..i).any(|k| old[k].1 != old[k + 1].1 * old[k + 1].0) {
                return None;
            }
            let mut s = old[i].1;
            for k in (first..j).rev() {
                strides[k] = s;
                s *= dims[k];
            }
            i += 1;
        }
        Some(strides)
    }

    /// Reorders the dimensions: dimension `i` of the result is `axes[i]` of `self`.
    ///
    /// # Errors
    /// When `axes` is not a permutation.
    pub fn permute(&self, axes: &[usize]) -> Result<Tensor> {
        let mut seen = vec![false; self.rank()];
        let valid = axes.len() == self.rank()
            && axes.iter().all(|&a| a < seen.len() && !std::mem::replace(&mut seen[a], true));
        if !valid {
            let why = format!("is {axes:?}, expected a permutation of 0..{}", self.rank());
            return Err(Error::invalid("permute", "axes", why));
        }
        let pick = |v: &[usize]| axes.iter().map(|&a| v[a]).collect();
        let layout =
            Layout { dims: pick(self.dims()), strides: pick(self.strides()), offset: self.layout.offset };
        Ok(self.with_layout(layout))
    }

    /// Swaps two dimensions.
    ///
    /// # Errors
    /// When one does not exist.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Tensor> {
        self.check_dim("transpose", a)?;
        self.check_dim("transpose", b)?;
        let mut layout = self.layout.clone();
        layout.dims.swap(a, b);
        layout.strides.swap(a, b);
        Ok(self.with_layout(layout))
    }

    pub(crate) fn check_dim(&self, op: &'static str, dim: usize) -> Result<()> {
        if dim < self.rank() {
            return Ok(());
        }
        Err(Error::invalid(op, "dim", format!("is {dim}, but the tensor has {} dimensions", self.rank())))
    }

    /// Elements `start..start + len` along `dim`.
    ///
    /// # Errors
    /// When the range does not exist.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        self.check_dim("narrow", dim)?;
        if start.checked_add(len).is_none_or(|end| end > self.dim(dim)) {
            let why = format!("is {start}..{start}+{len}, outside 0..{} of dim {dim}", self.dim(dim));
            return Err(Error::invalid("narrow", "range", why));
        }
        let mut layout = self.layout.clone();
        layout.dims[dim] = len;
        if layout.numel() > 0 {
            layout.offset += start * layout.strides[dim];
        }
        Ok(self.with_layout(layout))
    }

    /// Index `i` along `dim`, which disappears.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn select(&self, dim: usize, i: usize) -> Result<Tensor> {
        self.narrow(dim, i, 1)?.squeeze(dim)
    }

    /// Removes a dimension of size 1.
    ///
    /// # Errors
    /// When its size is not 1.
    pub fn squeeze(&self, dim: usize) -> Result<Tensor> {
        self.check_dim("squeeze", dim)?;
        if self.dim(dim) != 1 {
            return Err(Error::shape("squeeze", "self", self.dims(), format!("dim {dim} of size 1")));
        }
        let mut layout = self.layout.clone();
        layout.dims.remove(dim);
        layout.strides.remove(dim);
        Ok(self.with_layout(layout))
    }

    /// Inserts a dimension of size 1.
    ///
    /// # Errors
    /// When `dim` is beyond the rank.
    pub fn unsqueeze(&self, dim: usize) -> Result<Tensor> {
        if dim > self.rank() {
            return self.check_dim("unsqueeze", dim).map(|()| self.clone());
        }
        let mut layout = self.layout.clone();
        layout.dims.insert(dim, 1);
        layout.strides.insert(dim, 0);
        Ok(self.with_layout(layout))
    }

    /// Repeats dimensions of size 1 (and adds leading ones) up to `dims`, without a copy.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn expand(&self, dims: &[usize]) -> Result<Tensor> {
        let pad = dims.len().checked_sub(self.rank());
        let fits = pad.is_some_and(|p| self.dims().iter().zip(&dims[p..]).all(|(&a, &b)| a == b || a == 1));
        let Some(pad) = pad.filter(|_| fits) else {
            return Err(Error::shape(
                "expand",
                "self",
                self.dims(),
                format!("one that broadcasts to {dims:?}"),
            ));
        };
        let mut strides = vec![0; pad];
        let kept = self.dims().iter().zip(self.strides()).zip(&dims[pad..]);
        strides.extend(kept.map(|((&a, &s), &b)| if a == b { s } else { 0 }));
        let layout = Layout { dims: dims.to_vec(), strides, offset: self.layout.offset };
        Ok(self.with_layout(layout))
    }

    /// Pieces of the given sizes along `dim`, in order.
    ///
    /// # Errors
    /// When the sizes do not add up to the dimension.
    pub fn split(&self, dim: usize, sizes: &[usize]) -> Result<Vec<Tensor>> {
        self.check_dim("split", dim)?;
        if sizes.iter().sum::<usize>() != self.dim(dim) {
            let why = format!("{sizes:?} do not add up to {} of dim {dim}", self.dim(dim));
            return Err(Error::invalid("split", "sizes", why));
        }
        let mut start = 0;
        sizes
            .iter()
            .map(|&n| {
                start += n;
                self.narrow(dim, start - n, n)
            })
            .collect()
    }

    /// This tensor, or a row-major copy where the layout has gaps.
    ///
    /// # Errors
    /// When memory is short.
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        if self.device() != Device::Cpu {
            return self.copy();
        }
        let mut out = Tensor::empty(self.dims(), self.dtype, &self.device())?;
        dispatch!(self.dtype, T => copy_strided::<T>(self, out.as_mut_slice::<T>()?));
        Ok(out)
    }
}

/// Row-major copy of a strided tensor, parallel over fixed groups of rows.
fn copy_strided<T: Element>(src: &Tensor, out: &mut [T]) {
    let n = src.layout.dims.last().copied().unwrap_or(1);
    let step = src.layout.strides.last().copied().unwrap_or(1);
    if out.is_empty() {
        return;
    }
    let data = &src.all::<T>()[src.layout.offset..];
    let rows = src.layout.rows();
    debug_assert_eq!(rows.count() * n, out.len());
    // Whole tiles where rows lie across the source's lines: a transposition.
    let group = (BLOCK / n).max(if step == 1 { 1 } else { TILE });
    out.par_chunks_mut(group * n).enumerate().for_each(|(g, chunk)| {
        let starts: Vec<usize> = (0..chunk.len() / n).map(|i| rows.at(g * group + i)).collect();
        if step == 1 {
            for (dst, &at) in chunk.chunks_exact_mut(n).zip(&starts) {
                dst.copy_from_slice(&data[at..at + n]);
            }
            return;
        }
        for (i, starts) in starts.chunks(TILE).enumerate() {
            let dst = &mut chunk[i * TILE * n..];
            for j in (0..n).step_by(TILE) {
                for (r, &at) in starts.iter().enumerate() {
                    let row = &mut dst[r * n + j..r * n + (j + TILE).min(n)];
                    for (c, d) in row.iter_mut().enumerate() {
                        *d = data[at + (j + c) * step];
                    }
                }
            }
        }
    });
}

/// Side of the squares in which transpositions are copied, so that a line of the source is used whole while it is in
/// the cache.
const TILE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn iota(dims: &[usize]) -> Tensor {
        let n = dims.iter().product::<usize>();
        Tensor::from_vec((0..n).map(|x| x as f32).collect(), dims).unwrap()
    }

    #[test]
    fn views_show_the_right_elements() {
        let t = iota(&[2, 3, 4]);
        let p = t.permute(&[2, 0, 1]).unwrap();
        assert_eq!(p.dims(), [4, 2, 3]);
        assert_eq!(p.to_vec::<f32>().unwrap()[..6], [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]);
        let n = t.narrow(2, 1, 2).unwrap();
        assert_eq!(n.to_vec::<f32>().unwrap()[..4], [1.0, 2.0, 5.0, 6.0]);
        assert_eq!(
            t.select(1, 2).unwrap().to_vec::<f32>().unwrap(),
            [8.0, 9.0, 10.0, 11.0, 20.0, 21.0, 22.0, 23.0]
        );
        let e = iota(&[3, 1]).expand(&[2, 3, 2]).unwrap();
        assert_eq!(e.to_vec::<f32>().unwrap(), [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn reshape_keeps_views_where_it_can() {
        // A slice of a fused projection split into heads stays a view.
        let t = iota(&[2, 5, 12]).narrow(2, 4, 8).unwrap();
        let h = t.reshape(&[2, 5, 2, 4]).unwrap();
        assert!(std::sync::Arc::ptr_eq(&h.storage, &t.storage));
        assert_eq!(h.to_vec::<f32>().unwrap(), t.to_vec::<f32>().unwrap());
        let flat = t.reshape(&[10, 8]).unwrap();
        assert!(std::sync::Arc::ptr_eq(&flat.storage, &t.storage));
        let merged = t.reshape(&[80]).unwrap();
        assert_eq!(merged.to_vec::<f32>().unwrap(), t.to_vec::<f32>().unwrap());
        let tr = iota(&[3, 4]).transpose(0, 1).unwrap();
        assert_eq!(tr.reshape(&[12]).unwrap().to_vec::<f32>().unwrap()[..4], [0.0, 4.0, 8.0, 1.0]);
    }

    #[test]
    fn transposed_copies_of_every_size() {
        for (m, n) in [(1, 1), (3, 70), (33, 31), (64, 32), (100, 65), (1, 500), (500, 1), (300, 257)] {
            let t = iota(&[2, m, n]).transpose(1, 2).unwrap().contiguous().unwrap();
            let v = t.as_slice::<f32>().unwrap();
            for b in 0..2 {
                for (i, j) in (0..n).flat_map(|i| (0..m).map(move |j| (i, j))) {
                    assert_eq!(v[(b * n + i) * m + j], ((b * m + j) * n + i) as f32);
                }
            }
        }
    }

    #[test]
    fn bad_views_are_errors() {
        let t = iota(&[2, 3]);
        assert!(t.reshape(&[5]).is_err());
        assert!(t.permute(&[0, 0]).is_err());
        assert!(t.narrow(1, 2, 2).is_err());
        assert!(t.narrow(1, usize::MAX, 2).is_err());
        assert!(t.expand(&[3, 3]).is_err());
        assert!(t.squeeze(0).is_err());
        assert!(t.split(1, &[1, 1]).is_err());
        assert!(t.unsqueeze(5).is_err());
    }

    #[test]
    fn empty_tensors_have_views() {
        let t = iota(&[0, 3]);
        assert_eq!(t.reshape(&[3, 0]).unwrap().numel(), 0);
        assert_eq!(t.transpose(0, 1).unwrap().contiguous().unwrap().dims(), [3, 0]);
        assert_eq!(iota(&[4, 3]).narrow(0, 4, 0).unwrap().to_vec::<f32>().unwrap().len(), 0);
    }
}
