//! Elementwise operations with broadcasting, and casts. Half precision is computed in f32 and rounded once.

use half::{bf16, f16};

use crate::{
    DType, Device, Element, Error, Real, Result, Tensor,
    cpu::{math, par_zip, par_zip2, vectorized},
    cuda,
    layout::broadcast,
    tensor::dispatch,
};

/// A function of one number, for every float type.
pub(crate) trait UnaryFn: Sync {
    /// What the GPU's kernel calls it (see `tiles/src/array/unary.rs`), with two parameters.
    fn code(&self) -> (i32, f64, f64);
    fn call<R: Real>(&self, x: R) -> R;
}

/// A function of two numbers, for every float type and (where it makes sense) for integers.
pub(crate) trait BinaryFn: Sync {
    /// What the GPU's kernel calls it (see `tiles/src/array/zip.rs`).
    const CODE: i32;
    fn call<R: Real>(&self, a: R, b: R) -> R;
    fn int(&self, _a: i64, _b: i64) -> Option<i64> {
        None
    }
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident, $Type:ident = $code:literal, |$x:ident| $body:expr;)*) => {
        $(
            pub(crate) struct $Type;
            impl UnaryFn for $Type {
                fn code(&self) -> (i32, f64, f64) {
                    ($code, 0.0, 0.0)
                }
                #[inline(always)]
                fn call<R: Real>(&self, $x: R) -> R { $body }
            }
        )*
        impl Tensor {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// For integer tensors.
            pub fn $name(&self) -> Result<Tensor> {
                self.map(stringify!($name), $Type)
            }
        )*}
    };
}

unary! {
    /// -x
    neg, Neg = 0, |x| -x;
    /// e^x
    exp, ExpFn = 1, |x| x.exp();
    /// Natural logarithm.
    log, Log = 2, |x| x.ln();
    /// Square root.
    sqrt, Sqrt = 3, |x| x.sqrt();
    /// 1 / sqrt(x)
    rsqrt, Rsqrt = 4, |x| R::ONE / x.sqrt();
    /// 1 / x
    recip, Recip = 5, |x| R::ONE / x;
    /// |x|
    abs, Abs = 6, |x| x.abs();
    /// x^2
    sqr, Sqr = 7, |x| x * x;
    /// Sine.
    sin, Sin = 8, |x| x.sin();
    /// Cosine.
    cos, Cos = 9, |x| x.cos();
    /// Hyperbolic tangent.
    tanh, Tanh = 10, |x| x.tanh();
    /// 1 / (1 + e^-x)
    sigmoid, Sigmoid = 11, |x| math::sigmoid(x);
    /// x sigmoid(x)
    silu, Silu = 12, |x| math::silu(x);
    /// ln(1 + e^x)
    softplus, Softplus = 13, |x| math::softplus(x);
    /// max(x, 0)
    relu, Relu = 14, |x| x.max(R::ZERO);
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident, $Type:ident = $code:literal, |$a:ident, $b:ident| $body:expr, $int:expr;)*) => {
        $(
            pub(crate) struct $Type;
            impl BinaryFn for $Type {
                const CODE: i32 = $code;
                #[inline(always)]
                fn call<R: Real>(&self, $a: R, $b: R) -> R { $body }
                fn int(&self, $a: i64, $b: i64) -> Option<i64> { $int }
            }
        )*
        impl Tensor {$(
            $(#[$doc])*
            /// Shapes broadcast.
            ///
            /// # Errors
            /// When shapes do not broadcast, dtypes differ, or the dtype has no such operation.
            pub fn $name(&self, rhs: &Tensor) -> Result<Tensor> {
                self.zip(rhs, stringify!($name), $Type)
            }
        )*}
    };
}

binary! {
    /// a + b.
    add, Add = 0, |a, b| a + b, Some(a.wrapping_add(b));
    /// a - b.
    sub, Sub = 1, |a, b| a - b, Some(a.wrapping_sub(b));
    /// a b.
    mul, Mul = 2, |a, b| a * b, Some(a.wrapping_mul(b));
    /// a / b.
    div, Div = 3, |a, b| a / b, { let _ = (a, b); None };
    /// The larger; a NaN operand gives the other one.
    maximum, Maximum = 4, |a, b| a.max(b), Some(a.max(b));
    /// The smaller; a NaN operand gives the other one.
    minimum, Minimum = 5, |a, b| a.min(b), Some(a.min(b));
}

struct Affine(f64, f64);
impl UnaryFn for Affine {
    fn code(&self) -> (i32, f64, f64) {
        (15, self.0, self.1)
    }
    #[inline(always)]
    fn call<R: Real>(&self, x: R) -> R {
        x * R::from_f64(self.0) + R::from_f64(self.1)
    }
}

