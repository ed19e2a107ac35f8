//! Dense products through `gemm`. Half precision is converted panel-wise to f32 (the crate cannot multiply bf16),
//! accumulated in f32 and rounded once.

mod thin;

use gemm::Parallelism;
use rayon::prelude::*;

use crate::{DType, Device, Error, Result, Tensor, layout::broadcast};

impl Tensor {
    /// Matrix product over the last two dimensions; leading dimensions broadcast. [.., m, k] x [.., k, n] -> [.., m, n].
    /// Strided and transposed operands are read in place.
    ///
    /// # Errors
    /// When shapes do not fit, dtypes differ or are not floats.
    pub fn matmul(&self, rhs: &Tensor) -> Result<Tensor> {
        const OP: &str = "matmul";
        self.same_device(OP, rhs)?;
        if self.dtype != rhs.dtype || !self.dtype.is_float() {
            return Err(Error::dtype(
                OP,
                "rhs",
                rhs.dtype,
                format!("the left side's {} (a float)", self.dtype),
            ));
        }
        if self.rank() < 2 || rhs.rank() < 2 || self.dim(self.rank() - 1) != rhs.dim(rhs.rank() - 2) {
            let expected = format!("[.., k, n] for a left side of {:?}", self.dims());
            return Err(Error::shape(OP, "rhs", rhs.dims(), expected));
        }
        let (ra, rb) = (self.rank() - 2, rhs.rank() - 2);
        let (m, k, n) = (self.dim(ra), self.dim(ra + 1), rhs.dim(rb + 1));
        // Rows of a batch against one matrix are one tall product.
        if ra > 0 && rb == 0 {
            let lead = &self.dims()[..ra + 1];
            let rows: usize = lead.iter().product();
            let mut dims = lead.to_vec();
            dims.push(n);
            return self.reshape(&[rows, k])?.matmul(rhs)?.reshape(&dims);
        }
        let batch = broadcast(OP, &self.dims()[..ra], &rhs.dims()[..rb])?;
        let with = |r: usize, c: usize| batch.iter().copied().chain([r, c]).collect::<Vec<_>>();
        let mut out = Tensor::empty(&with(m, n), self.dtype, &self.device())?;
        if out.numel() == 0 {
            return Ok(out);
        }
        if k == 0 {
            return Tensor::zeros(&with(m, n), self.dtype, &self.device());
        }
        if let Some(w) = thin_weight(m, rhs, self.dtype) {
            thin(self, &w, &mut out)?;
            return Ok(out);
        }
        if self.dtype.is_half() {
            let (a, b) = (self.to_dtype(DType::F32)?, rhs.to_dtype(DType::F32)?);
            return a.matmul(&b)?.to_dtype(self.dtype);
        }
        let (a, b) = (self.expand(&with(m, k))?, rhs.expand(&with(k, n))?);
        match self.dtype {
            DType::F32 => batched::<f32>(&a, &b, &mut out)?,
            _ => batched::<f64>(&a, &b, &mut out)?,
        }
        Ok(out)
    }

    /// `self` [.., in] times `weight` [out, in] transposed: a linear layer without bias.
    ///
    /// # Errors
    /// As [`Tensor::matmul`].
    pub fn linear(&self, weight: &Tensor) -> Result<Tensor> {
        if weight.rank() != 2 {
            return Err(Error::shape("linear", "weight", weight.dims(), "[out, in]"));
        }
        if self.dims().last() != Some(&weight.dim(1)) {
            let expected = format!("[.., {}] for a weight of {:?}", weight.dim(1), weight.dims());
            return Err(Error::shape("linear", "x", self.dims(), expected));
        }
        let mut dims = self.dims().to_vec();
        let rows = dims[..dims.len() - 1].iter().product();
        let wt = weight.transpose(0, 1)?;
        let y = self.reshape(&[rows, weight.dim(1)])?.matmul(&wt)?;
        if let Some(last) = dims.last_mut() {
            *last = weight.dim(0);
        }
        y.reshape(&dims)
    }

