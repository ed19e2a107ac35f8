//! The decode form: one token for each row, with the state updated where it lies.

use flashlin_tensor::{
    DType, Device, Element, Error, Real, Result, Tensor, Var,
    cpu::{math, vectorized},
};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{ConvArgs, OP, cuda, is_silu, short_conv, weight_dims};
use crate::{
    activation::Activation,
    recurrence::{by_rows, recorded, single_tokens},
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
    if args.x.device() != Device::Cpu {
        check_slots(slots, pool)?;
        return cuda::steps(&[*args], slots, &[&*state], std::slice::from_mut(out));
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

/// As [`short_conv`] from `state`, which it leaves after the last token of every sequence. One token for each row that
/// has one is written where the state lies, if nothing is recorded and nobody else holds the state.
///
/// # Errors
/// As [`short_conv`]; `args` must not bring or ask for a state of its own. After an error the state may be lost.
pub fn short_conv_on(args: &ConvArgs, state: &mut Var) -> Result<Var> {
    if args.initial_state.is_some() || args.final_state {
        return Err(Error::invalid(OP, "initial_state", "is given twice: the state itself is both"));
    }
    if let Some(y) = step_on(args, state)? {
        return Ok(y);
    }
    let out = short_conv(&ConvArgs { initial_state: Some(&*state), final_state: true, ..*args })?;
    let missing = || Error::invalid(OP, "final_state", "was asked for but not returned");
    *state = out.final_state.ok_or_else(missing)?;
    Ok(out.y)
}

/// [`short_conv_on`] for several convolutions of the same tokens, each with its state: on a GPU a step of up to three is one launch.
///
/// # Errors
/// As [`short_conv_on`]; as many states as convolutions.
pub fn short_convs_on(args: &[ConvArgs], states: &mut [Var]) -> Result<Vec<Var>> {
    if args.len() != states.len() {
        let problem = format!("are {} for {} convolutions", states.len(), args.len());
        return Err(Error::invalid(OP, "states", problem));
    }
    if let Some(ys) = steps_on(args, states)? {
        return Ok(ys);
    }
    args.iter().zip(states).map(|(a, s)| short_conv_on(a, s)).collect()
}

/// The joint step, where all of them are steps of one kind on a GPU whose states nobody else holds.
fn steps_on(args: &[ConvArgs], states: &mut [Var]) -> Result<Option<Vec<Var>>> {
    let Some(one) = args.first().filter(|a| a.x.device() != Device::Cpu) else { return Ok(None) };
    let [batch, len, _] = *one.x.dims() else { return Ok(None) };
    let Some(slots) = single_tokens(one.seqs, batch, len) else { return Ok(None) };
    let rows = one.seqs.map_or(batch, |s| s.len());
    let (_, w) = weight_dims(one.weight.tensor())?;
    let alike = |a: &ConvArgs| {
        let own = a.initial_state.is_none() && !a.final_state && a.residual.is_none();
        own && a.x.dims()[..2] == one.x.dims()[..2]
            && (a.bias.is_some(), a.activation, a.x.dtype())
                == (one.bias.is_some(), one.activation, one.x.dtype())
            && !recorded([Some(a.x), Some(a.weight), a.bias].into_iter().flatten())
    };
    if !(2..=cuda::STREAMS).contains(&args.len()) || !args.iter().all(alike) {
        return Ok(None);
    }
    for (a, state) in args.iter().zip(states.iter()) {
        let (d, own) = weight_dims(a.weight.tensor())?;
        check_dims(OP, "x", a.x.tensor(), &[batch, len, d])?;
        check_dims(OP, "initial_state", state.tensor(), &[rows, d, own])?;
        a.bias.map_or(Ok(()), |b| check_dims(OP, "bias", b.tensor(), &[d]))?;
        if own != w {
            return Ok(None);
        }
    }
    let mut pools = Vec::with_capacity(states.len());
    for state in states.iter_mut() {
        let Some(pool) = state.exclusive_mut() else { return Ok(None) };
        pools.push(&*pool);
    }
    let packed = one.seqs.is_some();
    let xs = args.iter().map(|a| by_rows(a.x.tensor(), packed)).collect::<Result<Vec<_>>>()?;
    let mut outs = Vec::with_capacity(args.len());
    for x in &xs {
        outs.push(Tensor::empty(x.dims(), x.dtype(), &x.device())?);
    }
    let mut all = Vec::with_capacity(args.len());
    for (a, x) in args.iter().zip(&xs) {
        all.push(ConvStep {
            x,
            weight: a.weight.tensor(),
            bias: a.bias.map(Var::tensor),
            activation: a.activation,
            residual: None,
            slots: Some(&slots),
        });
    }
    check_slots(&slots, rows)?;
    cuda::steps(&all, &slots, &pools, &mut outs)?;
    outs.into_iter()
        .zip(args)
        .map(|(y, a)| Ok(y.reshape(a.x.dims())?.into()))
        .collect::<Result<_>>()
        .map(Some)
}

fn step_on(args: &ConvArgs, state: &mut Var) -> Result<Option<Var>> {
    let [batch, len, _] = *args.x.dims() else { return Ok(None) };
    let Some(slots) = single_tokens(args.seqs, batch, len) else { return Ok(None) };
    let inputs = [Some(args.x), Some(args.weight), args.bias, args.residual];
    if recorded(inputs.into_iter().flatten()) {
        return Ok(None);
    }
    let rows = args.seqs.map_or(batch, |s| s.len());
    let (d, w) = weight_dims(args.weight.tensor())?;
    check_dims(OP, "initial_state", state.tensor(), &[rows, d, w])?;
    let Some(state) = state.exclusive_mut() else { return Ok(None) };
    let packed = args.seqs.is_some();
    let residual = args.residual.map(|r| by_rows(r.tensor(), packed)).transpose()?;
    let step = ConvStep {
        x: &by_rows(args.x.tensor(), packed)?,
        weight: args.weight.tensor(),
        bias: args.bias.map(Var::tensor),
        activation: args.activation,
        residual: residual.as_ref(),
        slots: Some(&slots),
    };
    let mut out = Tensor::empty(step.x.dims(), args.x.dtype(), &args.x.device())?;
    conv_step(&step, state, &mut out)?;
    Ok(Some(out.reshape(args.x.dims())?.into()))
}

/// Errors unless every slot is a row of the pool and no two are the same.
fn check_slots(slots: &[usize], count: usize) -> Result<()> {
    let mut seen = vec![false; count];
    for &s in slots {
        match seen.get_mut(s) {
            None => {
                return Err(Error::invalid(OP, "slots", format!("names row {s}, but the pool has {count}")));
            }
            Some(true) => return Err(Error::invalid(OP, "slots", format!("names row {s} twice"))),
            Some(free) => *free = true,
        }
    }
    Ok(())
}

/// The rows of the pool that `slots` names, in that order.
fn pick<'a, E>(pool: &'a mut [E], row: usize, slots: &[usize]) -> Result<Vec<&'a mut [E]>> {
    let mut rows: Vec<Option<&mut [E]>> = pool.chunks_exact_mut(row.max(1)).map(Some).collect();
    check_slots(slots, rows.len())?;
    Ok(slots.iter().filter_map(|&s| rows[s].take()).collect())
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
            4 => advance::<E, R, 4>(&mut y, x, state.as_chunks_mut().0, weight.as_chunks().0),
            3 => advance::<E, R, 3>(&mut y, x, state.as_chunks_mut().0, weight.as_chunks().0),
            2 => advance::<E, R, 2>(&mut y, x, state.as_chunks_mut().0, weight.as_chunks().0),
            _ => {
                let each = state.chunks_exact_mut(w).zip(weight.chunks_exact(w));
                y.iter_mut().zip(x).zip(each).for_each(|((y, &x), (s, w))| tap(y, x, s, w));
            }
        }
        if silu {
            vectorized(
                #[inline(always)]
                || y.iter_mut().for_each(|y| *y = math::silu(*y)),
            );
        }
        if let Some(r) = &rs {
            y.iter_mut().zip(r.row(i, &mut buf)).for_each(|(y, &r)| *y += r);
        }
        out.write(0, &y);
    });
    Ok(())
}

/// All channels, with the number of taps known to the compiler.
fn advance<E: Element, R: Real, const W: usize>(
    y: &mut [R],
    x: &[R],
    state: &mut [[E; W]],
    weight: &[[R; W]],
) {
    vectorized(
        #[inline(always)]
        || {
            let each = state.iter_mut().zip(weight);
            y.iter_mut().zip(x).zip(each).for_each(|((y, &x), (s, w))| tap(y, x, s, w));
        },
    );
}

/// Adds one channel's weighted sum to `y`, oldest input first, and shifts its inputs by one.
#[inline(always)]
fn tap<E: Element, R: Real>(y: &mut R, x: R, state: &mut [E], weight: &[R]) {
    let last = state.len() - 1;
    for j in 0..last {
        let s = state[j + 1];
        state[j] = s;
        *y += weight[j]
            * if R::DTYPE == DType::F64 { R::from_f64(s.to_f64()) } else { R::from_f32(s.to_f32()) };
    }
    state[last] = if R::DTYPE == DType::F64 { E::from_f64(x.to_f64()) } else { E::from_f32(x.to_f32()) };
    *y += weight[last] * x;
}
