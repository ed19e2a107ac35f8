//! Gathering and scattering rows: concatenation, blocks written in place, embedding lookup, indexed addition, selection by mask.

use crate::{DType, Device, Element, Error, Result, Tensor, cuda, layout::broadcast, tensor::dispatch};

impl Tensor {
    /// Joins tensors along `dim`.
    ///
    /// # Errors
    /// When there are none, or dtypes or the other dimensions differ.
    pub fn cat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
        let Some(first) = parts.first() else {
            return Err(Error::invalid("cat", "parts", "is empty, expected at least one tensor"));
        };
        first.check_dim("cat", dim)?;
        let mut dims = first.dims().to_vec();
        dims[dim] = 0;
        for p in parts {
            first.same_device("cat", p)?;
            let same = p.rank() == dims.len() && (0..dims.len()).all(|i| i == dim || p.dim(i) == dims[i]);
            if !same {
                return Err(Error::shape(
                    "cat",
                    "parts",
                    p.dims(),
                    format!("{:?} outside dim {dim}", first.dims()),
                ));
            }
            if p.dtype != first.dtype {
                return Err(Error::dtype("cat", "parts", p.dtype, first.dtype.to_string()));
            }
            dims[dim] += p.dim(dim);
        }
        let outer: usize = dims[..dim].iter().product();
        let inner: usize = dims[dim + 1..].iter().product();
        let width = dims[dim] * inner;
        let mut out = Tensor::empty(&dims, first.dtype, &first.device())?;
        if first.device() != Device::Cpu {
            let mut from = 0;
            for p in parts {
                cuda::copy_into("cat", p, &out.narrow(dim, from, p.dim(dim))?)?;
                from += p.dim(dim);
            }
            return Ok(out);
        }
        dispatch!(first.dtype, T => {
            let o = out.as_mut_slice::<T>()?;
            let mut at = 0;
            for p in parts {
                let n = p.dim(dim) * inner;
                let keep = p.contiguous()?;
                let src = keep.as_slice::<T>()?;
                for i in 0..outer {
                    o[i * width + at..][..n].copy_from_slice(&src[i * n..][..n]);
                }
                at += n;
            }
        });
        Ok(out)
    }

    /// Writes `src` over the block of this tensor that begins at `start` (one index a dimension), converted to this tensor's dtype: in place where
    /// nobody else holds the storage, else into a copy that takes its place.
    ///
    /// # Errors
    /// When the block does not lie inside, the devices differ, or memory is short.
    pub fn write(&mut self, start: &[usize], src: &Tensor) -> Result<()> {
        let fits = |i: usize| start[i].checked_add(src.dim(i)).is_some_and(|end| end <= self.dim(i));
        if src.rank() != self.rank() || start.len() != self.rank() || !(0..self.rank()).all(fits) {
            let expected = format!("a block of {:?} from {start:?} on", self.dims());
            return Err(Error::shape("write", "src", src.dims(), expected));
        }
        self.same_device("write", src)?;
        if src.numel() == 0 {
            return Ok(());
        }
        if !self.is_unique() || !self.is_contiguous() {
            *self = self.copy()?;
        }
        if self.device() != Device::Cpu {
            let mut to = self.clone();
            for (i, &s) in start.iter().enumerate() {
                to = to.narrow(i, s, src.dim(i))?;
            }
            return cuda::copy_into("write", src, &to);
        }
        let src = src.to_dtype(self.dtype)?.contiguous()?;
        let (dims, strides) = (src.dims().to_vec(), self.strides().to_vec());
        // Trailing dimensions that are covered whole make longer runs.
        let mut inner = dims.len();
        let mut run = 1;
        while inner > 0 && run == strides[inner - 1] {
            inner -= 1;
            run *= dims[inner];
        }
        let first: usize = start.iter().zip(&strides).map(|(s, t)| s * t).sum();
        dispatch!(self.dtype, T => {
            let (src, out) = (src.as_slice::<T>()?, self.as_mut_slice::<T>()?);
            for (i, src) in src.chunks_exact(run).enumerate() {
                let (mut rest, mut at) = (i, first);
                for d in (0..inner).rev() {
                    at += rest % dims[d] * strides[d];
                    rest /= dims[d];
                }
                out[at..at + run].copy_from_slice(src);
            }
        });
        Ok(())
    }

    /// Rows `index` of dimension 0; the result is `index.dims() + self.dims()[1..]`. An embedding lookup. An index of the host may meet rows on a
    /// GPU: it is checked here and sent.
    ///
    /// # Errors
    /// When `index` is not i64 or i32, or an index is outside `0..self.dim(0)`.
    pub fn index_select(&self, index: &Tensor) -> Result<Tensor> {
        if self.device() != Device::Cpu {
            self.check_dim("index_select", 0)?;
            let dims: Vec<usize> = index.dims().iter().chain(&self.dims()[1..]).copied().collect();
            return cuda::gather(&self.contiguous()?, index, &dims);
        }
        self.same_device("index_select", index)?;
        let rows = self.row_indices("index_select", index)?;
        let src = self.contiguous()?;
        let w: usize = self.dims()[1..].iter().product();
        let dims: Vec<usize> = index.dims().iter().chain(&self.dims()[1..]).copied().collect();
        let mut out = Tensor::empty(&dims, self.dtype, &self.device())?;
        if w == 0 {
            return Ok(out);
        }
        dispatch!(self.dtype, T => {
            let (s, o) = (src.as_slice::<T>()?, out.as_mut_slice::<T>()?);
            for (o, &r) in o.chunks_exact_mut(w).zip(&rows) {
                o.copy_from_slice(&s[r * w..][..w]);
            }
        });
        Ok(out)
    }

    /// A tensor of `rows` rows (dimension 0), zero but for the sums of the rows of `self` that `index` sends there:
    /// the backward of [`Tensor::index_select`]. Half precision is summed and returned in f32.
    ///
    /// # Errors
    /// When `index` does not fit.
    pub fn index_add(&self, index: &Tensor, rows: usize) -> Result<Tensor> {
        let lead = index.rank();
        if self.rank() < lead || self.dims()[..lead] != *index.dims() {
            let expected = format!("one that begins with {:?}, as the index", index.dims());
            return Err(Error::shape("index_add", "self", self.dims(), expected));
        }
        if self.device() != Device::Cpu {
            let dims: Vec<usize> = std::iter::once(rows).chain(self.dims()[lead..].iter().copied()).collect();
            return cuda::scatter_add(&self.contiguous()?, index, &dims);
        }
        self.same_device("index_add", index)?;
        let x = self.to_dtype(self.dtype.accumulator())?.contiguous()?;
        let dims: Vec<usize> = std::iter::once(rows).chain(self.dims()[lead..].iter().copied()).collect();
        let mut out = Tensor::zeros(&dims, x.dtype, &self.device())?;
        let at = out.row_indices("index_add", index)?;
        let w: usize = dims[1..].iter().product();
        if w == 0 {
            return Ok(out);
        }
        match x.dtype {
            DType::F32 => add_rows(x.as_slice::<f32>()?, out.as_mut_slice()?, &at, w),
            DType::F64 => add_rows(x.as_slice::<f64>()?, out.as_mut_slice()?, &at, w),
            other => return Err(Error::dtype("index_add", "self", other, "a float type")),
        }
        Ok(out)
    }

    fn row_indices(&self, op: &'static str, index: &Tensor) -> Result<Vec<usize>> {
        if self.rank() == 0 {
            return Err(Error::shape(op, "self", self.dims(), "at least one dimension"));
        }
        if !matches!(index.dtype, DType::I64 | DType::I32) {
            return Err(Error::dtype(op, "index", index.dtype, "i64 or i32"));
        }
        let n = self.dim(0);
        let index = index.to_dtype(DType::I64)?.contiguous()?;
        let check = |&i: &i64| match usize::try_from(i) {
            Ok(i) if i < n => Ok(i),
            _ => Err(Error::invalid(op, "index", format!("holds {i}, outside 0..{n}"))),
        };
        index.as_slice::<i64>()?.iter().map(check).collect()
    }

    /// `self` where `mask` (u8) is not 0, else `other`; shapes broadcast.
    ///
    /// # Errors
    /// When shapes do not broadcast or dtypes differ.
    pub fn where_(&self, mask: &Tensor, other: &Tensor) -> Result<Tensor> {
        if mask.dtype != DType::U8 {
            return Err(Error::dtype("where", "mask", mask.dtype, "u8"));
        }
        if self.dtype != other.dtype {
            return Err(Error::dtype("where", "other", other.dtype, self.dtype.to_string()));
        }
        let dims = broadcast("where", self.dims(), other.dims())?;
        let dims = broadcast("where", &dims, mask.dims())?;
        self.same_device("where", other)?;
        self.same_device("where", mask)?;
        if self.device() != Device::Cpu {
            return cuda::select("where", &mask.expand(&dims)?, &self.expand(&dims)?, &other.expand(&dims)?);
        }
        let wide = |t: &Tensor| t.expand(&dims)?.contiguous();
        let (m, a, b) = (wide(mask)?, wide(self)?, wide(other)?);
        let mut out = Tensor::empty(&dims, self.dtype, &self.device())?;
        dispatch!(self.dtype, T => {
            let pick = m.as_slice::<u8>()?.iter().zip(a.as_slice::<T>()?.iter().zip(b.as_slice::<T>()?));
            for (o, (&m, (&a, &b))) in out.as_mut_slice::<T>()?.iter_mut().zip(pick) {
                *o = if m != 0 { a } else { b };
            }
        });
        Ok(out)
    }
}