    /// An identity matrix.
    ///
    /// # Errors
    /// As [`Tensor::empty`].
    pub fn eye(n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut t = Tensor::zeros(&[n, n], DType::F64, device)?;
        let v = t.as_mut_slice::<f64>()?;
        (0..n).for_each(|i| v[i * n + i] = 1.0);
        t.to_dtype(dtype)
    }
}

/// `rhs` transposed back to [n, k], where the product has few rows and `rhs` is a weight whose rows lie along k: the
/// case of a decode step. The rule looks at shapes and layout alone.
fn thin_weight(m: usize, rhs: &Tensor, dtype: DType) -> Option<Tensor> {
    let along_k = rhs.rank() == 2 && (rhs.strides()[0] == 1 || rhs.dim(0) == 1);
    let fits = m <= thin::MAX_ROWS && (dtype.is_half() || dtype == DType::F32);
    if along_k && fits { rhs.transpose(0, 1).ok() } else { None }
}

fn thin(x: &Tensor, w: &Tensor, out: &mut Tensor) -> Result<()> {
    fn run<T: thin::Weight>(x: &Tensor, w: &Tensor, out: &mut Tensor) -> Result<()> {
        let w = thin::WeightRows {
            data: w.strided::<T>()?.data,
            rows: w.dim(0),
            k: w.dim(1),
            stride: w.strides()[0],
        };
        thin::product(x.as_slice::<T>()?, w, out.as_mut_slice::<T>()?);
        Ok(())
    }
    let x = x.contiguous()?;
    match x.dtype {
        DType::BF16 => run::<half::bf16>(&x, w, out),
        DType::F16 => run::<half::f16>(&x, w, out),
        _ => run::<f32>(&x, w, out),
    }
}

/// One product per matrix of the batch: many small ones in parallel, few large ones each in parallel.
fn batched<T: crate::Real>(a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
    let r = a.rank() - 2;
    let (m, k, n) = (a.dim(r), a.dim(r + 1), b.dim(r + 1));
    let offsets = |t: &Tensor| -> Vec<usize> {
        let lead = crate::layout::Layout {
            dims: t.dims()[..r].iter().copied().chain([1]).collect(),
            strides: t.strides()[..r].iter().copied().chain([0]).collect(),
            offset: 0,
        };
        let rows = lead.rows();
        (0..rows.count()).map(|i| rows.at(i)).collect()
    };
    let (ao, bo) = (offsets(a), offsets(b));
    let (av, bv) = (a.strided::<T>()?, b.strided::<T>()?);
    let one = |o: &mut [T], i: usize, par: Parallelism| {
        let a = Matrix {
            data: &av.data[ao[i]..],
            rows: m,
            cols: k,
            row_stride: a.strides()[r],
            col_stride: a.strides()[r + 1],
        };
        let b = Matrix {
            data: &bv.data[bo[i]..],
            rows: k,
            cols: n,
            row_stride: b.strides()[r],
            col_stride: b.strides()[r + 1],
        };
        gemm_into(o, n, false, a, b, par);
    };
    let o = out.as_mut_slice::<T>()?;
    if ao.len() == 1 {
        one(o, 0, Parallelism::Rayon(0));
    } else {
        o.par_chunks_mut(m * n).enumerate().for_each(|(i, o)| one(o, i, Parallelism::None));
    }
    Ok(())
}