struct Clamp(f64, f64);
impl UnaryFn for Clamp {
    fn code(&self) -> (i32, f64, f64) {
        (16, self.0, self.1)
    }
    #[inline(always)]
    fn call<R: Real>(&self, x: R) -> R {
        let (lo, hi) = (R::from_f64(self.0), R::from_f64(self.1));
        // Written so that NaN stays NaN.
        if x < lo {
            lo
        } else if x > hi {
            hi
        } else {
            x
        }
    }
}

impl Tensor {
    /// x * scale + shift
    ///
    /// # Errors
    /// For integer tensors.
    pub fn affine(&self, scale: f64, shift: f64) -> Result<Tensor> {
        self.map("affine", Affine(scale, shift))
    }

    /// x limited to [lo, hi]; NaN stays NaN.
    ///
    /// # Errors
    /// For integer tensors.
    pub fn clamp(&self, lo: f64, hi: f64) -> Result<Tensor> {
        self.map("clamp", Clamp(lo, hi))
    }

    /// Converts to another dtype (floats round to nearest even; floats to integers truncate).
    ///
    /// # Errors
    /// When memory is short.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        if self.device() != Device::Cpu {
            let out = Tensor::empty(self.dims(), dtype, &self.device())?;
            cuda::copy_into("to_dtype", self, &out)?;
            return Ok(out);
        }
        let src = self.contiguous()?;
        let mut out = Tensor::empty(self.dims(), dtype, &self.device())?;
        dispatch!(self.dtype, A => dispatch!(dtype, B => cast(src.as_slice::<A>()?, out.as_mut_slice::<B>()?)));
        Ok(out)
    }

    /// Applies a function to each element.
    pub(crate) fn map<F: UnaryFn>(&self, op: &'static str, f: F) -> Result<Tensor> {
        if self.device() != Device::Cpu {
            return cuda::unary(op, self, f.code());
        }
        let src = self.contiguous()?;
        let mut out = Tensor::empty(self.dims(), self.dtype, &self.device())?;
        match self.dtype {
            DType::F64 => {
                par_zip(out.as_mut_slice::<f64>()?, src.as_slice()?, |o, a| map_block::<f64, f64>(o, a, &f))
            }
            DType::F32 => {
                par_zip(out.as_mut_slice::<f32>()?, src.as_slice()?, |o, a| map_block::<f32, f32>(o, a, &f))
            }
            DType::BF16 => {
                par_zip(out.as_mut_slice::<bf16>()?, src.as_slice()?, |o, a| map_block::<bf16, f32>(o, a, &f))
            }
            DType::F16 => {
                par_zip(out.as_mut_slice::<f16>()?, src.as_slice()?, |o, a| map_block::<f16, f32>(o, a, &f))
            }
            other => return Err(Error::dtype(op, "self", other, "a float type")),
        }
        Ok(out)
    }

    /// Applies a function to pairs of elements under broadcasting.
    pub(crate) fn zip<F: BinaryFn>(&self, rhs: &Tensor, op: &'static str, f: F) -> Result<Tensor> {
        self.same_device(op, rhs)?;
        if self.dtype != rhs.dtype {
            return Err(Error::dtype(op, "rhs", rhs.dtype, format!("{} as the left side", self.dtype)));
        }
        if f.int(0, 0).is_none() && !self.dtype.is_float() {
            return Err(Error::dtype(op, "self", self.dtype, "a float type"));
        }
        let dims = broadcast(op, self.dims(), rhs.dims())?;
        if self.device() != Device::Cpu {
            return cuda::zip(op, &self.expand(&dims)?, &rhs.expand(&dims)?, F::CODE);
        }
        let mut out = Tensor::empty(&dims, self.dtype, &self.device())?;
        if out.numel() == 0 {
            return Ok(out);
        }
        let a = self.expand(&dims)?.contiguous()?;
        // A right side that repeats over leading dimensions is read in place: biases, norm weights, scalars.
        let b = trailing(rhs, &dims)?;
        match self.dtype {
            DType::F64 => zip_floats::<f64, f64, F>(out.as_mut_slice()?, a.as_slice()?, b.as_slice()?, &f),
            DType::F32 => zip_floats::<f32, f32, F>(out.as_mut_slice()?, a.as_slice()?, b.as_slice()?, &f),
            DType::BF16 => zip_floats::<bf16, f32, F>(out.as_mut_slice()?, a.as_slice()?, b.as_slice()?, &f),
            DType::F16 => zip_floats::<f16, f32, F>(out.as_mut_slice()?, a.as_slice()?, b.as_slice()?, &f),
            DType::I64 => zip_ints::<i64, F>(out.as_mut_slice()?, a.as_slice()?, b.as_slice()?, &f),
            DType::I32 => zip_ints::<i32, F>(out.as_mut_slice()?, a.as_slice()?, b.as_slice()?, &f),
            DType::U8 => zip_ints::<u8, F>(out.as_mut_slice()?, a.as_slice()?, b.as_slice()?, &f),
        }
        Ok(out)
    }

    /// self += rhs in place, for a sole owner of equal shape and dtype (gradient accumulation).
    pub(crate) fn add_in_place(&mut self, rhs: &Tensor) -> Result<()> {
        debug_assert_eq!((self.dims(), self.dtype), (rhs.dims(), rhs.dtype));
        if self.device() != Device::Cpu {
            *self = self.add(rhs)?;
            return Ok(());
        }
        let rhs = rhs.contiguous()?;
        fn add<R: Real>(o: &mut [R], a: &[R]) {
            vectorized(
                #[inline(always)]
                || o.iter_mut().zip(a).for_each(|(o, &a)| *o += a),
            )
        }
        match self.dtype {
            DType::F32 => par_zip(self.as_mut_slice()?, rhs.as_slice()?, add::<f32>),
            DType::F64 => par_zip(self.as_mut_slice()?, rhs.as_slice()?, add::<f64>),
            _ => *self = self.add(&rhs)?,
        }
        Ok(())
    }
}