fn add_rows<T: Element + std::ops::AddAssign>(x: &[T], out: &mut [T], at: &[usize], w: usize) {
    for (x, &r) in x.chunks_exact(w).zip(at) {
        for (o, &x) in out[r * w..][..w].iter_mut().zip(x) {
            *o += x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cat_inverts_split() {
        let t = Tensor::from_vec((0..24).collect::<Vec<i64>>(), &[2, 3, 4]).unwrap();
        for dim in 0..3 {
            let parts = t.split(dim, &[1, t.dim(dim) - 1]).unwrap();
            let back = Tensor::cat(&parts.iter().collect::<Vec<_>>(), dim).unwrap();
            assert_eq!(back.to_vec::<i64>().unwrap(), t.to_vec::<i64>().unwrap());
        }
        assert!(Tensor::cat(&[], 0).is_err());
        assert!(Tensor::cat(&[&t, &t.transpose(0, 1).unwrap()], 2).is_err());
    }

    #[test]
    fn gather_and_scatter_are_adjoint() {
        let table = Tensor::from_vec((0..6).map(|x| x as f32).collect(), &[3, 2]).unwrap();
        let idx = Tensor::from_vec(vec![2i64, 0, 2], &[3]).unwrap();
        let rows = table.index_select(&idx).unwrap();
        assert_eq!(rows.to_vec::<f32>().unwrap(), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
        let sums = rows.index_add(&idx, 3).unwrap();
        assert_eq!(sums.to_vec::<f32>().unwrap(), [0.0, 1.0, 0.0, 0.0, 8.0, 10.0]);
        for bad in [-1i64, 3] {
            let idx = Tensor::from_vec(vec![bad], &[1]).unwrap();
            let msg = table.index_select(&idx).unwrap_err().to_string();
            assert!(msg.contains(&bad.to_string()) && msg.contains("0..3"), "{msg}");
        }
    }

    #[test]
    fn a_written_block_replaces_what_was_there() {
        let zeros = || Tensor::zeros(&[2, 3, 4], DType::F32, &Device::Cpu).unwrap();
        let src = Tensor::from_vec((1..=4).map(f64::from).collect(), &[2, 1, 2]).unwrap();
        let mut t = zeros();
        let fork = t.clone();
        t.write(&[0, 1, 2], &src).unwrap();
        let v = t.to_vec::<f32>().unwrap();
        let set: Vec<_> = v.iter().enumerate().filter(|(_, x)| **x != 0.0).map(|(i, x)| (i, *x)).collect();
        assert_eq!(set, [(6, 1.0), (7, 2.0), (18, 3.0), (19, 4.0)]);
        assert_eq!(fork.to_vec::<f32>().unwrap(), [0.0; 24]);
        let whole = Tensor::from_vec((0..12).map(|x| x as f32).collect(), &[1, 3, 4]).unwrap();
        t.write(&[1, 0, 0], &whole).unwrap();
        assert_eq!(t.to_vec::<f32>().unwrap()[12..], whole.to_vec::<f32>().unwrap());
        for (start, src) in [(&[0, 1, 3][..], &src), (&[0, 0], &src), (&[1, 0, 0], &src)] {
            assert!(zeros().write(start, src).unwrap_err().to_string().contains("[2, 3, 4]"));
        }
    }

    #[test]
    fn where_picks() {
        let m = Tensor::from_vec(vec![1u8, 0], &[2, 1]).unwrap();
        let a = Tensor::from_vec(vec![1f32, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        let z = Tensor::zeros(&[1], DType::F32, &crate::Device::Cpu).unwrap();
        assert_eq!(a.where_(&m, &z).unwrap().to_vec::<f32>().unwrap(), [1.0, 2.0, 0.0, 0.0]);
    }
}
