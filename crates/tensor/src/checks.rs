//! Every operation of this crate on a device beside the CPU: what `flashlin verify-ops --device` runs for tensors, so that a GPU machine
//! needs a binary and no cargo. Inputs are fresh normals; the measure is the relative L2 error.

use crate::{DType, Device, Philox, Result, Tensor};

/// What one check found.
#[derive(Debug)]
pub struct Check {
    /// Operation, dtype and shape.
    pub name: String,
    /// Relative L2 error against the CPU, or why there is none.
    pub error: Result<f64>,
    /// Largest error that passes.
    pub tolerance: f64,
}

impl Check {
    /// True where the operation ran and agreed.
    pub fn passed(&self) -> bool {
        self.error.as_ref().is_ok_and(|e| *e <= self.tolerance)
    }
}

type Case = (&'static str, fn(&Tools) -> Result<Tensor>);

/// Makes a case's inputs on a device.
struct Tools {
    device: Device,
    dtype: DType,
}

impl Tools {
    fn normal(&self, stream: u64, dims: &[usize]) -> Result<Tensor> {
        // Rounded through the dtype on the host, so that both devices see the same numbers.
        Philox::new(17, stream).randn(0.0, 1.0, dims, self.dtype, &self.device)
    }

    fn positive(&self, stream: u64, dims: &[usize]) -> Result<Tensor> {
        Philox::new(17, stream).rand(0.5, 2.0, dims, self.dtype, &self.device)
    }

    fn index(&self, values: &[i64]) -> Result<Tensor> {
        Tensor::from_slice(values, &[values.len()])?.to_device(&self.device)
    }

    fn mask(&self, n: usize) -> Result<Tensor> {
        Tensor::from_vec((0..n).map(|i| (i % 3 == 0) as u8).collect(), &[n])?.to_device(&self.device)
    }
}

const DIMS: [usize; 3] = [3, 5, 700];

/// Each gives one tensor; views, broadcasts, odd sizes and more than one block are among them.
const CASES: &[Case] = &[
    ("neg", |t| t.normal(1, &DIMS)?.neg()),
    ("exp", |t| t.normal(1, &DIMS)?.exp()),
    ("log", |t| t.positive(1, &DIMS)?.log()),
    ("sqrt", |t| t.positive(1, &DIMS)?.sqrt()),
    ("rsqrt", |t| t.positive(1, &DIMS)?.rsqrt()),
    ("recip", |t| t.positive(1, &DIMS)?.recip()),
    ("abs", |t| t.normal(1, &DIMS)?.abs()),
    ("sqr", |t| t.normal(1, &DIMS)?.sqr()),
    ("sin", |t| t.normal(1, &DIMS)?.sin()),
    ("cos", |t| t.normal(1, &DIMS)?.cos()),
    ("tanh", |t| t.normal(1, &DIMS)?.tanh()),
    ("sigmoid", |t| t.normal(1, &DIMS)?.sigmoid()),
    ("silu", |t| t.normal(1, &DIMS)?.silu()),
    ("softplus", |t| t.normal(1, &DIMS)?.softplus()),
    ("relu", |t| t.normal(1, &DIMS)?.relu()),
    ("affine", |t| t.normal(1, &DIMS)?.affine(-2.5, 0.25)),
    ("clamp", |t| t.normal(1, &DIMS)?.clamp(-0.5, 1.0)),
    ("unary of a transposed view", |t| t.normal(1, &DIMS)?.transpose(0, 2)?.exp()),
    ("add", |t| t.normal(1, &DIMS)?.add(&t.normal(2, &DIMS)?)),
    ("sub, a row", |t| t.normal(1, &DIMS)?.sub(&t.normal(2, &[700])?)),
    ("mul, a column", |t| t.normal(1, &DIMS)?.mul(&t.normal(2, &[5, 1])?)),
    ("div, a scalar", |t| t.normal(1, &DIMS)?.div(&t.positive(2, &[])?)),
    ("maximum, both repeated", |t| t.normal(1, &[3, 1, 7])?.maximum(&t.normal(2, &[5, 1])?)),
    ("minimum of views", |t| {
        let x = t.normal(1, &[4, 6, 50])?;
        x.narrow(1, 1, 3)?.minimum(&x.narrow(1, 3, 3)?)
    }),
    ("contiguous", |t| t.normal(1, &[4, 3, 5, 60])?.permute(&[2, 0, 3, 1])?.contiguous()),
    ("expand and copy", |t| t.normal(1, &[5, 1])?.expand(&[2, 5, 9])?.copy()),
    ("full", |t| Tensor::full(1.5, &[7, 300], t.dtype, &t.device)),
    ("zeros", |t| Tensor::zeros(&[7, 3], t.dtype, &t.device)?.add(&t.normal(1, &[3])?)),
    ("to f32", |t| t.normal(1, &DIMS)?.to_dtype(DType::F32)),
    ("to bf16", |t| t.normal(1, &DIMS)?.to_dtype(DType::BF16)),
    ("to f16", |t| t.normal(1, &DIMS)?.to_dtype(DType::F16)),
    ("cat", |t| {
        let (a, b) = (t.normal(1, &[3, 5, 4])?, t.normal(2, &[3, 2, 4])?);
        Tensor::cat(&[&a, &b, &a], 1)
    }),
    ("write", |t| {
        let mut x = t.normal(1, &[3, 5, 40])?;
        x.write(&[1, 2, 7], &t.normal(2, &[40, 2, 2])?.permute(&[1, 2, 0])?.narrow(2, 3, 30)?)?;
        Ok(x)
    }),
    ("where", |t| t.normal(1, &[9, 700])?.where_(&t.mask(700)?, &t.normal(2, &[9, 1])?)),
    ("sum along", |t| t.normal(1, &[13, 5000])?.sum(&[1], false)),
    ("sum down", |t| t.normal(1, &[1000, 130])?.sum(&[0], true)),
    ("sum of the middle", |t| t.normal(1, &[3, 40, 70])?.sum(&[1], false)),
    ("sum of all", |t| t.normal(1, &[77, 81])?.sum_all()),
    ("mean", |t| t.normal(1, &[13, 700])?.mean(&[1], true)),
    ("index_select", |t| t.normal(1, &[50, 1300])?.index_select(&t.index(&[3, 49, 0, 3])?)),
    ("index_add", |t| t.normal(1, &[2500, 33])?.index_add(&t.index(&many(2500))?, 60)),
    ("index of the host", |t| {
        let at = Tensor::from_vec(vec![1i32, 4, 1], &[3])?;
        t.normal(1, &[5, 40])?.index_select(&at)?.index_add(&at, 5)
    }),
    ("max_last", |t| Ok(t.normal(1, &[3, 5, 2700])?.max_last()?.0)),
    ("argmax", |t| {
        // Equal elements, and infinities: the first wins.
        let x = Tensor::cat(&[&t.normal(1, &[7, 1300])?, &t.normal(1, &[7, 1300])?], 1)?;
        let low = Tensor::full(f64::NEG_INFINITY, &[7, 2600], t.dtype, &t.device)?;
        Tensor::cat(&[&x, &low], 0)?.argmax()
    }),
    ("argmax of NaN", |t| {
        let x = t.normal(1, &[4, 1500])?;
        let nan = Tensor::full(f64::NAN, &[4, 9], t.dtype, &t.device)?;
        Tensor::cat(&[&x, &nan], 1)?.argmax()
    }),
    ("gt, ge", |t| {
        let x = Tensor::cat(&[&t.normal(1, &[900])?, &Tensor::full(0.5, &[300], t.dtype, &t.device)?], 0)?;
        let (one, zero) = (Tensor::ones(&[], t.dtype, &t.device)?, Tensor::zeros(&[], t.dtype, &t.device)?);
        Tensor::cat(&[&one.where_(&x.gt(0.5)?, &zero)?, &one.where_(&x.ge(0.5)?, &zero)?], 0)
    }),
    ("matmul", |t| t.normal(1, &[70, 96])?.matmul(&t.normal(2, &[96, 130])?)),
    ("matmul, transposed", |t| {
        let (a, b) = (t.normal(1, &[96, 70])?, t.normal(2, &[130, 96])?);
        a.transpose(0, 1)?.matmul(&b.transpose(0, 1)?)
    }),
    ("matmul, batches", |t| t.normal(1, &[2, 3, 40, 24])?.matmul(&t.normal(2, &[3, 24, 16])?)),
    ("matmul, odd sizes", |t| t.normal(1, &[7, 13])?.matmul(&t.normal(2, &[13, 5])?)),
    ("linear", |t| t.normal(1, &[2, 17, 64])?.linear(&t.normal(2, &[48, 64])?)),
    ("linear_many", |t| {
        let ws = [t.normal(2, &[48, 64])?, t.normal(3, &[8, 64])?];
        let ys = t.normal(1, &[3, 64])?.linear_many(&ws.each_ref())?;
        Tensor::cat(&ys.iter().collect::<Vec<_>>(), 1)
    }),
    ("nothing", |t| Tensor::zeros(&[0, 5], t.dtype, &t.device)?.exp()?.sum(&[0], false)),
];

/// Indices that repeat unevenly.
fn many(n: i64) -> Vec<i64> {
    (0..n).map(|i| if i % 4 == 0 { 7 } else { i * i % 60 }).collect()
}

/// Runs every case on `device` in f32, bf16 and f16.
pub fn run(device: &Device) -> Vec<Check> {
    let mut out = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (name, case) in CASES {
            let on = |device| case(&Tools { device, dtype });
            let compared = || {
                let (want, got) = (on(Device::Cpu)?, on(*device)?);
                distance(&got, &want)
            };
            let tolerance = match dtype {
                DType::F32 => 1e-5,
                DType::F16 => 1e-3,
                _ => 6e-3,
            };
            out.push(Check { name: format!("{name}, {dtype}"), error: compared(), tolerance });
        }
    }
    out
}

