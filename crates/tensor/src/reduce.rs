//! Sums, means, maxima. Half precision is summed in f32 and f32 in eight fixed lanes, so the result does not
//! depend on the number of threads.

use rayon::prelude::*;

use crate::{
    DType, Device, Element, Error, Real, Result, Tensor,
    cpu::{BLOCK, vectorized},
    cuda,
    tensor::dispatch,
};

impl Tensor {
    /// Sum over the dimensions `dims` (kept with size 1 when `keep`); half precision returns half precision,
    /// summed in f32.
    ///
    /// # Errors
    /// For integer tensors and dimensions that do not exist.
    pub fn sum(&self, dims: &[usize], keep: bool) -> Result<Tensor> {
        for &d in dims {
            self.check_dim("sum", d)?;
        }
        let reduced = |i: &usize| dims.contains(i);
        let kept: Vec<usize> = (0..self.rank()).filter(|i| !reduced(i)).collect();
        let gone: Vec<usize> = (0..self.rank()).filter(reduced).collect();
        let outer: Vec<usize> = kept.iter().map(|&i| self.dim(i)).collect();
        let n: usize = gone.iter().map(|&i| self.dim(i)).product();
        let rows = outer.iter().product();
        let down = kept.last().is_some_and(|&k| gone.iter().all(|&g| g < k));
        let out = if self.device() != Device::Cpu {
            let axes: Vec<usize> = if down {
                gone.iter().chain(&kept).copied().collect()
            } else {
                kept.iter().chain(&gone).copied().collect()
            };
            cuda::sum(&self.permute(&axes)?.contiguous()?, &outer, n, down)?
        } else if kept.last().is_some_and(|&k| gone.iter().all(|&g| g < k)) {
            // The kept dimensions are innermost: add whole rows, no transposition.
            let axes: Vec<usize> = gone.iter().chain(&kept).copied().collect();
            let x = self.permute(&axes)?.contiguous()?;
            self.reduce_into(&outer, |o| dispatch_float(&x, "sum", ColumnSum { n, rows }, o))?
        } else {
            let axes: Vec<usize> = kept.iter().chain(&gone).copied().collect();
            let x = self.permute(&axes)?.contiguous()?;
            self.reduce_into(&outer, |o| dispatch_float(&x, "sum", RowSum { n }, o))?
        };
        if !keep {
            return Ok(out);
        }
        let full: Vec<usize> = (0..self.rank()).map(|i| if reduced(&i) { 1 } else { self.dim(i) }).collect();
        out.reshape(&full)
    }

    fn reduce_into(&self, dims: &[usize], f: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<Tensor> {
        let mut out = Tensor::empty(dims, self.dtype, &self.device())?;
        f(&mut out)?;
        Ok(out)
    }

    /// Sum of all elements, as a scalar tensor.
    ///
    /// # Errors
    /// For integer tensors.
    pub fn sum_all(&self) -> Result<Tensor> {
        self.sum(&(0..self.rank()).collect::<Vec<_>>(), false)
    }

    /// Mean over `dims`.
    ///
    /// # Errors
    /// As [`Tensor::sum`].
    pub fn mean(&self, dims: &[usize], keep: bool) -> Result<Tensor> {
        let n: usize = dims.iter().map(|&d| self.layout.dims.get(d).copied().unwrap_or(1)).product();
        self.sum(dims, keep)?.affine(1.0 / n as f64, 0.0)
    }

    /// Largest element along the last dimension, with its first index (i64); NaN counts as largest, so that it shows.
    ///
    /// # Errors
    /// When the last dimension is empty or missing.
    pub fn max_last(&self) -> Result<(Tensor, Tensor)> {
        let n = self.dims().last().copied().unwrap_or(0);
        if n == 0 {
            return Err(Error::shape("max_last", "self", self.dims(), "a last dimension that is not empty"));
        }
        let x = self.contiguous()?;
        let dims = &self.dims()[..self.rank() - 1];
        if self.device() != Device::Cpu {
            return cuda::max_last(&x, dims, n);
        }
        let mut index = Tensor::empty(dims, DType::I64, &self.device())?;
        let mut value = Tensor::empty(dims, self.dtype, &self.device())?;
        dispatch!(self.dtype, T => {
            let rows = x.as_slice::<T>()?.chunks_exact(n);
            let (vs, is) = (value.as_mut_slice::<T>()?, index.as_mut_slice::<i64>()?);
            for ((row, v), i) in rows.zip(vs).zip(is) {
                let best = first_max(row);
                (*v, *i) = (row[best], best as i64);
            }
        });
        Ok((value, index))
    }

    /// Index of the largest element along the last dimension (the first of equals), as i64.
    ///
    /// # Errors
    /// As [`Tensor::max_last`].
    pub fn argmax(&self) -> Result<Tensor> {
        Ok(self.max_last()?.1)
    }

    /// Sum of squares of all elements in f64 (norms, finiteness checks); of a tensor on a GPU it is taken there in f32, and waited for.
    ///
    /// # Errors
    /// Integers on a GPU; a failure of the device's earlier work.
    pub fn sum_squares(&self) -> Result<f64> {
        if self.device() != Device::Cpu {
            return self.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar();
        }
        let x = self.contiguous()?;
        dispatch!(self.dtype, T => {
            let parts: Vec<f64> = x.as_slice::<T>()?.par_chunks(BLOCK).map(|c| {
                vectorized(#[inline(always)] || {
                    let mut lanes = [0f64; 8];
                    for group in c.chunks(8) {
                        for (l, v) in lanes.iter_mut().zip(group) {
                            let v = v.to_f64();
                            *l += v * v;
                        }
                    }
                    lanes.iter().sum::<f64>()
                })
            }).collect();
            Ok(parts.iter().sum())
        })
    }
}

