//! The decode form: one token for each row, with the state updated where it lies.

use flashlin_tensor::{DType, Element, Error, Real, Result, Tensor, cpu::math};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{OP, is_silu, weight_dims};
use crate::{
    activation::Activation,
    rows::{Rows, RowsMut, check_dims, opt_to_real, to_real, with_rows},
};

/// Arguments of [`conv_step`].
#[derive(Clone, Copy, Debug)]
pub struct ConvStep<'a> {
    /// `[N, D]` or `[N, 1, D]`: one token for each row
    pub x: &'a Tensor,
    /// `[D, 1, W]` or `[D, W]`
    pub weight: &'a Tensor,
    /// `[D]`
    pub bias: Option<&'a Tensor>,
    /// None or [`Activation::Silu`]
    pub activation: Option<Activation>,
    /// Shape of `x`, added after the activation
    pub residual: Option<&'a Tensor>,
    /// Row of the state pool for each row of `x`, all different; None: row i for row i
    pub slots: Option<&'a [usize]>,
}

/// Appends one token to each row's state (`[S, D, W]`, any float dtype, newest last) in place and writes the
/// convolution's output to `out` (shape of `x`). Rows of the pool that no slot names stay as they are.
///
/// # Errors
/// When shapes do not fit, a slot is out of range or named twice, or `state` or `out` is shared or strided.
pub fn conv_step(args: &ConvStep, state: &mut Tensor, out: &mut Tensor) -> Result<()> {
    let (d, w) = weight_dims(args.weight)?;
    let n = match *args.x.dims() {
        [n, c] | [n, 1, c] if c == d => n,
        _ => {
            return Err(Error::shape(OP, "x", args.x.dims(), format!("[N, {d}] or [N, 1, {d}]")));
        }
    };
    check_dims(OP, "out", out, args.x.dims())?;
    args.bias.map_or(Ok(()), |b| check_dims(OP, "bias", b, &[d]))?;
    args.residual.map_or(Ok(()), |r| check_dims(OP, "residual", r, args.x.dims()))?;
    let [pool, ..] = state.dims_n::<3>(OP, "state")?;
    check_dims(OP, "state", state, &[pool, d, w])?;
    let identity: Vec<usize> = (0..n).collect();
    let slots = args.slots.unwrap_or(&identity);
    if slots.len() != n {
        return Err(Error::invalid(OP, "slots", format!("has {} entries, expected {n}", slots.len())));
    }
    match (args.x.dtype(), state.dtype()) {
        (DType::F64, DType::F64) => run::<f64, f64>(args, slots, state, out, d, w),
        (DType::F64, s) => Err(Error::dtype(OP, "state", s, "f64, as x")),
        (_, DType::F64) => Err(Error::dtype(OP, "state", DType::F64, "f32, bf16 or f16 as x is not f64")),
        (_, DType::F32) => run::<f32, f32>(args, slots, state, out, d, w),
        (_, DType::BF16) => run::<bf16, f32>(args, slots, state, out, d, w),
        (_, DType::F16) => run::<f16, f32>(args, slots, state, out, d, w),
        (_, other) => Err(Error::dtype(OP, "state", other, "a float type")),
    }
}

/// The rows of the pool that `slots` names, in that order.
fn pick<'a, E>(pool: &'a mut [E], row: usize, slots: &[usize]) -> Result<Vec<&'a mut [E]>> {
    let mut rows: Vec<Option<&mut [E]>> = pool.chunks_exact_mut(row.max(1)).map(Some).collect();
    let count = rows.len();
    let take = |&s: &usize| match rows.get_mut(s) {
        None => Err(Error::invalid(OP, "slots", format!("names row {s}, but the pool has {count}"))),
        Some(r) => r.take().ok_or_else(|| Error::invalid(OP, "slots", format!("names row {s} twice"))),
    };
    slots.iter().map(take).collect()
}

fn run<E: Element, R: Real>(
    args: &ConvStep,
    slots: &[usize],
    state: &mut Tensor,
    out: &mut Tensor,
    d: usize,
    w: usize,
) -> Result<()> {
    if d == 0 {
        return Ok(());
    }
    let silu = is_silu(args.activation)?;
    let x = with_rows(OP, "x", args.x)?;
    let residual = args.residual.map(|r| with_rows(OP, "residual", r)).transpose()?;
    let (xs, rs) = (Rows::new(&x)?, residual.as_ref().map(Rows::new).transpose()?);
    let (weight, bias) = (to_real::<R>(args.weight)?, opt_to_real::<R>(args.bias)?);
    let states = pick(state.as_mut_slice::<E>()?, d * w, slots)?;
    let outs = RowsMut::of(out)?.split(slots.iter().map(|_| d));
    states.into_par_iter().zip(outs).enumerate().for_each(|(i, (state, mut out))| {
        let mut buf = vec![R::ZERO; d];
        let mut y = bias.clone().unwrap_or_else(|| vec![R::ZERO; d]);
        let x = xs.row(i, &mut buf);
        match w {
            4 => taps::<E, R>(&mut y, x, state.as_chunks_mut::<4>().0, weight.as_chunks::<4>().0),
            3 => taps::<E, R>(&mut y, x, state.as_chunks_mut::<3>().0, weight.as_chunks::<3>().0),
            2 => taps::<E, R>(&mut y, x, state.as_chunks_mut::<2>().0, weight.as_chunks::<2>().0),
            _ => {
                let each = state.chunks_exact_mut(w).zip(weight.chunks_exact(w));
                y.iter_mut().zip(x).zip(each).for_each(|((y, &x), (s, w))| *y += tap(x, s, w));
            }
        }
        if silu {
            y.iter_mut().for_each(|y| *y = math::silu(*y));
        }
        if let Some(r) = &rs {
            y.iter_mut().zip(r.row(i, &mut buf)).for_each(|(y, &r)| *y += r);
        }
        out.write(0, &y);
    });
    Ok(())
}

fn taps<E: Element, R: Real>(
    y: &mut [R],
    x: &[R],
    state: &mut [impl AsMut<[E]>],
    weight: &[impl AsRef<[R]>],
) {
    for ((y, &x), (s, w)) in y.iter_mut().zip(x).zip(state.iter_mut().zip(weight)) {
        *y += tap(x, s.as_mut(), w.as_ref());
    }
}

/// Shifts one channel's inputs by one and gives their weighted sum.
#[inline(always)]
fn tap<E: Element, R: Real>(x: R, state: &mut [E], weight: &[R]) -> R {
    let last = state.len() - 1;
    state.copy_within(1.., 0);
    let mut z = weight[last] * x;
    for (&s, &w) in state[..last].iter().zip(weight) {
        z += w * if R::DTYPE == DType::F64 { R::from_f64(s.to_f64()) } else { R::from_f32(s.to_f32()) };
    }
    state[last] = if R::DTYPE == DType::F64 { E::from_f64(x.to_f64()) } else { E::from_f32(x.to_f32()) };
    z
}
