#![doc = include_str!("README.md")]

pub(crate) mod conform;
mod cpu;
mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cpu::{Tables, Turn};
use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Error, Result, Tensor, Var};

use crate::{
    OpInfo, PackedSeqs,
    rows::{input, with_rows},
};

/// Registry entry of [`Rotary`].
pub static ROPE: OpInfo = OpInfo {
    name: "rope",
    family: "rope",
    summary: "rotates pairs of channels by position / base^(2i/dim); partial, interleaved, xPos",
    source: "arXiv:2104.09864; xPos: arXiv:2212.10554",
    modes: &[],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["q", "k"],
};

const OP: &str = "rope";

/// A rotary embedding: its settings and its table of cosines and sines. Share one among layers.
#[derive(Debug)]
pub struct Rotary {
    dim: usize,
    base: f64,
    interleaved: bool,
    scale_base: Option<f64>,
    position_dtype: DType,
    tables: Tables,
}

/// Where the tokens of a call stand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Positions<'a> {
    /// Position of the first token of each sequence
    pub offset: Offset<'a>,
    /// Boundaries of packed sequences (B = 1)
    pub seqs: Option<&'a PackedSeqs>,
    /// xPos only: the length whose middle has scale 1; None: the largest position of the call plus one
    pub max_len: Option<usize>,
}

/// Position of the first token of each sequence.
#[derive(Clone, Copy, Debug)]
pub enum Offset<'a> {
    /// The same for all sequences
    Same(i64),
    /// One for each sequence
    Each(&'a [i64]),
}

impl Default for Offset<'_> {
    fn default() -> Self {
        Offset::Same(0)
    }
}

impl Rotary {
    /// Rotates the first `dim` channels; pairs as in GPT-NeoX.
    ///
    /// # Errors
    /// When `dim` is zero or odd, or `base` is not a finite number above 0.
    pub fn new(dim: usize, base: f64) -> Result<Self> {
        if dim == 0 || !dim.is_multiple_of(2) {
            return Err(Error::invalid(OP, "dim", format!("is {dim}, expected an even number above 0")));
        }
        if !base.is_finite() || base <= 0.0 {
            return Err(Error::invalid(OP, "base", format!("is {base}, expected a finite number above 0")));
        }
        Ok(Rotary {
            dim,
            base,
            interleaved: false,
            scale_base: None,
            position_dtype: DType::F32,
            tables: Tables::default(),
        })
    }

    /// Pairs (2i, 2i + 1) instead of (i, i + dim/2).
    pub fn interleaved(mut self, on: bool) -> Self {
        self.interleaved = on;
        self
    }

    /// xPos with this scale base (512 is usual).
    ///
    /// # Errors
    /// When it is not a finite number above 0.
    pub fn scale_base(mut self, scale_base: f64) -> Result<Self> {
        if !scale_base.is_finite() || scale_base <= 0.0 {
            let why = format!("is {scale_base}, expected a finite number above 0");
            return Err(Error::invalid(OP, "scale_base", why));
        }
        self.scale_base = Some(scale_base);
        Ok(self)
    }

    /// Rounds positions, frequencies and angles to a half-precision type, as models did that were trained with
    /// `pos_idx_in_fp32 = false` (f32 otherwise).
    ///
    /// # Errors
    /// For types other than f32, bf16 and f16.
    pub fn position_dtype(mut self, dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(Error::dtype(OP, "position_dtype", dtype, "f32, bf16 or f16"));
        }
        self.position_dtype = dtype;
        self.tables = Tables::default();
        Ok(self)
    }

    /// Channels that are rotated.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rotates queries `[B, T, H, D]` and keys `[B, T, H', D]` of the same tokens.
    ///
    /// # Errors
    /// When a head has fewer than `dim` channels, offsets are not one a sequence, packed boundaries do not fit, or a
    /// dtype is no float.
    pub fn apply(&self, q: &Var, k: &Var, at: Positions) -> Result<(Var, Var)> {
        Ok((self.rotate("q", q, at, 1.0)?, self.rotate("k", k, at, -1.0)?))
    }

    /// Rotates one tensor `[B, T, H, D]`; `sign` is the sign of the xPos exponent (1 for q, -1 for k).
    fn rotate(&self, arg: &'static str, x: &Var, at: Positions, sign: f64) -> Result<Var> {
        let [batch, len, heads, width] = x.tensor().dims_n::<4>(OP, arg)?;
        if width < self.dim {
            let expected = format!("[B, T, H, D] with D >= dim = {}", self.dim);
            return Err(Error::shape(OP, arg, x.dims(), expected));
        }
        let positions = positions(at, batch, len)?;
        let xt = input(OP, arg, x.tensor())?;
        let turn = Arc::new(Turn {
            tables: self.tables.upto(self, &positions),
            factors: self.factors(&positions, at.max_len, sign),
            positions,
            dim: self.dim,
            interleaved: self.interleaved,
            heads,
            width,
        });
        let y = match xt.device() {
            Device::Cpu => cpu::rotate(&turn, &xt, false)?,
            _ => cuda::rotate(&turn, &xt, false)?,
        };
        Ok(Var::from_op1(OP, &[x], y, || -> Box<dyn Backward> {
            Box::new(move |_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
                let Some(dy) = g[0].take() else { return Ok(vec![None]) };
                let dx = match dy.device() {
                    Device::Cpu => cpu::rotate(&turn, &with_rows(OP, "gradient", &dy)?, true)?,
                    _ => cuda::rotate(&turn, &dy, true)?,
                };
                Ok(vec![Some(dx)])
            })
        }))
    }

    /// xPos factors `[tokens, dim/2]`, or None without xPos.
    fn factors(&self, positions: &[i64], max_len: Option<usize>, sign: f64) -> Option<Vec<f64>> {
        let scale_base = self.scale_base?;
        let longest = positions.iter().max().map_or(0, |&p| (p + 1).max(0) as usize);
        let center = (max_len.unwrap_or(longest) / 2) as f64;
        let dim = self.dim as f64;
        let scale = |i: usize| (2.0 * i as f64 + 0.4 * dim) / (1.4 * dim);
        let of = |&p: &i64| {
            let power = sign * (p as f64 - center) / scale_base;
            (0..self.dim / 2).map(move |i| scale(i).powf(power))
        };
        Some(positions.iter().flat_map(of).collect())
    }
}

/// The position of every token, sequence by sequence.
fn positions(at: Positions, batch: usize, len: usize) -> Result<Vec<i64>> {
    let seqs = PackedSeqs::resolve(OP, at.seqs, batch, len)?;
    if let Offset::Each(each) = at.offset
        && each.len() != seqs.len()
    {
        let why = format!("has {} entries, expected one for each of {} sequences", each.len(), seqs.len());
        return Err(Error::invalid(OP, "offset", why));
    }
    let first = |n: usize| match at.offset {
        Offset::Same(o) => o,
        Offset::Each(each) => each[n],
    };
    Ok(seqs.ranges().enumerate().flat_map(|(n, r)| (0..r.len() as i64).map(move |t| first(n) + t)).collect())
}