/// Index of the first largest element; a NaN wins over everything.
fn first_max<T: Element>(row: &[T]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        let is_nan = |x: &T| x.partial_cmp(x).is_none();
        if is_nan(x) {
            return i;
        }
        if *x > row[best] {
            best = i;
        }
    }
    best
}

trait Reduce {
    fn run<E: Element, R: Real>(&self, x: &[E], out: &mut [E]);
}

fn dispatch_float(x: &Tensor, op: &'static str, f: impl Reduce, out: &mut Tensor) -> Result<()> {
    match x.dtype {
        DType::F64 => f.run::<f64, f64>(x.as_slice()?, out.as_mut_slice()?),
        DType::F32 => f.run::<f32, f32>(x.as_slice()?, out.as_mut_slice()?),
        DType::BF16 => f.run::<half::bf16, f32>(x.as_slice()?, out.as_mut_slice()?),
        DType::F16 => f.run::<half::f16, f32>(x.as_slice()?, out.as_mut_slice()?),
        other => return Err(Error::dtype(op, "self", other, "a float type")),
    }
    Ok(())
}

#[inline(always)]
fn widen<E: Element, R: Real>(x: E) -> R {
    if R::DTYPE == DType::F64 { R::from_f64(x.to_f64()) } else { R::from_f32(x.to_f32()) }
}

#[inline(always)]
fn narrow<E: Element, R: Real>(x: R) -> E {
    if R::DTYPE == DType::F64 { E::from_f64(x.to_f64()) } else { E::from_f32(x.to_f32()) }
}

/// Each output is the sum of `n` consecutive inputs.
struct RowSum {
    n: usize,
}

impl Reduce for RowSum {
    fn run<E: Element, R: Real>(&self, x: &[E], out: &mut [E]) {
        let n = self.n;
        if n == 0 {
            return out.fill(E::from_f64(0.0));
        }
        let row = |row: &[E]| -> E {
            // Long rows: partial sums of fixed blocks, in parallel, added in order.
            let sum = if n > 4 * BLOCK {
                let parts: Vec<R> = row.par_chunks(BLOCK).map(lanes_sum::<E, R>).collect();
                parts.into_iter().fold(R::ZERO, |a, b| a + b)
            } else {
                lanes_sum::<E, R>(row)
            };
            narrow::<E, R>(sum)
        };
        let group = (BLOCK / n).max(1);
        out.par_chunks_mut(group).zip(x.par_chunks(group * n)).for_each(|(o, x)| {
            o.iter_mut().zip(x.chunks_exact(n)).for_each(|(o, x)| *o = row(x));
        });
    }
}

