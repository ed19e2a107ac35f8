//! Dense products. f32 and f64 go through `gemm`; bf16 through our own kernel where the processor multiplies it, else
//! (and f16) panel-wise through f32; few rows against a weight take a path that reads the weight once at the speed of
//! the memory. Sums are f32 (f64 for f64), rounded once. Which path serves a product follows from its shape, layout
//! and dtypes alone.

mod alike;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod panels;
#[cfg(test)]
mod tests;
mod thin;

pub use alike::rows_alike;
use gemm::Parallelism;
use panels::Stored;
use rayon::prelude::*;

use crate::{
    DType, Device, Element, Error, Result, Tensor,
    layout::{Layout, broadcast},
    storage::HostBuffer,
};

/// Calls `$body` with `$T` bound to the type of an f32, bf16 or f16 dtype (the only ones that come here).
macro_rules! up_to_f32 {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            DType::F16 => {
                type $T = half::f16;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}

impl Tensor {
    /// Matrix product over the last two dimensions; leading dimensions broadcast. [.., m, k] x [.., k, n] -> [.., m, n].
    /// Strided and transposed operands are read in place.
    ///
    /// # Errors
    /// When shapes do not fit, dtypes differ or are not floats.
    pub fn matmul(&self, rhs: &Tensor) -> Result<Tensor> {
        if self.dtype != rhs.dtype || !self.dtype.is_float() {
            let expected = format!("the left side's {} (a float)", self.dtype);
            return Err(Error::dtype("matmul", "rhs", rhs.dtype, expected));
        }
        self.matmul_to(rhs, self.dtype)
    }

    /// As [`Tensor::matmul`] with a result in `dtype`: half-precision operands may leave their f32 sums unrounded, and
    /// an f32 operand may meet a half-precision one (the result is then f32).
    ///
    /// # Errors
    /// When shapes do not fit or the dtypes are no such combination.
    pub fn matmul_to(&self, rhs: &Tensor, dtype: DType) -> Result<Tensor> {
        const OP: &str = "matmul";
        self.same_device(OP, rhs)?;
        check_dtypes(self.dtype, rhs.dtype, dtype)?;
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
            return self.reshape(&[rows, k])?.matmul_to(rhs, dtype)?.reshape(&dims);
        }
        let batch = broadcast(OP, &self.dims()[..ra], &rhs.dims()[..rb])?;
        let with = |r: usize, c: usize| batch.iter().copied().chain([r, c]).collect::<Vec<_>>();
        if k == 0 {
            return Tensor::zeros(&with(m, n), dtype, &self.device());
        }
        let mut out = Tensor::empty(&with(m, n), dtype, &self.device())?;
        if out.numel() == 0 {
            return Ok(out);
        }
        if self.device() != Device::Cpu {
            crate::cuda::product(&self.expand(&with(m, k))?, &rhs.expand(&with(k, n))?, &out)?;
            return Ok(out);
        }
        if let Some(w) = thin_weight(m, rhs) {
            let x = self.contiguous()?;
            up_to_f32!(x.dtype, X => up_to_f32!(w.dtype, W => up_to_f32!(dtype, O => {
                thin::<X, W, O>(&x, &[&w], std::slice::from_mut(&mut out))?
            })));
            return Ok(out);
        }
        let (a, b) = (self.expand(&with(m, k))?, rhs.expand(&with(k, n))?);
        match (a.dtype, b.dtype) {
            (DType::F64, _) => batched(&a, &b, &mut out, gemm_dense::<f64>)?,
            (DType::F32, DType::F32) => batched(&a, &b, &mut out, gemm_dense::<f32>)?,
            #[cfg(target_arch = "x86_64")]
            (DType::BF16, DType::BF16) if bf16::available() => match dtype {
                DType::F32 => batched(&a, &b, &mut out, bf16::gemm::<f32>)?,
                _ => batched(&a, &b, &mut out, bf16::gemm::<half::bf16>)?,
            },
            _ => up_to_f32!(a.dtype, A => up_to_f32!(b.dtype, B => up_to_f32!(dtype, O => {
                batched(&a, &b, &mut out, panels::gemm::<A, B, O>)?
            }))),
        }
        Ok(out)
    }

    /// `self` [.., in] times `weight` [out, in] transposed: a linear layer without bias.
    ///
    /// # Errors
    /// As [`Tensor::matmul`].
    pub fn linear(&self, weight: &Tensor) -> Result<Tensor> {
        if self.dtype != weight.dtype || !self.dtype.is_float() {
            let expected = format!("{} as x (a float)", self.dtype);
            return Err(Error::dtype("linear", "weight", weight.dtype, expected));
        }
        self.linear_to(weight, self.dtype)
    }

    /// As [`Tensor::linear`] with a result in `dtype`, which may be as for [`Tensor::matmul_to`].
    ///
    /// # Errors
    /// As [`Tensor::matmul_to`].
    pub fn linear_to(&self, weight: &Tensor, dtype: DType) -> Result<Tensor> {
        if weight.rank() != 2 {
            return Err(Error::shape("linear", "weight", weight.dims(), "[out, in]"));
        }
        if self.dims().last() != Some(&weight.dim(1)) {
            let expected = format!("[.., {}] for a weight of {:?}", weight.dim(1), weight.dims());
            return Err(Error::shape("linear", "x", self.dims(), expected));
        }
        if self.device() != Device::Cpu
            && dtype == self.dtype
            && let Some(mut y) = crate::cuda::thin_linear(self, &[weight])?
        {
            return y.pop().ok_or_else(|| Error::invalid("linear", "weight", "gave no output"));
        }
        let mut dims = self.dims().to_vec();
        let rows = dims[..dims.len() - 1].iter().product();
        let wt = weight.transpose(0, 1)?;
        let y = self.reshape(&[rows, weight.dim(1)])?.matmul_to(&wt, dtype)?;
        if let Some(last) = dims.last_mut() {
            *last = weight.dim(0);
        }
        y.reshape(&dims)
    }

    /// Several linear layers of one input: as [`Tensor::linear`] with each weight, to the bit. Few rows (a decode step)
    /// make one pass over all weights, which keeps the memory busier than one after the other.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn linear_many(&self, weights: &[&Tensor]) -> Result<Vec<Tensor>> {
        let Some(&k) = self.dims().last() else {
            return Err(Error::shape("linear", "x", self.dims(), "[.., in]"));
        };
        if self.device() != Device::Cpu
            && let Some(ys) = crate::cuda::thin_linear(self, weights)?
        {
            return Ok(ys);
        }
        let rows = self.numel() / k.max(1);
        let one_pass = |w: &Tensor| {
            w.rank() == 2 && w.dim(1) == k && w.dim(0) > 0 && w.strides()[1] == 1 && w.dtype == self.dtype
        };
        let half_or_f32 = self.dtype.is_half() || self.dtype == DType::F32;
        let few =
            (1..=alike::thin_rows()).contains(&rows) && k > 0 && half_or_f32 && self.device() == Device::Cpu;
        if weights.len() < 2 || !few || !weights.iter().all(|w| one_pass(w)) {
            return weights.iter().map(|w| self.linear(w)).collect();
        }
        weights.iter().try_for_each(|w| self.same_device("linear", w))?;
        let mut dims = self.dims().to_vec();
        let mut outs = Vec::with_capacity(weights.len());
        for w in weights {
            dims[self.rank() - 1] = w.dim(0);
            outs.push(Tensor::empty(&dims, self.dtype, &self.device())?);
        }
        let x = self.contiguous()?;
        up_to_f32!(x.dtype, X => thin::<X, X, X>(&x, weights, &mut outs)?);
        Ok(outs)
    }

    /// An identity matrix.
    ///
    /// # Errors
    /// As [`Tensor::empty`].
    pub fn eye(n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut t = Tensor::zeros(&[n, n], DType::F64, &Device::Cpu)?;
        let v = t.as_mut_slice::<f64>()?;
        (0..n).for_each(|i| v[i * n + i] = 1.0);
        t.to_dtype(dtype)?.to_device(device)
    }
}

