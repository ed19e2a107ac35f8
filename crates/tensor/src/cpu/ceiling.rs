//! What this machine can do at best, measured: benchmarks print their numbers as shares of these, so that they
//! mean the same on every machine. Each function takes well under a second and returns the best of a few runs.

use std::{
    hint::black_box,
    sync::Barrier,
    time::{Duration, Instant},
};

use super::{
    features::{Isa, has_fma},
    vectorized,
};
use crate::{DType, Device, Philox, Result};

/// Runs `work` on `threads` threads at once, several times; the shortest time from common start to last end.
fn best_time(threads: usize, runs: usize, work: impl Fn(usize) + Sync) -> Duration {
    let threads = threads.max(1);
    let barrier = Barrier::new(threads);
    let timed = |i: usize| {
        let mut best = Duration::MAX;
        for _ in 0..runs {
            barrier.wait();
            let start = Instant::now();
            work(i);
            barrier.wait();
            best = best.min(start.elapsed());
        }
        best
    };
    std::thread::scope(|s| {
        let others: Vec<_> = (1..threads).map(|i| s.spawn(move || timed(i))).collect();
        let mut best = timed(0);
        for t in others {
            best = best.max(t.join().unwrap_or(Duration::MAX));
        }
        best
    })
}

/// f32 multiply-adds of independent chains in registers: the arithmetic peak of `threads` threads, in FLOP/s
/// (a multiply-add counts two).
pub fn fma_peak_flops(threads: usize) -> f64 {
    const STEPS: usize = 200_000;
    let per_step = if Isa::detect().has_avx512() { 24 * 16 } else { CHAINS * 8 };
    let time = best_time(threads, 30, |_| match Isa::detect() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features were found at run time.
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe { avx512::fma_chains(STEPS) },
        _ => portable_chains(STEPS),
    });
    (2 * per_step * STEPS * threads.max(1)) as f64 / time.as_secs_f64()
}

/// As [`fma_peak_flops`] for bf16 dot products with f32 sums; none where the machine has no such instruction.
pub fn bf16_peak_flops(threads: usize) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if Isa::detect() == Isa::Avx512Bf16 {
        const STEPS: usize = 200_000;
        // SAFETY: the features were found at run time.
        let time = best_time(threads, 30, |_| unsafe { avx512::dot_chains(STEPS) });
        return Some((2 * 24 * 32 * STEPS * threads.max(1)) as f64 / time.as_secs_f64());
    }
    let _ = threads;
    None
}

const CHAINS: usize = 10;

fn portable_chains(steps: usize) {
    let (fused, a, b) = (has_fma(), black_box(0.999_9f32), black_box(1e-4f32));
    vectorized(
        #[inline(always)]
        || {
            let mut acc = [[1f32; 8]; CHAINS];
            for _ in 0..steps {
                for c in &mut acc {
                    for x in c {
                        *x = if fused { x.mul_add(a, b) } else { *x * a + b };
                    }
                }
            }
            black_box(acc);
        },
    );
}

/// FLOP/s of `gemm` on an n x n x n product in f32 with `threads` threads.
///
/// # Errors
/// When memory is short or no threads can be made.
pub fn gemm_flops(n: usize, threads: usize) -> Result<f64> {
    let a = Philox::new(1, 0).randn(0.0, 1.0, &[n, n], DType::F32, &Device::Cpu)?;
    let b = Philox::new(2, 0).randn(0.0, 1.0, &[n, n], DType::F32, &Device::Cpu)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .build()
        .map_err(|e| crate::Error::invalid("gemm_flops", "threads", e.to_string()))?;
    pool.install(|| {
        let mut best = Duration::MAX;
        a.matmul(&b)?;
        for _ in 0..3 {
            let start = Instant::now();
            black_box(a.matmul(&b)?);
            best = best.min(start.elapsed());
        }
        Ok(2.0 * (n as f64).powi(3) / best.as_secs_f64())
    })
}

/// Bytes/s that `threads` threads read from memory, each walking `streams` sequences side by side over a buffer
/// several times the size of the last-level cache.
pub fn read_bandwidth(threads: usize, streams: usize) -> Result<f64> {
    const BYTES: usize = 256 << 20;
    let (threads, streams) = (threads.max(1), streams.clamp(1, 16));
    let mut t = crate::Tensor::empty(&[BYTES / 8], DType::I64, &Device::Cpu)?;
    t.as_mut_slice::<i64>()?.fill(3);
    let data = t.as_slice::<i64>()?;
    let share = data.len() / threads;
    let time = best_time(threads, 8, |i| {
        let mine = &data[i * share..][..share];
        let len = mine.len() / streams / 64 * 64;
        let parts: Vec<&[i64]> = (0..streams).map(|s| &mine[s * len..][..len]).collect();
        black_box(read_streams(&parts, len));
    });
    let read = share / streams / 64 * 64 * streams * threads * 8;
    Ok(read as f64 / time.as_secs_f64())
}

/// XOR of equally long streams (whole groups of 64 numbers), 512 bytes of each in turn.
fn read_streams(parts: &[&[i64]], len: usize) -> i64 {
    vectorized(
        #[inline(always)]
        || {
            let mut acc = [0i64; 64];
            for at in (0..len).step_by(64) {
                for p in parts {
                    for (a, x) in acc.iter_mut().zip(&p[at..at + 64]) {
                        *a ^= x;
                    }
                }
            }
            acc.iter().fold(0, |a, b| a ^ b)
        },
    )
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::{arch::x86_64::*, hint::black_box};

    /// 24 chains of fused multiply-adds.
    #[target_feature(enable = "avx512f")]
    pub fn fma_chains(steps: usize) {
        let (a, b) = (_mm512_set1_ps(black_box(0.999_9)), _mm512_set1_ps(black_box(1e-4)));
        let mut acc = [_mm512_set1_ps(1.0); 24];
        for _ in 0..steps {
            for c in &mut acc {
                *c = _mm512_fmadd_ps(*c, a, b);
            }
        }
        black_box(acc);
    }

    /// 24 chains of bf16 dot products.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn dot_chains(steps: usize) {
        let one = _mm512_set1_ps(black_box(1e-3));
        let (a, b) = (_mm512_cvtne2ps_pbh(one, one), _mm512_cvtne2ps_pbh(one, one));
        let mut acc = [_mm512_set1_ps(1.0); 24];
        for _ in 0..steps {
            for c in &mut acc {
                *c = _mm512_dpbf16_ps(*c, a, b);
            }
        }
        black_box(acc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_plausible() {
        assert!(fma_peak_flops(1) > 1e8);
        assert!(read_bandwidth(1, 2).unwrap() > 1e8);
        assert!(gemm_flops(64, 1).unwrap() > 1e7);
        assert_eq!(bf16_peak_flops(1).is_some(), Isa::detect() == Isa::Avx512Bf16);
    }
}
