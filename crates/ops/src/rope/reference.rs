//! The rotation element by element: the oracle of the tables.

use flashlin_tensor::Real;

/// What turns: the rotary embedding's settings and the position of every token.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// Channels that are rotated.
    pub dim: usize,
    /// Base of the frequencies.
    pub base: f64,
    /// Pairs (2i, 2i + 1) instead of (i, i + dim / 2).
    pub interleaved: bool,
    /// xPos: its base, the position whose scale is 1, and the exponent's sign (1 for q, -1 for k).
    pub xpos: Option<(f64, f64, f64)>,
    /// Position of each token.
    pub positions: &'a [i64],
    /// Heads of a token.
    pub heads: usize,
    /// Channels of a head.
    pub width: usize,
}

impl Spec<'_> {
    /// The angle of pair i at position p: an f32 product of position and frequency, as checkpoints were trained with.
    pub fn angle(&self, p: i64, i: usize) -> f64 {
        let frequency = 1.0 / (self.base as f32).powf(2.0 * i as f32 / self.dim as f32);
        f64::from(p as f32 * frequency)
    }

    fn factor(&self, p: i64, i: usize) -> f64 {
        let Some((base, center, sign)) = self.xpos else { return 1.0 };
        let scale = (2.0 * i as f64 + 0.4 * self.dim as f64) / (1.4 * self.dim as f64);
        scale.powf(sign * (p as f64 - center) / base)
    }
}

/// `x [tokens, heads, width]` rotated by its positions' angles.
pub fn forward<R: Real>(s: &Spec, x: &[R]) -> Vec<R> {
    turn(s, x, 1.0)
}

/// The gradient of x: the rotation's transpose, which turns the other way.
pub fn backward<R: Real>(s: &Spec, dy: &[R]) -> Vec<R> {
    turn(s, dy, -1.0)
}

fn turn<R: Real>(s: &Spec, x: &[R], direction: f64) -> Vec<R> {
    let mut y = x.to_vec();
    for (row, out) in y.chunks_mut(s.width).enumerate() {
        let (p, from) = (s.positions[row / s.heads], &x[row * s.width..][..s.width]);
        for i in 0..s.dim / 2 {
            let (a, b) = if s.interleaved { (2 * i, 2 * i + 1) } else { (i, i + s.dim / 2) };
            let (angle, factor) = (direction * s.angle(p, i), s.factor(p, i));
            let (cos, sin) = (R::from_f64(factor * angle.cos()), R::from_f64(factor * angle.sin()));
            out[a] = from[a] * cos - from[b] * sin;
            out[b] = from[a] * sin + from[b] * cos;
        }
    }
    y
}