/// A strided matrix operand of [`gemm_into`]: element (i, j) is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    /// Elements from the first one on.
    pub data: &'a [T],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl<T> Matrix<'_, T> {
    fn span(&self) -> usize {
        (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
    }
}

/// out = a b, or out += a b, with rows of `out` `ld` apart; for kernels that work on slices. The bits do not depend
/// on `par`. Panics when the operands do not fit each other or their slices, or have no elements.
pub fn gemm_into<T: crate::Real>(
    out: &mut [T],
    ld: usize,
    accumulate: bool,
    a: Matrix<T>,
    b: Matrix<T>,
    par: Parallelism,
) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(k == b.rows && m > 0 && n > 0 && k > 0);
    assert!(a.data.len() >= a.span() && b.data.len() >= b.span() && out.len() >= (m - 1) * ld + n);
    // SAFETY: the asserts above keep every (row, col) of the three operands inside its slice; strides are
    // non-negative; `out` is borrowed mutably, so it does not alias the inputs.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            ld as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            par,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Philox;

    fn naive(a: &Tensor, b: &Tensor) -> Vec<f64> {
        let (m, k, n) = (a.dim(0), a.dim(1), b.dim(1));
        let (x, y) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
        (0..m * n).map(|i| (0..k).map(|l| x[i / n * k + l] * y[l * n + i % n]).sum()).collect()
    }

    fn close(a: &[f64], b: &[f64], tol: f64) {
        let err: f64 = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
        let norm: f64 = b.iter().map(|y| y * y).sum::<f64>().sqrt();
        assert!(err <= tol * norm.max(1e-30), "{err} {norm}");
    }

    #[test]
    fn products_in_every_float_type_and_layout() {
        for (d, tol) in [(DType::F64, 1e-14), (DType::F32, 1e-6), (DType::BF16, 6e-3), (DType::F16, 1e-3)] {
            for (m, k, n) in [(1, 1, 1), (3, 5, 7), (64, 33, 2), (1, 64, 65), (17, 1, 9)] {
                let a = Philox::new(1, 0).randn(0.0, 1.0, &[m, k], d, &Device::Cpu).unwrap();
                let b = Philox::new(2, 0).randn(0.0, 1.0, &[n, k], d, &Device::Cpu).unwrap();
                let bt = b.transpose(0, 1).unwrap();
                close(&a.matmul(&bt).unwrap().to_f64_vec().unwrap(), &naive(&a, &bt), tol);
                close(&a.linear(&b).unwrap().to_f64_vec().unwrap(), &naive(&a, &bt), tol);
            }
        }
    }

    #[test]
    fn batches_broadcast() {
        let a = Philox::new(1, 0).randn(0.0, 1.0, &[3, 2, 4, 5], DType::F64, &Device::Cpu).unwrap();
        let b = Philox::new(2, 0).randn(0.0, 1.0, &[2, 5, 6], DType::F64, &Device::Cpu).unwrap();
        let c = a.matmul(&b).unwrap();
        assert_eq!(c.dims(), [3, 2, 4, 6]);
        let one = c.select(0, 2).unwrap().select(0, 1).unwrap();
        let (x, y) = (a.select(0, 2).unwrap().select(0, 1).unwrap(), b.select(0, 1).unwrap());
        close(&one.to_f64_vec().unwrap(), &naive(&x, &y), 1e-14);
    }

    #[test]
    fn empty_and_wrong_shapes() {
        let z = |d: &[usize]| Tensor::zeros(d, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(z(&[2, 0]).matmul(&z(&[0, 3])).unwrap().to_f64_vec().unwrap(), [0.0; 6]);
        assert_eq!(z(&[0, 4]).matmul(&z(&[4, 3])).unwrap().dims(), [0, 3]);
        assert!(z(&[2, 3]).matmul(&z(&[2, 3])).is_err());
        assert!(z(&[3]).matmul(&z(&[3, 3])).is_err());
        assert!(z(&[2, 3]).linear(&z(&[4, 2])).is_err());
    }

    #[test]
    fn the_bits_do_not_depend_on_threads() {
        let a = Philox::new(1, 0).randn(0.0, 1.0, &[200, 700], DType::F32, &Device::Cpu).unwrap();
        let b = Philox::new(2, 0).randn(0.0, 1.0, &[700, 300], DType::F32, &Device::Cpu).unwrap();
        let with = |n| {
            rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| a.matmul(&b).unwrap())
        };
        assert_eq!(with(1).to_vec::<f32>().unwrap(), with(2).to_vec::<f32>().unwrap());
        assert_eq!(with(1).to_vec::<f32>().unwrap(), with(3).to_vec::<f32>().unwrap());
    }
}
