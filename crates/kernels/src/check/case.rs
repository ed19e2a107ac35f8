//! One launch with known results.

use half::{bf16, f16};

use crate::{ArgKind, Error, Kernel, Result};

/// Numbers of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// IEEE half.
    F16(Vec<f16>),
    /// IEEE single.
    F32(Vec<f32>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// Bytes.
    U8(Vec<u8>),
}

impl Data {
    /// Rounds to the type of this name (`bf16`, `f16`, `f32`).
    ///
    /// # Errors
    /// Another name.
    pub fn round(dtype: &str, values: &[f64]) -> Result<Data> {
        Ok(match dtype {
            "bf16" => Data::Bf16(values.iter().map(|x| bf16::from_f64(*x)).collect()),
            "f16" => Data::F16(values.iter().map(|x| f16::from_f64(*x)).collect()),
            "f32" => Data::F32(values.iter().map(|x| *x as f32).collect()),
            other => {
                let why = format!("`{other}` is no dtype of data; there are bf16, f16, f32");
                return Err(Error::Entry { name: "check".into(), why });
            }
        })
    }

    /// `len` elements of the type of this name, all NaN (-1 for `i32` and `i64`, 255 for `u8`): what an output holds before the launch.
    ///
    /// # Errors
    /// Another name.
    pub fn poison(dtype: &str, len: usize) -> Result<Data> {
        match dtype {
            "i32" => Ok(Data::I32(vec![-1; len])),
            "i64" => Ok(Data::I64(vec![-1; len])),
            "u8" => Ok(Data::U8(vec![0xFF; len])),
            float => Data::round(float, &vec![f64::NAN; len]),
        }
    }

    /// Its values in f64, exactly.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Data::Bf16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Data::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Data::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
            Data::I32(v) => v.iter().map(|x| f64::from(*x)).collect(),
            Data::I64(v) => v.iter().map(|x| *x as f64).collect(),
            Data::U8(v) => v.iter().map(|x| f64::from(*x)).collect(),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        use flashlin_cuda::bytes_of;
        match self {
            Data::Bf16(v) => bytes_of(v),
            Data::F16(v) => bytes_of(v),
            Data::F32(v) => bytes_of(v),
            Data::I32(v) => bytes_of(v),
            Data::I64(v) => bytes_of(v),
            Data::U8(v) => v,
        }
    }

    /// Its bytes, to be filled from the device.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        use flashlin_cuda::bytes_of_mut;
        match self {
            Data::Bf16(v) => bytes_of_mut(v),
            Data::F16(v) => bytes_of_mut(v),
            Data::F32(v) => bytes_of_mut(v),
            Data::I32(v) => bytes_of_mut(v),
            Data::I64(v) => bytes_of_mut(v),
            Data::U8(v) => v,
        }
    }

    /// Name of its type.
    pub fn dtype(&self) -> &'static str {
        match self {
            Data::Bf16(_) => "bf16",
            Data::F16(_) => "f16",
            Data::F32(_) => "f32",
            Data::I32(_) => "i32",
            Data::I64(_) => "i64",
            Data::U8(_) => "u8",
        }
    }
}

/// What must come out.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// The reference.
    pub values: Vec<f64>,
    /// Largest relative L2 error.
    pub tolerance: f64,
}

impl Expected {
    /// A reference with the tolerance of a type ([`tolerance`]).
    pub fn of(dtype: &str, values: Vec<f64>) -> Expected {
        Expected { values, tolerance: tolerance(dtype) }
    }
}

/// One argument of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Read only.
    In(Data),
    /// Written wholly: `dtype` names its type; begins as NaN.
    Out {
        /// Name of its type.
        dtype: &'static str,
        /// What must come out.
        expected: Expected,
    },
    /// Read, then written.
    InOut {
        /// What it holds before the launch.
        data: Data,
        /// What must come out.
        expected: Expected,
    },
    /// Memory of this many bytes that the kernel may use as it likes; begins as NaN.
    Scratch(usize),
    /// No memory: the null address.
    Null,
    /// A 32-bit integer.
    I32(i32),
    /// A 64-bit integer.
    I64(i64),
    /// A 32-bit float.
    F32(f32),
}

impl Value {
    /// A size or a flag, as kernels take them.
    pub fn size(n: usize) -> Value {
        Value::I32(n as i32)
    }

