//! Vector building blocks of the CPU kernels: the number types, aligned scratch, `exp`, and small matrix products.
//!
//! Why own products beside `gemm`: the chunked algorithms multiply blocks of 16 to 256 that already sit in L1, where
//! a general product spends more time packing than multiplying (measured: 53-77 of 116 GFLOP/s at 64^3).
//! Policy: `pulp` picks the widest instruction set once a call and everything below is safe code; panels have rows
//! padded to [`PAD`] columns of zeros, so no kernel has a column tail; the reduction order depends on the shape only.

/// Defines a function over slices whose loop is compiled for each instruction set.
///
/// A struct with an always-inlined body instead of a closure: the compiler need not inline a closure into the code
/// compiled for AVX-512, and one that it leaves out runs as baseline SSE (measured: four times as slow).
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$lt:lifetime, $r:ident>($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name<$lt, $r: $crate::simd::Real>(arch: $crate::simd::Arch, $($arg: $ty),*) {
            struct Kernel<$lt, $r> {
                $($arg: $ty,)*
                _life: std::marker::PhantomData<&$lt $r>,
            }
            impl<$lt, $r: $crate::simd::Real> pulp::WithSimd for Kernel<$lt, $r> {
                type Output = ();
                #[inline(always)]
                fn with_simd<Set: pulp::Simd>(self, _set: Set) {
                    let Kernel { $($arg,)* _life: _ } = self;
                    $body
                }
            }
            arch.dispatch(Kernel { $($arg,)* _life: std::marker::PhantomData })
        }
    };
}
pub(crate) use kernel;

mod buf;
mod elementwise;
mod matmul;
#[cfg(test)]
mod tests;

pub use buf::Buf;
pub use elementwise::{dot, exp_in_place, transpose};
pub use matmul::{Extent, Mat, Store, mm_nn, mm_tn};
pub use pulp::Arch;
use pulp::Simd;

/// Columns of a panel are padded to a multiple of this, in elements: one AVX-512 vector of f32, two of f64.
pub const PAD: usize = 16;

/// `n` rounded up to a multiple of [`PAD`].
pub const fn padded(n: usize) -> usize {
    n.div_ceil(PAD) * PAD
}

/// The number types that kernels compute in, with their vectors: f32 (for f32, bf16 and f16 inputs) and f64.
pub trait Real: flashlin_tensor::Real {
    /// A vector of the instruction set `S`.
    type V<S: Simd>: bytemuck::Pod;
    /// Lanes of [`Self::V`]: 16, 8, 4, 2 or 1, always a divisor of [`PAD`].
    fn lanes<S: Simd>() -> usize;
    /// All lanes `x`.
    fn splat<S: Simd>(simd: S, x: Self) -> Self::V<S>;
    /// `a * b + c`, fused where the instruction set has it.
    fn vfma<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>, c: Self::V<S>) -> Self::V<S>;
    /// `a + b`.
    fn vadd<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    /// `a - b`.
    fn vsub<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    /// `a / b`.
    fn vdiv<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    /// `a * b`.
    fn vmul<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    /// The sum of all lanes.
    fn reduce<S: Simd>(simd: S, a: Self::V<S>) -> Self;
    /// A slice as vectors; the tail that does not fill one is dropped (panels have none).
    fn vecs<S: Simd>(x: &[Self]) -> &[Self::V<S>];
    /// As [`Self::vecs`], writable.
    fn vecs_mut<S: Simd>(x: &mut [Self]) -> &mut [Self::V<S>];
    /// One vector as numbers.
    fn flat<S: Simd>(x: &Self::V<S>) -> &[Self];
    /// Whether [`Self::tiles`] exists for this instruction set.
    fn has_tiles<S: Simd>() -> bool;
    /// Transposes the 4 x 4 tile in each group of four lanes: lane `4 l + j` of result i is lane `4 l + i` of `x[j]`.
    fn tiles<S: Simd>(simd: S, x: [Self::V<S>; 4]) -> [Self::V<S>; 4];
}

macro_rules! real {
    ($t:ident, $v:ident, $lanes:ident, $splat:ident, $fma:ident, $add:ident, $sub:ident, $div:ident, $mul:ident, $reduce:ident, $as:ident,
     $as_mut:ident, $tiles:ident) => {
        impl Real for $t {
            type V<S: Simd> = S::$v;
            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, x: Self) -> Self::V<S> {
                simd.$splat(x)
            }
            #[inline(always)]
            fn vfma<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>, c: Self::V<S>) -> Self::V<S> {
                simd.$fma(a, b, c)
            }
            #[inline(always)]
            fn vadd<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S> {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn vsub<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S> {
                simd.$sub(a, b)
            }
            #[inline(always)]
            fn vdiv<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S> {
                simd.$div(a, b)
            }
            #[inline(always)]
            fn vmul<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S> {
                simd.$mul(a, b)
            }
            #[inline(always)]
            fn reduce<S: Simd>(simd: S, a: Self::V<S>) -> Self {
                simd.$reduce(a)
            }
            #[inline(always)]
            fn vecs<S: Simd>(x: &[Self]) -> &[Self::V<S>] {
                S::$as(x).0
            }
            #[inline(always)]
            fn vecs_mut<S: Simd>(x: &mut [Self]) -> &mut [Self::V<S>] {
                S::$as_mut(x).0
            }
            #[inline(always)]
            fn flat<S: Simd>(x: &Self::V<S>) -> &[Self] {
                bytemuck::cast_slice(std::slice::from_ref(x))
            }
            #[inline(always)]
            fn has_tiles<S: Simd>() -> bool {
                // The de-interleave of four vectors is this tile transpose on AVX2 and AVX-512 (a test holds it).
                size_of::<Self>() == 4 && cfg!(target_arch = "x86_64") && S::F32_LANES >= 8
            }
            #[inline(always)]
            fn tiles<S: Simd>(simd: S, x: [Self::V<S>; 4]) -> [Self::V<S>; 4] {
                simd.$tiles(x)
            }
        }
    };
}

real!(
    f32,
    f32s,
    F32_LANES,
    splat_f32s,
    mul_add_e_f32s,
    add_f32s,
    sub_f32s,
    div_f32s,
    mul_f32s,
    reduce_sum_f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    deinterleave_shfl_f32s
);
real!(
    f64,
    f64s,
    F64_LANES,
    splat_f64s,
    mul_add_e_f64s,
    add_f64s,
    sub_f64s,
    div_f64s,
    mul_f64s,
    reduce_sum_f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    deinterleave_shfl_f64s
);
