//! Tables of cosines and sines, and the rotation itself.

use std::sync::{Arc, Mutex, PoisonError};

use flashlin_tensor::{
    DType, Device, Element, Real, Result, Tensor,
    cpu::{BLOCK, vectorized},
};
use half::{bf16, f16};
use rayon::prelude::*;

use super::Rotary;
use crate::rows::{Rows, blocks};

/// cos and sin of the angles of positions 0.., `[positions, dim/2]` each, for both compute types.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: usize,
    f32: [Vec<f32>; 2],
    f64: [Vec<f64>; 2],
    /// The same in f32 on the GPUs that asked for it.
    sent: Mutex<Vec<[Tensor; 2]>>,
}

/// The table of a [`Rotary`], replaced by a longer one when a position asks for it.
#[derive(Debug, Default)]
pub(super) struct Tables(Mutex<Arc<Table>>);

impl Tables {
    /// A table that covers the absolute values of all positions.
    pub fn upto(&self, rotary: &Rotary, positions: &[i64]) -> Arc<Table> {
        let need = positions.iter().map(|p| p.unsigned_abs() as usize + 1).max().unwrap_or(0);
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.rows < need {
            *table = Arc::new(Table::new(rotary, need.next_power_of_two()));
        }
        table.clone()
    }
}

impl Table {
    fn new(rotary: &Rotary, rows: usize) -> Self {
        let round = |x: f32| match rotary.position_dtype {
            DType::BF16 => Element::to_f32(<bf16 as Element>::from_f32(x)),
            DType::F16 => Element::to_f32(<f16 as Element>::from_f32(x)),
            _ => x,
        };
        let half = rotary.dim / 2;
        // All in f32, as the models were trained: exponent, power, and the product with the position.
        let freq = |i: usize| round(1.0 / (rotary.base as f32).powf(2.0 * i as f32 / rotary.dim as f32));
        let freqs: Vec<f32> = (0..half).map(freq).collect();
        let angle = |i: usize| round(round((i / half) as f32) * freqs[i % half]);
        let mut t = Table { rows, ..Table::default() };
        let angles: Vec<f32> = (0..rows * half).map(angle).collect();
        t.f64 = [
            angles.iter().map(|&a| f64::from(a).cos()).collect(),
            angles.iter().map(|&a| f64::from(a).sin()).collect(),
        ];
        t.f32 = [0, 1].map(|i| t.f64[i].iter().map(|&x| x as f32).collect());
        t
    }

    /// cos and sin `[rows * dim/2]` in f32 on a device.
    pub(super) fn on_device(&self, device: &Device) -> Result<[Tensor; 2]> {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = sent.iter().find(|pair| pair[0].device() == *device) {
            return Ok(pair.clone());
        }
        let send = |x: &Vec<f32>| Tensor::from_slice(x, &[x.len()])?.to_device(device);
        let pair = [send(&self.f32[0])?, send(&self.f32[1])?];
        sent.push(pair.clone());
        Ok(pair)
    }

    fn as_real<R: Real>(&self) -> [&[R]; 2] {
        match R::DTYPE {
            DType::F64 => [0, 1].map(|i| bytemuck::cast_slice(&self.f64[i])),
            _ => [0, 1].map(|i| bytemuck::cast_slice(&self.f32[i])),
        }
    }
}

/// One call: what turns which token how far.
pub(super) struct Turn {
    pub tables: Arc<Table>,
    pub factors: Option<Vec<f64>>,
    pub positions: Vec<i64>,
    pub dim: usize,
    pub interleaved: bool,
    pub heads: usize,
    pub width: usize,
}

/// x `[B, T, H, D]` rotated, or rotated back.
pub(super) fn rotate(turn: &Turn, x: &Tensor, back: bool) -> Result<Tensor> {
    let mut y = Tensor::empty(x.dims(), x.dtype(), &x.device())?;
    match x.dtype() {
        DType::F64 => rotate_as::<f64>(turn, x, &mut y, back)?,
        _ => rotate_as::<f32>(turn, x, &mut y, back)?,
    }
    Ok(y)
}

fn rotate_as<R: Real>(turn: &Turn, x: &Tensor, y: &mut Tensor, back: bool) -> Result<()> {
    let row = turn.heads * turn.width;
    let total = y.numel();
    if total == 0 {
        return Ok(());
    }
    let rows = Rows::new(x)?;
    let tokens = (BLOCK / row).max(1);
    blocks(Some(y), total, tokens * row)?.into_par_iter().enumerate().for_each(|(b, out)| {
        let Some(mut out) = out else { return };
        let range = b * tokens..(total / row).min((b + 1) * tokens);
        vectorized(
            #[inline(always)]
            || {
                let half = turn.dim / 2;
                let mut buf = vec![R::ZERO; turn.width];
                let mut head = vec![R::ZERO; turn.width];
                let (mut cos, mut sin) = (vec![R::ZERO; half], vec![R::ZERO; half]);
                for (i, token) in range.enumerate() {
                    angles(turn, token, back, &mut cos, &mut sin);
                    for h in 0..turn.heads {
                        let x = rows.row(token * turn.heads + h, &mut buf);
                        rotate_head(turn, x, &cos, &sin, &mut head);
                        out.write(i * row + h * turn.width, &head);
                    }
                }
            },
        );
    });
    Ok(())
}

/// cos and sin (with the xPos factor) for one token.
#[inline(always)]
pub(super) fn angles<R: Real>(turn: &Turn, token: usize, back: bool, cos: &mut [R], sin: &mut [R]) {
    let half = cos.len();
    let p = turn.positions[token];
    let at = p.unsigned_abs() as usize * half;
    let [c, s] = turn.tables.as_real::<R>();
    cos.copy_from_slice(&c[at..at + half]);
    sin.copy_from_slice(&s[at..at + half]);
    if (p < 0) != back {
        sin.iter_mut().for_each(|s| *s = -*s);
    }
    if let Some(f) = &turn.factors {
        for (i, &f) in f[token * half..][..half].iter().enumerate() {
            cos[i] *= R::from_f64(f);
            sin[i] *= R::from_f64(f);
        }
    }
}

#[inline(always)]
fn rotate_head<R: Real>(turn: &Turn, x: &[R], cos: &[R], sin: &[R], y: &mut [R]) {
    let half = cos.len();
    y[turn.dim..].copy_from_slice(&x[turn.dim..]);
    if turn.interleaved {
        for i in 0..half {
            let (a, b) = (x[2 * i], x[2 * i + 1]);
            y[2 * i] = a * cos[i] - b * sin[i];
            y[2 * i + 1] = a * sin[i] + b * cos[i];
        }
        return;
    }
    let (a, b) = (&x[..half], &x[half..2 * half]);
    let (ya, yb) = y[..2 * half].split_at_mut(half);
    let (sin, cos) = (&sin[..half], &cos[..half]);
    for i in 0..half {
        ya[i] = a[i] * cos[i] - b[i] * sin[i];
        yb[i] = a[i] * sin[i] + b[i] * cos[i];
    }
}