    /// An output with the tolerance of its type.
    pub fn out(dtype: &'static str, values: Vec<f64>) -> Value {
        Value::Out { dtype, expected: Expected::of(dtype, values) }
    }
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// What is special about it, e.g. `T=130, ragged tail`.
    pub label: String,
    /// Arguments by name, in the order of the ABI.
    pub args: Vec<(&'static str, Value)>,
    /// Tile blocks.
    pub grid: [u32; 3],
}

impl Case {
    /// Whether the arguments are those of the kernel, in name, order and kind, and something is compared.
    ///
    /// # Errors
    /// [`Error::Entry`] that names the difference.
    pub fn fits(&self, kernel: &Kernel) -> Result<()> {
        let bad = |why: String| {
            Err(Error::Entry { name: kernel.name.clone(), why: format!("case {}: {why}", self.label) })
        };
        if self.args.len() != kernel.abi.len() {
            return bad(format!("{} arguments where the kernel takes {}", self.args.len(), kernel.abi.len()));
        }
        for ((name, value), arg) in self.args.iter().zip(&kernel.abi) {
            let kind = match value {
                Value::I32(_) => ArgKind::I32,
                Value::I64(_) => ArgKind::I64,
                Value::F32(_) => ArgKind::F32,
                _ => ArgKind::Ptr,
            };
            if *name != arg.name || kind != arg.kind {
                return bad(format!(
                    "{name} ({kind:?}) where the kernel takes {} ({:?})",
                    arg.name, arg.kind
                ));
            }
            if let Value::InOut { data, expected } = value
                && data.to_f64().len() != expected.values.len()
            {
                return bad(format!("{name} has {} expected values", expected.values.len()));
            }
        }
        if !self.args.iter().any(|(_, v)| matches!(v, Value::Out { .. } | Value::InOut { .. })) {
            return bad("it compares nothing".into());
        }
        Ok(())
    }
}

/// The largest relative L2 error that a kernel may have whose inputs are of this type: the one table for all checks.
pub fn tolerance(dtype: &str) -> f64 {
    match dtype {
        "bf16" => 1e-2,
        "f16" => 2e-3,
        "f32" => 1e-5,
        "tf32" => 2e-3,
        // Integers and unknown names: exact.
        _ => 0.0,
    }
}

/// ||got - want|| / ||want||; infinite where `got` is not finite or lengths differ. An all-zero reference asks for exact zeros.
pub fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() || got.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let difference: f64 = got.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm: f64 = want.iter().map(|x| x * x).sum();
    match (difference, norm) {
        (0.0, _) => 0.0,
        (_, 0.0) => f64::INFINITY,
        (d, n) => (d / n).sqrt(),
    }
}

/// Reproducible numbers for cases, each a function of a seed, a stream and an index. For checks alone: everything random in the library is Philox.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// Chooses the numbers.
    pub seed: u64,
}

impl Inputs {
    /// `len` numbers, uniform in [low, high), from stream `stream`.
    pub fn uniform(&self, stream: u64, len: usize, low: f64, high: f64) -> Vec<f64> {
        let key = mix(self.seed ^ mix(stream.wrapping_add(0x9E37_79B9_7F4A_7C15)));
        let unit = |i: usize| (mix(key.wrapping_add(i as u64)) >> 11) as f64 / (1u64 << 53) as f64;
        (0..len).map(|i| low + (high - low) * unit(i)).collect()
    }

    /// Rows of `width` numbers, each row of length 1.
    pub fn unit_rows(&self, stream: u64, rows: usize, width: usize) -> Vec<f64> {
        let mut out = self.uniform(stream, rows * width, -1.0, 1.0);
        for row in out.chunks_mut(width.max(1)) {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-30);
            row.iter_mut().for_each(|x| *x /= norm);
        }
        out
    }
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_and_nan_never_passes() {
        assert_eq!(relative_error(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert!((relative_error(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-12);
        assert_eq!(relative_error(&[f64::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(relative_error(&[1.0], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(relative_error(&[1e-9], &[0.0]), f64::INFINITY);
        assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
    }

    #[test]
    fn inputs_repeat_and_fill_their_range() {
        let inputs = Inputs { seed: 7 };
        let a = inputs.uniform(1, 4000, -2.0, 1.0);
        assert_eq!(a, inputs.uniform(1, 4000, -2.0, 1.0));
        assert_ne!(a, inputs.uniform(2, 4000, -2.0, 1.0));
        let mean = a.iter().sum::<f64>() / 4000.0;
        assert!((mean + 0.5).abs() < 0.06 && a.iter().all(|x| (-2.0..1.0).contains(x)), "{mean}");
        for row in inputs.unit_rows(3, 5, 16).chunks(16) {
            assert!((row.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn poison_is_nan_in_every_float_type() {
        for dtype in ["bf16", "f16", "f32"] {
            assert!(Data::poison(dtype, 3).unwrap().to_f64().iter().all(|x| x.is_nan()));
        }
        assert_eq!(Data::poison("i32", 1).unwrap(), Data::I32(vec![-1]));
        assert!(Data::round("fp8", &[1.0]).is_err());
        assert_eq!(Data::round("bf16", &[1.0]).unwrap().bytes(), [0x80, 0x3F]);
    }
}