/// The float pairs that multiply: one dtype, or f32 with a half; the result is theirs or f32.
fn check_dtypes(a: DType, b: DType, out: DType) -> Result<()> {
    let wide = |d: DType| d.is_half() || d == DType::F32;
    let ok = match (a, b) {
        (DType::F64, DType::F64) => out == DType::F64,
        (a, b) if a == b => wide(a) && (out == a || out == DType::F32),
        (DType::F32, x) | (x, DType::F32) => wide(x) && out == DType::F32,
        _ => false,
    };
    if ok {
        return Ok(());
    }
    let what = format!("{a} times {b} into {out}");
    Err(Error::unsupported("matmul", what, "one float dtype into itself; f32, bf16 or f16 into f32"))
}

/// `rhs` transposed back to [n, k], where the product has few rows and `rhs` is a weight whose rows lie along k: the
/// case of a decode step. The rule looks at shapes, layout and dtype alone.
fn thin_weight(m: usize, rhs: &Tensor) -> Option<Tensor> {
    let along_k = rhs.rank() == 2 && (rhs.strides()[0] == 1 || rhs.dim(0) == 1);
    let fits = m <= alike::thin_rows() && rhs.dtype != DType::F64;
    if along_k && fits { rhs.transpose(0, 1).ok() } else { None }
}

