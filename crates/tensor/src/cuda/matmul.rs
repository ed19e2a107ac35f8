//! Dense products through cuBLASLt, with f32 accumulation (f64 for f64).

use std::sync::atomic::{AtomicBool, Ordering};

use flashlin_cuda::{MatmulArgs, MatmulSpec, Operand, Scalar};

use super::buffer;
use crate::{DType, Error, Result, Tensor};

/// How a GPU multiplies f32 matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// In f32.
    #[default]
    F32,
    /// Operands rounded to TF32 (11 bits), several times as fast.
    Tf32,
}

static TF32: AtomicBool = AtomicBool::new(false);

/// Chooses how f32 matrices are multiplied on all GPUs, from the next product of this process on. It is no thread's own: a forward pass and
/// its backward may run on different threads and must agree.
pub fn set_products(products: Products) {
    TF32.store(products == Products::Tf32, Ordering::Relaxed);
}

/// How f32 matrices are multiplied on GPUs: [`Products::F32`] unless [`set_products`] said otherwise.
pub fn products() -> Products {
    if TF32.load(Ordering::Relaxed) { Products::Tf32 } else { Products::F32 }
}

impl std::str::FromStr for Products {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "f32" => Ok(Products::F32),
            "tf32" => Ok(Products::Tf32),
            other => {
                Err(Error::invalid("products", "products", format!("is `{other}`, expected f32 or tf32")))
            }
        }
    }
}

fn scalar(dtype: DType) -> Result<Scalar> {
    match dtype {
        DType::F64 => Ok(Scalar::F64),
        DType::F32 => Ok(Scalar::F32),
        DType::BF16 => Ok(Scalar::Bf16),
        DType::F16 => Ok(Scalar::F16),
        other => Err(Error::dtype("matmul", "self", other, "f64, f32, bf16 or f16")),
    }
}

/// Distance of the matrices of a batch, where one number tells it.
fn batch_stride(t: &Tensor) -> Option<usize> {
    let lead = t.rank() - 2;
    let used = (0..lead).filter(|&i| t.dim(i) > 1).collect::<Vec<_>>();
    let Some(&last) = used.last() else { return Some(0) };
    let step = t.strides()[last];
    let even = used.windows(2).all(|p| t.strides()[p[0]] == t.strides()[p[1]] * t.dim(p[1]));
    even.then_some(step)
}

/// A matrix (batch) as the library reads it; copied where its strides are not of that kind.
fn operand(t: &Tensor) -> Result<(Tensor, Operand)> {
    let of = |t: &Tensor| {
        let r = t.rank() - 2;
        let [row, col] = [t.strides()[r], t.strides()[r + 1]];
        Operand::of_strides(t.dim(r), t.dim(r + 1), row, col, batch_stride(t)?)
    };
    if let Some(o) = of(t) {
        return Ok((t.clone(), o));
    }
    let dense = t.contiguous()?;
    let o =
        of(&dense).ok_or_else(|| Error::invalid("matmul", "self", "has strides that no copy evens out"))?;
    Ok((dense, o))
}

/// `out` = a b for expanded a `[.., m, k]`, b `[.., k, n]` and contiguous `out` `[.., m, n]`, all of one GPU. Operands of two dtypes are an error:
/// the library takes one.
pub(crate) fn product(a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    let r = a.rank() - 2;
    let (m, k, n) = (a.dim(r), a.dim(r + 1), b.dim(r + 1));
    if a.dtype != b.dtype {
        let what = format!("{} times {} on a GPU", a.dtype, b.dtype);
        return Err(Error::unsupported("matmul", what, "operands of one dtype"));
    }
    let ((a, a_layout), (b, b_layout)) = (operand(a)?, operand(b)?);
    let spec = MatmulSpec {
        batch: a.dims()[..r].iter().product(),
        a: a_layout,
        b: b_layout,
        c_batch_stride: m * n,
        output: scalar(out.dtype)?,
        tf32: a.dtype == DType::F32 && products() == Products::Tf32,
        ..MatmulSpec::dense(m, n, k, scalar(a.dtype)?)
    };
    let args = MatmulArgs::new(a.device_address()?, b.device_address()?, out.device_address()?);
    // SAFETY: the operands' strides stay inside their live storage, and the output is a fresh array of m * n elements a product.
    unsafe { buffer(out)?.0.gpu().matmul(&spec, &args) }.map_err(Error::Cuda)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn batches_with_one_distance_are_read_in_place() {
        let t = Tensor::zeros(&[2, 3, 4, 5], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(batch_stride(&t), Some(20));
        assert_eq!(batch_stride(&t.transpose(2, 3).unwrap()), Some(20));
        assert_eq!(batch_stride(&t.transpose(0, 1).unwrap()), None);
        assert_eq!(batch_stride(&t.narrow(1, 0, 1).unwrap()), Some(60));
        let one = Tensor::zeros(&[4, 5], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(batch_stride(&one.expand(&[2, 3, 4, 5]).unwrap()), Some(0));
    }
}
