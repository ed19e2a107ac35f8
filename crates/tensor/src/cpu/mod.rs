//! What CPU kernels of all crates share: the block size of parallel loops, SIMD dispatch, scalar functions that
//! vectorise.

pub mod ceiling;
pub mod features;
pub mod math;

pub use gemm::Parallelism;
use rayon::prelude::*;

pub use crate::matmul::{Matrix, gemm_f32_into, gemm_into};

/// Elements a parallel task works on. Fixed, so that results do not depend on the number of threads.
pub const BLOCK: usize = 16 << 10;

/// Runs `f` compiled for the widest vector unit of this machine (AVX-512, AVX2+FMA or the baseline).
///
/// The closure must be `#[inline(always)]`-friendly: what it calls is vectorised only where it is inlined.
/// Multiplications and additions are never fused by the compiler, so the bits are the same on each path unless
/// the code asks for `mul_add`.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Applies `f` to matching blocks of an output and an input slice, in parallel.
pub fn par_zip<A: Sync, O: Send>(out: &mut [O], a: &[A], f: impl Fn(&mut [O], &[A]) + Sync) {
    debug_assert_eq!(out.len(), a.len());
    if out.len() <= BLOCK {
        return f(out, a);
    }
    out.par_chunks_mut(BLOCK).zip(a.par_chunks(BLOCK)).for_each(|(o, a)| f(o, a));
}

/// Applies `f` to matching blocks of an output and two input slices, in parallel.
pub fn par_zip2<A: Sync, B: Sync, O: Send>(
    out: &mut [O],
    a: &[A],
    b: &[B],
    f: impl Fn(&mut [O], &[A], &[B]) + Sync,
) {
    debug_assert!(out.len() == a.len() && out.len() == b.len());
    if out.len() <= BLOCK {
        return f(out, a, b);
    }
    let inputs = a.par_chunks(BLOCK).zip(b.par_chunks(BLOCK));
    out.par_chunks_mut(BLOCK).zip(inputs).for_each(|(o, (a, b))| f(o, a, b));
}