fn lanes_sum<E: Element, R: Real>(x: &[E]) -> R {
    vectorized(
        #[inline(always)]
        || {
            let mut lanes = [R::ZERO; 16];
            let groups = x.chunks_exact(16);
            let tail = groups.remainder();
            for g in groups {
                for (l, &v) in lanes.iter_mut().zip(g) {
                    *l += widen::<E, R>(v);
                }
            }
            for (l, &v) in lanes.iter_mut().zip(tail) {
                *l += widen::<E, R>(v);
            }
            lanes.into_iter().fold(R::ZERO, |a, b| a + b)
        },
    )
}

/// Output `j` is the sum over `i < n` of input `[i, j]`.
struct ColumnSum {
    n: usize,
    rows: usize,
}

impl Reduce for ColumnSum {
    fn run<E: Element, R: Real>(&self, x: &[E], out: &mut [E]) {
        let width = self.rows;
        if width == 0 {
            return;
        }
        // Partial sums over fixed groups of rows, then the groups in order.
        let group = (16 * BLOCK / width).clamp(1, 4096);
        let partial = |x: &[E]| {
            let mut acc = vec![R::ZERO; width];
            vectorized(
                #[inline(always)]
                || {
                    for row in x.chunks_exact(width) {
                        for (a, &v) in acc.iter_mut().zip(row) {
                            *a += widen::<E, R>(v);
                        }
                    }
                },
            );
            acc
        };
        let parts: Vec<Vec<R>> = x[..self.n * width].par_chunks(group * width).map(partial).collect();
        for (j, o) in out.iter_mut().enumerate() {
            *o = narrow::<E, R>(parts.iter().fold(R::ZERO, |s, p| s + p[j]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_any_dims() {
        let t = Tensor::from_vec((0..24).map(|x| x as f64).collect(), &[2, 3, 4]).unwrap();
        assert_eq!(t.sum(&[0, 1, 2], false).unwrap().to_scalar().unwrap(), 276.0);
        assert_eq!(t.sum(&[2], false).unwrap().to_f64_vec().unwrap(), [6.0, 22.0, 38.0, 54.0, 70.0, 86.0]);
        assert_eq!(t.sum(&[0, 1], false).unwrap().to_f64_vec().unwrap(), [60.0, 66.0, 72.0, 78.0]);
        assert_eq!(t.sum(&[1], true).unwrap().dims(), [2, 1, 4]);
        assert_eq!(t.sum(&[1], true).unwrap().to_f64_vec().unwrap()[..2], [12.0, 15.0]);
        assert_eq!(t.sum(&[0, 2], false).unwrap().to_f64_vec().unwrap(), [60.0, 92.0, 124.0]);
        assert_eq!(t.mean(&[2], false).unwrap().to_f64_vec().unwrap()[0], 1.5);
        assert!(t.sum(&[3], false).is_err());
    }

    #[test]
    fn half_precision_sums_in_f32() {
        let t = Tensor::full(1.0, &[4096], DType::BF16, &crate::Device::Cpu).unwrap();
        assert_eq!(t.sum_all().unwrap().to_scalar().unwrap(), 4096.0);
    }

    #[test]
    fn argmax_takes_the_first_and_shows_nan() {
        let t = Tensor::from_vec(vec![1f32, 3.0, 3.0, 2.0, f32::NAN, 9.0], &[2, 3]).unwrap();
        assert_eq!(t.argmax().unwrap().to_vec::<i64>().unwrap(), [1, 1]);
        let empty = Tensor::zeros(&[2, 0], DType::F32, &crate::Device::Cpu).unwrap();
        assert!(empty.argmax().is_err());
        assert_eq!(empty.sum(&[1], false).unwrap().to_f64_vec().unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn long_sums_do_not_depend_on_threads() {
        let n = 10 * BLOCK + 3;
        let t = Tensor::from_vec((0..n).map(|i| ((i * 37) % 101) as f32 * 0.013).collect(), &[n]).unwrap();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let a = one.install(|| t.sum_all().unwrap().to_scalar().unwrap());
        let b = t.sum_all().unwrap().to_scalar().unwrap();
        assert_eq!(a.to_bits(), b.to_bits());
    }
}
