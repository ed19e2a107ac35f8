//! Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). A number depends on (seed, stream, index) alone: any order, any thread count, any device.

use rayon::prelude::*;

use crate::{DType, Device, Result, Tensor, cpu::BLOCK, tensor::dispatch};

/// A stream of random numbers addressed by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
    stream: u64,
}

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

impl Philox {
    /// The stream `stream` of `seed`; different streams are independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        Philox { seed, stream }
    }

    /// A stream named by text (a parameter's name), so that adding one parameter does not move the others.
    pub fn named(seed: u64, name: &str) -> Self {
        // FNV-1a
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
        Philox { seed, stream: hash }
    }

    /// Four random words for a counter.
    pub fn words(&self, counter: u64) -> [u32; 4] {
        let mut c = [counter as u32, (counter >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        let (mut k0, mut k1) = (self.seed as u32, (self.seed >> 32) as u32);
        for _ in 0..10 {
            let p0 = M0 as u64 * c[0] as u64;
            let p1 = M1 as u64 * c[2] as u64;
            c = [(p1 >> 32) as u32 ^ c[1] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k1, p0 as u32];
            k0 = k0.wrapping_add(W0);
            k1 = k1.wrapping_add(W1);
        }
        c
    }

    /// 64 random bits at an index.
    pub fn u64(&self, index: u64) -> u64 {
        let w = self.words(index / 2);
        let at = (index % 2) as usize * 2;
        w[at] as u64 | (w[at + 1] as u64) << 32
    }

    /// Uniform in [0, 1) with 53 bits, at an index.
    pub fn uniform(&self, index: u64) -> f64 {
        (self.u64(index) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform integer in `0..n` at an index (bias below 2^-32 for n < 2^32).
    pub fn below(&self, index: u64, n: u64) -> u64 {
        ((self.u64(index) as u128 * n as u128) >> 64) as u64
    }

    /// Standard normal at an index (Box-Muller).
    pub fn normal(&self, index: u64) -> f64 {
        self.normal_pair(index / 2)[(index % 2) as usize]
    }

    /// The standard normals at `2 pair` and `2 pair + 1`, which come from one draw.
    fn normal_pair(&self, pair: u64) -> [f64; 2] {
        let w = self.words(pair);
        let uniform = |low: u32, high: u32| {
            ((low as u64 | (high as u64) << 32) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
        };
        // 1 - u is in (0, 1], so that the logarithm is finite.
        let r = (-2.0 * (1.0 - uniform(w[0], w[1])).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * uniform(w[2], w[3])).sin_cos();
        [r * cos, r * sin]
    }

    /// A tensor of independent normals.
    ///
    /// # Errors
    /// As [`Tensor::empty`].
    pub fn randn(
        &self,
        mean: f64,
        std: f64,
        dims: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        // As `fill` with `normal`, a pair at a time: large models draw billions.
        const { assert!(BLOCK.is_multiple_of(2)) };
        let mut out = Tensor::empty(dims, dtype, &Device::Cpu)?;
        dispatch!(dtype, T => out.as_mut_slice::<T>()?.par_chunks_mut(BLOCK).enumerate().for_each(|(b, chunk)| {
            for (i, pair) in chunk.chunks_mut(2).enumerate() {
                let normals = self.normal_pair((b * BLOCK / 2 + i) as u64);
                for (o, x) in pair.iter_mut().zip(normals) {
                    *o = <T as crate::Element>::from_f64(mean + std * x);
                }
            }
        }));
        out.to_device(device)
    }

    /// A tensor of independent uniforms in [lo, hi).
    ///
    /// # Errors
    /// As [`Tensor::empty`].
    pub fn rand(&self, lo: f64, hi: f64, dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.fill(dims, dtype, device, |p, i| lo + (hi - lo) * p.uniform(i))
    }

    /// A tensor whose element `i` (row-major) is `f(self, i)`.
    ///
    /// # Errors
    /// As [`Tensor::empty`].
    pub fn fill(
        &self,
        dims: &[usize],
        dtype: DType,
        device: &Device,
        f: impl Fn(&Philox, u64) -> f64 + Sync,
    ) -> Result<Tensor> {
        // Drawn on the host and sent: equal on all devices.
        let mut out = Tensor::empty(dims, dtype, &Device::Cpu)?;
        dispatch!(dtype, T => out.as_mut_slice::<T>()?.par_chunks_mut(BLOCK).enumerate().for_each(|(b, chunk)| {
            for (i, o) in chunk.iter_mut().enumerate() {
                *o = <T as crate::Element>::from_f64(f(self, (b * BLOCK + i) as u64));
            }
        }));
        out.to_device(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // From the Random123 distribution's kat_vectors (philox 4x32, 10 rounds).
        assert_eq!(Philox::new(0, 0).words(0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            Philox::new(u64::MAX, u64::MAX).words(u64::MAX),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn moments_and_independence() {
        let p = Philox::new(42, 1);
        let x = p.randn(1.0, 2.0, &[100_000], DType::F64, &Device::Cpu).unwrap().to_f64_vec().unwrap();
        let mean = x.iter().sum::<f64>() / 1e5;
        let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / 1e5;
        assert!((mean - 1.0).abs() < 0.03 && (var - 4.0).abs() < 0.08, "{mean} {var}");
        let lag = x.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum::<f64>() / 1e5;
        assert!(lag.abs() < 0.06, "{lag}");
        assert_ne!(Philox::named(1, "a").u64(0), Philox::named(1, "b").u64(0));
        assert!((0..1000).all(|i| p.below(i, 7) < 7));
        // Tensors of normals are the stream's normals, whatever their length.
        let one_by_one =
            p.fill(&[2, 4099], DType::F32, &Device::Cpu, |p, i| 1.0 + 2.0 * p.normal(i)).unwrap();
        let pairs = p.randn(1.0, 2.0, &[2, 4099], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(one_by_one.as_bytes().unwrap(), pairs.as_bytes().unwrap());
    }
}