/// `rhs` as a contiguous run that repeats under `dims`: itself where only leading dimensions repeat, else expanded.
fn trailing(rhs: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let lead = rhs.dims().iter().take_while(|&&d| d == 1).count();
    let own = &rhs.dims()[lead..];
    if dims.ends_with(own) { rhs.contiguous() } else { rhs.expand(dims)?.contiguous() }
}

#[inline(always)]
fn map_block<E: Element, R: Real>(out: &mut [E], a: &[E], f: &impl UnaryFn) {
    vectorized(
        #[inline(always)]
        || {
            for (o, &x) in out.iter_mut().zip(a) {
                *o = from_real::<E, R>(f.call(to_real::<E, R>(x)));
            }
        },
    );
}

#[inline(always)]
fn to_real<E: Element, R: Real>(x: E) -> R {
    if R::DTYPE == DType::F64 { R::from_f64(x.to_f64()) } else { R::from_f32(x.to_f32()) }
}

#[inline(always)]
fn from_real<E: Element, R: Real>(x: R) -> E {
    if R::DTYPE == DType::F64 { E::from_f64(x.to_f64()) } else { E::from_f32(x.to_f32()) }
}

fn zip_floats<E: Element, R: Real, F: BinaryFn>(out: &mut [E], a: &[E], b: &[E], f: &F) {
    #[inline(always)]
    fn block<E: Element, R: Real>(o: &mut [E], a: &[E], b: &[E], f: &impl BinaryFn) {
        vectorized(
            #[inline(always)]
            || {
                for ((o, &a), &b) in o.iter_mut().zip(a).zip(b) {
                    *o = from_real::<E, R>(f.call(to_real::<E, R>(a), to_real::<E, R>(b)));
                }
            },
        );
    }
    if b.len() == a.len() {
        return par_zip2(out, a, b, |o, a, b| block::<E, R>(o, a, b, f));
    }
    if let [b] = *b {
        return par_zip(out, a, |o, a| {
            vectorized(
                #[inline(always)]
                || {
                    let b = to_real::<E, R>(b);
                    for (o, &a) in o.iter_mut().zip(a) {
                        *o = from_real::<E, R>(f.call(to_real::<E, R>(a), b));
                    }
                },
            )
        });
    }
    use rayon::prelude::*;
    out.par_chunks_mut(b.len()).zip(a.par_chunks(b.len())).for_each(|(o, a)| block::<E, R>(o, a, b, f));
}

fn zip_ints<E: Element, F: BinaryFn>(out: &mut [E], a: &[E], b: &[E], f: &F)
where
    i64: TryFromElement<E>,
{
    for ((o, &a), &b) in out.iter_mut().zip(a).zip(b.iter().cycle()) {
        if let Some(x) = f.int(i64::widen(a), i64::widen(b)) {
            *o = i64::truncate(x);
        }
    }
}

/// Exact passage of integer elements through i64.
trait TryFromElement<E> {
    fn widen(x: E) -> i64;
    fn truncate(x: i64) -> E;
}

macro_rules! through_i64 {
    ($($t:ty),*) => {$(
        impl TryFromElement<$t> for i64 {
            fn widen(x: $t) -> i64 { x as i64 }
            fn truncate(x: i64) -> $t { x as $t }
        }
    )*};
}
through_i64!(i64, i32, u8);

