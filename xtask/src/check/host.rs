//! Inputs and comparisons on the host.

use half::{bf16, f16};

/// A small generator: the checks need noise, not statistics.
pub struct Noise(u64);

impl Noise {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Uniform in [-1, 1).
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    }

    /// `n` values in [-scale, scale).
    pub fn vec(&mut self, n: usize, scale: f64) -> Vec<f64> {
        (0..n).map(|_| self.next() * scale).collect()
    }
}

/// Rounds to the dtype.
pub fn round(dtype: &str, x: &[f64]) -> Vec<f64> {
    let one = |v: f64| match dtype {
        "bf16" => bf16::from_f64(v).to_f64(),
        "f16" => f16::from_f64(v).to_f64(),
        _ => f64::from(v as f32),
    };
    x.iter().map(|v| one(*v)).collect()
}

/// The dtype's bytes.
pub fn encode(dtype: &str, x: &[f64]) -> Vec<u8> {
    match dtype {
        "bf16" => x.iter().flat_map(|v| bf16::from_f64(*v).to_le_bytes()).collect(),
        "f16" => x.iter().flat_map(|v| f16::from_f64(*v).to_le_bytes()).collect(),
        "i32" => x.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect(),
        _ => x.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
    }
}

/// The values of a dtype's bytes.
pub fn decode(dtype: &str, x: &[u8]) -> Vec<f64> {
    match dtype {
        "bf16" => x.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        "f16" => x.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        _ => x.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
    }
}

/// Bytes of one element.
pub fn size(dtype: &str) -> usize {
    match dtype {
        "bf16" | "f16" => 2,
        _ => 4,
    }
}

/// Relative L2 distance; not a number where `got` holds one. Two zero arrays are equal.
pub fn relative(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::NAN;
    }
    let (mut n, mut d) = (0.0, 0.0);
    for (x, y) in got.iter().zip(want) {
        n += (x - y) * (x - y);
        d += y * y;
    }
    if n == 0.0 { 0.0 } else { (n / d).sqrt() }
}