/// x [rows, k] times each weight [n, k] transposed, into outputs [rows, n] of one dtype.
fn thin<X: Stored, W: Stored, O: Stored>(x: &Tensor, weights: &[&Tensor], outs: &mut [Tensor]) -> Result<()> {
    fn rows<W: Stored>(w: &Tensor) -> Result<thin::WeightRows<'_, W>> {
        let data = w.strided::<W>()?.data;
        Ok(thin::WeightRows { data, rows: w.dim(0), k: w.dim(1), stride: w.strides()[0] })
    }
    let weights = weights.iter().map(|w| rows::<W>(w)).collect::<Result<Vec<_>>>()?.into_iter();
    let x = x.as_slice::<X>()?;
    if O::DTYPE == DType::F32 {
        let outs = outs.iter_mut().map(|o| o.as_mut_slice::<f32>()).collect::<Result<Vec<_>>>()?;
        let parts = weights.zip(outs).map(|(weight, out)| thin::Part { weight, out });
        thin::products(x, &mut parts.collect::<Vec<_>>());
        return Ok(());
    }
    let mut sums = HostBuffer::scratch(outs.iter().map(Tensor::numel).sum::<usize>() * 4)?;
    let mut rest = bytemuck::cast_slice_mut::<u8, f32>(sums.bytes_mut());
    let mut parts = Vec::with_capacity(outs.len());
    for (weight, out) in weights.zip(outs.iter()) {
        let (mine, after) = rest.split_at_mut(out.numel());
        parts.push(thin::Part { weight, out: mine });
        rest = after;
    }
    thin::products(x, &mut parts);
    for (part, out) in parts.iter().zip(outs) {
        O::narrow(part.out, out.as_mut_slice::<O>()?);
    }
    Ok(())
}

/// One product per matrix of the batch: many in parallel, a single one in parallel by itself.
fn batched<A: Element, B: Element, O: Element>(
    a: &Tensor,
    b: &Tensor,
    out: &mut Tensor,
    product: impl Fn(&mut [O], usize, bool, Matrix<A>, Matrix<B>, bool) -> Result<()> + Sync,
) -> Result<()> {
    let r = a.rank() - 2;
    let (m, k, n) = (a.dim(r), a.dim(r + 1), b.dim(r + 1));
    let offsets = |t: &Tensor| -> Vec<usize> {
        let lead = Layout {
            dims: t.dims()[..r].iter().copied().chain([1]).collect(),
            strides: t.strides()[..r].iter().copied().chain([0]).collect(),
            offset: 0,
        };
        let rows = lead.rows();
        (0..rows.count()).map(|i| rows.at(i)).collect()
    };
    let (ao, bo) = (offsets(a), offsets(b));
    let (av, bv) = (a.strided::<A>()?, b.strided::<B>()?);
    let (sa, sb) = (&a.strides()[r..], &b.strides()[r..]);
    let one = |o: &mut [O], i: usize, parallel: bool| {
        let a = Matrix { data: &av.data[ao[i]..], rows: m, cols: k, row_stride: sa[0], col_stride: sa[1] };
        let b = Matrix { data: &bv.data[bo[i]..], rows: k, cols: n, row_stride: sb[0], col_stride: sb[1] };
        product(o, n, false, a, b, parallel)
    };
    let o = out.as_mut_slice::<O>()?;
    if ao.len() == 1 {
        return one(o, 0, true);
    }
    o.par_chunks_mut(m * n).enumerate().try_for_each(|(i, o)| one(o, i, false))
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

fn gemm_dense<T: crate::Real>(
    out: &mut [T],
    ld: usize,
    add: bool,
    a: Matrix<T>,
    b: Matrix<T>,
    parallel: bool,
) -> Result<()> {
    gemm_into(out, ld, add, a, b, if parallel { Parallelism::Rayon(0) } else { Parallelism::None });
    Ok(())
}

/// As [`gemm_into`] for operands of f32, bf16 or f16 and f32 sums: what [`Tensor::matmul_to`] runs, for kernels that
/// work on slices.
///
/// # Errors
/// For other dtypes, and when memory is short.
pub fn gemm_f32_into<T: Element>(
    out: &mut [f32],
    ld: usize,
    accumulate: bool,
    a: Matrix<T>,
    b: Matrix<T>,
    parallel: bool,
) -> Result<()> {
    fn cast<T: Element, U: Element>(m: Matrix<T>) -> Matrix<U> {
        let Matrix { data, rows, cols, row_stride, col_stride } = m;
        Matrix { data: bytemuck::cast_slice(data), rows, cols, row_stride, col_stride }
    }
    match T::DTYPE {
        DType::F32 => gemm_dense::<f32>(out, ld, accumulate, cast(a), cast(b), parallel),
        #[cfg(target_arch = "x86_64")]
        DType::BF16 if bf16::available() => bf16::gemm(out, ld, accumulate, cast(a), cast(b), parallel),
        DType::BF16 => {
            panels::gemm::<half::bf16, half::bf16, _>(out, ld, accumulate, cast(a), cast(b), parallel)
        }
        DType::F16 => {
            panels::gemm::<half::f16, half::f16, _>(out, ld, accumulate, cast(a), cast(b), parallel)
        }
        other => Err(Error::dtype("gemm_f32_into", "a", other, "f32, bf16 or f16")),
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