fn cast<A: Element, B: Element>(src: &[A], out: &mut [B]) {
    let exact_f32 = A::DTYPE.size() <= 4 && A::DTYPE.is_float() && B::DTYPE.is_float();
    let ints = !A::DTYPE.is_float() && !B::DTYPE.is_float();
    par_zip(out, src, |o, a| {
        vectorized(
            #[inline(always)]
            || {
                if exact_f32 {
                    o.iter_mut().zip(a).for_each(|(o, a)| *o = B::from_f32(a.to_f32()));
                } else if ints {
                    // i64 values beyond 2^53 would not survive f64.
                    o.iter_mut().zip(a).for_each(|(o, a)| *o = int_cast(*a));
                } else {
                    o.iter_mut().zip(a).for_each(|(o, a)| *o = B::from_f64(a.to_f64()));
                }
            },
        );
    });
}

fn int_cast<A: Element, B: Element>(a: A) -> B {
    let wide = if A::DTYPE == DType::I64 { bytemuck::cast::<A, i64>(a) } else { a.to_f64() as i64 };
    match B::DTYPE {
        DType::I64 => bytemuck::cast::<i64, B>(wide),
        DType::I32 => bytemuck::cast::<i32, B>(wide as i32),
        _ => bytemuck::cast::<u8, B>(wide as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(v: &[f32], dims: &[usize]) -> Tensor {
        Tensor::from_slice(v, dims).unwrap()
    }

    #[test]
    fn broadcasting_on_either_side() {
        let a = t(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
        let row = t(&[10.0, 20.0, 30.0], &[3]);
        let col = t(&[100.0, 200.0], &[2, 1]);
        assert_eq!(a.add(&row).unwrap().to_vec::<f32>().unwrap(), [11.0, 22.0, 33.0, 14.0, 25.0, 36.0]);
        assert_eq!(row.sub(&a).unwrap().to_vec::<f32>().unwrap(), [9.0, 18.0, 27.0, 6.0, 15.0, 24.0]);
        assert_eq!(
            a.mul(&col).unwrap().to_vec::<f32>().unwrap(),
            [100.0, 200.0, 300.0, 800.0, 1000.0, 1200.0]
        );
        let outer = col.add(&row).unwrap();
        assert_eq!(outer.dims(), [2, 3]);
        assert_eq!(outer.to_vec::<f32>().unwrap()[3], 210.0);
        assert_eq!(a.add(&t(&[1.0], &[])).unwrap().to_vec::<f32>().unwrap()[5], 7.0);
    }

    #[test]
    fn every_dtype_adds() {
        for d in DType::ALL {
            let a = Tensor::full(3.0, &[5], d, &crate::Device::Cpu).unwrap();
            assert_eq!(a.add(&a).unwrap().to_f64_vec().unwrap(), [6.0; 5], "{d}");
        }
        let i = Tensor::arange(0, 3).unwrap();
        assert!(i.div(&i).is_err());
        assert!(i.exp().is_err());
        assert!(i.add(&t(&[1.0], &[1])).is_err());
    }

    #[test]
    fn casts_round_and_keep_large_integers() {
        let big = Tensor::from_vec(vec![(1i64 << 60) + 1], &[1]).unwrap();
        assert_eq!(big.to_dtype(DType::I32).unwrap().to_vec::<i32>().unwrap(), [1]);
        let x = t(&[1.0, 1.003, -2.7], &[3]);
        let b = x.to_dtype(DType::BF16).unwrap();
        assert_eq!(b.to_f64_vec().unwrap()[1], 1.0);
        assert_eq!(x.to_dtype(DType::I64).unwrap().to_vec::<i64>().unwrap(), [1, 1, -2]);
        assert_eq!(b.to_dtype(DType::F32).unwrap().to_f64_vec().unwrap()[2], b.to_f64_vec().unwrap()[2]);
    }

    #[test]
    fn clamp_keeps_nan() {
        let x = t(&[f32::NAN, 5.0, -5.0], &[3]).clamp(-1.0, 1.0).unwrap().to_vec::<f32>().unwrap();
        assert!(x[0].is_nan());
        assert_eq!(x[1..], [1.0, -1.0]);
    }

    #[test]
    fn long_arrays_cross_blocks() {
        let n = 3 * crate::cpu::BLOCK + 7;
        let a = Tensor::from_vec((0..n).map(|i| i as f32).collect(), &[n]).unwrap();
        let y = a.affine(2.0, 1.0).unwrap().to_vec::<f32>().unwrap();
        assert!(y.iter().enumerate().all(|(i, &y)| y == 2.0 * i as f32 + 1.0));
    }
}