fn distance(got: &Tensor, want: &Tensor) -> Result<f64> {
    if (got.dims(), got.dtype()) != (want.dims(), want.dtype()) {
        let text = format!("{} {:?} as on the CPU", want.dtype(), want.dims());
        return Err(crate::Error::shape("check", "result", got.dims(), text));
    }
    let (got, want) = (got.to_f64_vec()?, want.to_f64_vec()?);
    let norm = want.iter().map(|x| x * x).sum::<f64>().sqrt();
    let off = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    // A NaN is an error of infinity: comparisons with it are false.
    let error = if norm > 0.0 { off / norm } else { off };
    Ok(if error.is_nan() { f64::INFINITY } else { error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself_and_every_case_runs() {
        for check in run(&Device::Cpu) {
            assert!(check.passed(), "{check:?}");
        }
    }

    #[test]
    fn a_wrong_result_fails() {
        let x = Tensor::ones(&[4], DType::F32, &Device::Cpu).unwrap();
        let off = |y: &Tensor| Check { name: String::new(), error: distance(y, &x), tolerance: 1e-5 };
        assert!(off(&x).passed());
        assert!(!off(&x.affine(1.001, 0.0).unwrap()).passed());
        assert!(!off(&x.affine(f64::NAN, 0.0).unwrap()).passed());
        assert!(!off(&x.reshape(&[2, 2]).unwrap()).passed());
        assert!(!off(&x.to_dtype(DType::F16).unwrap()).passed());
    }
}
