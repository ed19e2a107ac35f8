//! The convolution on a GPU: chunks of tokens by blocks of channels, all sequences in one launch (kernels in `tiles/src/conv`).
//!
//! At most four taps on channels in multiples of 8, which is what models have, slide down the tokens and read every input once (`sliding`); other
//! sizes, and gradients through states, take the kernels of one element a lane.

use flashlin_tensor::{
    DType, Error, Result, Tensor,
    cuda::{Arg, Launcher},
};

use super::{Call, ConvStep, OP};

/// Tokens that a block of the weight's gradient adds.
const PIECE: usize = 256;

/// Operands as the kernels want them: contiguous, of the dtype of x.
struct Operands {
    on: Launcher,
    kind: &'static str,
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    state: Option<Tensor>,
}

impl Operands {
    fn of(call: &Call) -> Result<Operands> {
        let on = Launcher::on(OP, &call.x)?;
        let kind = on.float("x", call.x.dtype())?;
        let like = |t: &Tensor| on.dense(t, call.x.dtype());
        Ok(Operands {
            on,
            kind,
            x: on.dense(&call.x, call.x.dtype())?,
            weight: like(&call.weight)?,
            bias: call.bias.as_ref().map(like).transpose()?,
            state: call.state.as_ref().map(like).transpose()?,
        })
    }

    fn flag(x: Option<&Tensor>) -> Arg {
        Arg::I32(x.is_some() as i32)
    }
}

/// (first token, length, first token of the chunk, sequence) of every chunk of at most `tokens`; with `None` of every sequence.
fn table(call: &Call, tokens: Option<usize>, on: &Launcher) -> Result<(Tensor, usize)> {
    let mut rows: Vec<i32> = Vec::new();
    for (n, range) in call.seqs.ranges().enumerate() {
        let mut push = |from: usize| -> Result<()> {
            for v in [range.start, range.len(), from, n] {
                let long =
                    |_| Error::unsupported(OP, format!("{v} packed tokens on a GPU"), "up to 2^31 - 1");
                rows.push(i32::try_from(v).map_err(long)?);
            }
            Ok(())
        };
        match tokens {
            None => push(0)?,
            Some(step) => (0..range.len()).step_by(step).try_for_each(push)?,
        }
    }
    let count = rows.len() / 4;
    Ok((on.table(rows)?, count))
}

/// Channels and tokens of a block of the kernels that take both.
fn block(kernel: &flashlin_tensor::cuda::Kernel) -> Result<[usize; 2]> {
    let n = |name| kernel.need_generic(name).map(|v| v.max(1) as usize).map_err(Error::Kernel);
    let (lanes, channels) = (n("N")?, n("BD")?);
    Ok([channels, lanes / channels])
}

fn lanes(kernel: &flashlin_tensor::cuda::Kernel) -> Result<usize> {
    Ok(kernel.need_generic("N").map_err(Error::Kernel)?.max(1) as usize)
}

/// Whether the kernels that slide serve the call.
fn slides(call: &Call) -> bool {
    call.taps <= 4 && call.channels.is_multiple_of(8)
}

/// Channels and tokens of a block that slides.
fn strip(kernel: &flashlin_tensor::cuda::Kernel) -> Result<[usize; 2]> {
    let n = |name| kernel.need_generic(name).map(|v| v.max(1) as usize).map_err(Error::Kernel);
    Ok([n("BD")?, n("BT")?])
}

/// A weight as the kernels that slide read it: one row for each of four taps, those before the first of W zero.
fn tap_rows(call: &Call, weight: &Tensor) -> Result<Tensor> {
    let (d, w) = (call.channels, call.taps);
    let rows = weight.reshape(&[d, w])?.transpose(0, 1)?;
    if w == 4 {
        return Launcher::on(OP, weight)?.dense(&rows, weight.dtype());
    }
    Tensor::cat(&[&Tensor::zeros(&[4 - w, d], weight.dtype(), &weight.device())?, &rows], 0)
}

/// Queues a kernel that slides: the operands, then `own`, then sizes and options.
///
/// # Safety
/// `own` is what the kernel expects between the two.
unsafe fn slide(call: &Call, o: &Operands, name: &str, own: &[Arg]) -> Result<()> {
    let on = &o.on;
    let kernel = on.find(name, o.kind, &[])?;
    let [bd, bt] = strip(kernel)?;
    let (chunks, count) = table(call, Some(bt), on)?;
    let tokens = call.seqs.total();
    on.int(o.x.numel())?;
    let weight = tap_rows(call, &o.weight)?;
    let state = o.state.as_ref().map(|s| on.dense(&s.transpose(1, 2)?, s.dtype())).transpose()?;
    let mut args = vec![on.at(&o.x)?, on.at(&weight)?, on.maybe(o.bias.as_ref())?];
    args.extend([on.maybe(state.as_ref())?, on.at(&chunks)?]);
    args.extend(own);
    args.extend([on.int(tokens)?, on.int(count)?, on.int(call.channels)?, on.int(call.taps)?]);
    args.extend([Operands::flag(o.bias.as_ref()), Operands::flag(o.state.as_ref())]);
    args.push(Arg::I32(call.silu as i32));
    // SAFETY: x is dense, tokens rows of D; the table stays inside the packed tokens; the caller's promise for the rest.
    unsafe { on.launch(&kernel.name, [call.channels.div_ceil(bd), count, 1], &args) }
}

/// Gradients of x, weight and bias in one pass, where nothing flows through a state.
fn backward_sliding(call: &Call, o: &Operands, dy: &Tensor) -> Result<[Tensor; 3]> {
    let (on, device, (d, w)) = (&o.on, call.x.device(), (call.channels, call.taps));
    let dy = on.dense(dy, call.x.dtype())?;
    let dx = Tensor::empty(call.x.dims(), call.x.dtype(), &device)?;
    let [_, bt] = strip(on.find("conv_rows_bwd", o.kind, &[])?)?;
    let count = call.seqs.ranges().map(|r| r.len().div_ceil(bt)).sum();
    let parts = Tensor::empty(&[count, 5, d], DType::F32, &device)?;
    let own = [on.at(&dy)?, on.at(&dx)?, on.at(&parts)?];
    // SAFETY: dy and dx are like x, parts has five rows for each chunk.
    unsafe { slide(call, o, "conv_rows_bwd", &own) }?;
    let sums = parts.sum(&[0], false)?;
    let dw = sums.narrow(0, 4 - w, w)?.transpose(0, 1)?.contiguous()?.reshape(call.weight.dims())?;
    Ok([dx, dw, sums.select(0, 4)?.contiguous()?])
}

/// y, and the state after the last tokens where wanted.
pub(super) fn forward(call: &Call, want_state: bool) -> Result<(Tensor, Option<Tensor>)> {
    let o = Operands::of(call)?;
    let (on, device) = (&o.on, call.x.device());
    let y = Tensor::empty(call.x.dims(), call.x.dtype(), &device)?;
    // Of the forward kernel only the one for bf16 passed its check.
    if slides(call) && on.find("conv_rows_fwd", o.kind, &[]).is_ok() {
        // SAFETY: y is like x.
        unsafe { slide(call, &o, "conv_rows_fwd", &[on.at(&y)?]) }?;
    } else {
        forward_lanes(call, &o, &y)?;
    }
    let y = match &call.residual {
        Some(r) => y.add(&r.to_dtype(y.dtype())?)?,
        None => y,
    };
    let last = want_state.then(|| last_state(call, &o)).transpose()?;
    Ok((y, last))
}

fn forward_lanes(call: &Call, o: &Operands, y: &Tensor) -> Result<()> {
    let on = &o.on;
    let kernel = on.find("conv_fwd", o.kind, &[])?;
    let [bd, bt] = block(kernel)?;
    let (chunks, count) = table(call, Some(bt), on)?;
    on.int(y.numel())?;
    let mut args =
        vec![on.at(&o.x)?, on.at(&o.weight)?, on.maybe(o.bias.as_ref())?, on.maybe(o.state.as_ref())?];
    args.extend([on.at(&chunks)?, on.at(y)?, on.int(count)?, on.int(call.channels)?, on.int(call.taps)?]);
    args.extend([
        Operands::flag(o.bias.as_ref()),
        Operands::flag(o.state.as_ref()),
        Arg::I32(call.silu as i32),
    ]);
    // SAFETY: the table stays inside the packed tokens; all arrays have the sizes that D, W and the table state.
    unsafe { on.launch(&kernel.name, [call.channels.div_ceil(bd), count, 1], &args) }
}

fn last_state(call: &Call, o: &Operands) -> Result<Tensor> {
    let (on, device) = (&o.on, call.x.device());
    let kernel = on.find("conv_state", o.kind, &[])?;
    let (seqs, n) = table(call, None, on)?;
    let last = Tensor::empty(&[n, call.channels, call.taps], call.x.dtype(), &device)?;
    let mut args = vec![on.at(&o.x)?, on.maybe(o.state.as_ref())?, on.at(&seqs)?, on.at(&last)?];
    args.extend([on.int(n)?, on.int(call.channels)?, on.int(call.taps)?, Operands::flag(o.state.as_ref())]);
    // SAFETY: as in `forward`.
    unsafe { on.launch(&kernel.name, [call.channels.div_ceil(lanes(kernel)?), n, 1], &args) }?;
    // As on the CPU: in the dtype of the state before, or of x.
    last.to_dtype(call.state.as_ref().map_or(call.x.dtype(), Tensor::dtype))
}

/// Gradients of x, weight, bias, residual and initial state, where wanted.
pub(super) fn backward(
    call: &Call,
    dy: &Tensor,
    dlast: Option<Tensor>,
    [_, want_w, want_b, want_r, want_s]: [bool; 5],
) -> Result<Vec<Option<Tensor>>> {
    let o = Operands::of(call)?;
    let dy = dy.to_dtype(call.x.dtype())?.contiguous()?;
    let dr = call.residual.as_ref().filter(|_| want_r).map(|r| dy.to_dtype(r.dtype())).transpose()?;
    if slides(call) && dlast.is_none() && !(want_s && call.state.is_some()) {
        let [dx, dw, db] = backward_sliding(call, &o, &dy)?;
        let db = call.bias.as_ref().filter(|_| want_b).map(|b| db.reshape(b.dims())).transpose()?;
        return Ok(vec![Some(dx), want_w.then_some(dw), db, dr, None]);
    }
    let dlast = dlast.map(|d| d.to_dtype(call.x.dtype())?.contiguous()).transpose()?;
    let dz = before_activation(call, &o, &dy)?;
    let dx = input_gradient(call, &o, &dz, dlast.as_ref())?;
    let (dw, db) = if want_w || want_b { weight_gradients(call, &o, &dz)? } else { (None, None) };
    let dw = dw.filter(|_| want_w);
    let db = db.filter(|_| want_b && call.bias.is_some());
    let ds = match &call.state {
        Some(state) if want_s => {
            Some(state_gradient(call, &o, &dz, dlast.as_ref())?.to_dtype(state.dtype())?)
        }
        _ => None,
    };
    Ok(vec![Some(dx), dw, db, dr, ds])
}

fn before_activation(call: &Call, o: &Operands, dy: &Tensor) -> Result<Tensor> {
    let (on, device) = (&o.on, call.x.device());
    let kernel = on.find("conv_dz", o.kind, &[])?;
    let [bd, bt] = block(kernel)?;
    let (chunks, count) = table(call, Some(bt), on)?;
    let dz = Tensor::empty(call.x.dims(), DType::F32, &device)?;
    let mut args =
        vec![on.at(&o.x)?, on.at(&o.weight)?, on.maybe(o.bias.as_ref())?, on.maybe(o.state.as_ref())?];
    args.extend([on.at(&chunks)?, on.at(dy)?, on.at(&dz)?, on.int(count)?, on.int(call.channels)?]);
    args.extend([
        on.int(call.taps)?,
        Operands::flag(o.bias.as_ref()),
        Operands::flag(o.state.as_ref()),
        Arg::I32(call.silu as i32),
    ]);
    // SAFETY: as in `forward`; dz has the shape of x.
    unsafe { on.launch(&kernel.name, [call.channels.div_ceil(bd), count, 1], &args) }?;
    Ok(dz)
}

fn input_gradient(call: &Call, o: &Operands, dz: &Tensor, dlast: Option<&Tensor>) -> Result<Tensor> {
    let (on, device) = (&o.on, call.x.device());
    let kernel = on.find("conv_dx", o.kind, &[])?;
    let [bd, bt] = block(kernel)?;
    let (chunks, count) = table(call, Some(bt), on)?;
    let dx = Tensor::empty(call.x.dims(), call.x.dtype(), &device)?;
    let mut args = vec![on.at(dz)?, on.at(&o.weight)?, on.maybe(dlast)?, on.at(&chunks)?, on.at(&dx)?];
    args.extend([on.int(count)?, on.int(call.channels)?, on.int(call.taps)?, Operands::flag(dlast)]);
    // SAFETY: as in `forward`.
    unsafe { on.launch(&kernel.name, [call.channels.div_ceil(bd), count, 1], &args) }?;
    Ok(dx)
}

/// Sums of pieces, then of the pieces in order, so that the bits do not depend on the device's scheduling.
fn weight_gradients(call: &Call, o: &Operands, dz: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (on, device, (d, w)) = (&o.on, call.x.device(), (call.channels, call.taps));
    let kernel = on.find("conv_dw", o.kind, &[("BT", PIECE as i64)])?;
    let (chunks, count) = table(call, Some(PIECE), on)?;
    let parts = Tensor::empty(&[count, w + 1, d], DType::F32, &device)?;
    let mut args =
        vec![on.at(&o.x)?, on.maybe(o.state.as_ref())?, on.at(&chunks)?, on.at(dz)?, on.at(&parts)?];
    args.extend([on.int(count)?, on.int(d)?, on.int(w)?, Operands::flag(o.state.as_ref())]);
    // SAFETY: as in `forward`; parts has W + 1 rows of D for each piece.
    unsafe { on.launch(&kernel.name, [d.div_ceil(lanes(kernel)?), count, w + 1], &args) }?;
    let sums = parts.sum(&[0], false)?;
    let dw = sums.narrow(0, 0, w)?.transpose(0, 1)?.contiguous()?.reshape(call.weight.dims())?;
    let db = call.bias.as_ref().map(|b| sums.select(0, w)?.contiguous()?.reshape(b.dims())).transpose()?;
    Ok((Some(dw), db))
}

fn state_gradient(call: &Call, o: &Operands, dz: &Tensor, dlast: Option<&Tensor>) -> Result<Tensor> {
    let (on, device) = (&o.on, call.x.device());
    let kernel = on.find("conv_dstate", o.kind, &[])?;
    let (seqs, n) = table(call, None, on)?;
    let ds = Tensor::empty(&[n, call.channels, call.taps], call.x.dtype(), &device)?;
    let mut args = vec![on.at(dz)?, on.at(&o.weight)?, on.maybe(dlast)?, on.at(&seqs)?, on.at(&ds)?];
    args.extend([on.int(n)?, on.int(call.channels)?, on.int(call.taps)?, Operands::flag(dlast)]);
    // SAFETY: as in `forward`.
    unsafe { on.launch(&kernel.name, [call.channels.div_ceil(lanes(kernel)?), n, 1], &args) }?;
    Ok(ds)
}

/// Convolutions of one launch of the decode form.
pub(super) const STREAMS: usize = 3;

/// The decode form on checked arguments: rows `slots` of the pools move on by one token. At most [`STREAMS`] convolutions that differ in nothing but their
/// arrays and channels.
pub(super) fn steps(all: &[ConvStep], slots: &[usize], pools: &[&Tensor], outs: &mut [Tensor]) -> Result<()> {
    let [one, ..] = all else { return Ok(()) };
    let on = Launcher::on(OP, one.x)?;
    let dtype = one.x.dtype();
    let kernel = on.find("conv_step", on.float("x", dtype)?, &[])?;
    let lanes = lanes(kernel)?;
    let taps = pools[0].dim(2);
    let (mut list, mut held, mut blocks) = (Vec::new(), Vec::new(), 0);
    for ((args, pool), out) in all.iter().zip(pools).zip(outs.iter()) {
        if pool.dtype() != dtype {
            return Err(Error::dtype(OP, "state", pool.dtype(), format!("{dtype}, as x, on a GPU")));
        }
        let like = |t: &Tensor| t.to_dtype(dtype)?.contiguous();
        let (x, weight, bias) = (like(args.x)?, like(args.weight)?, args.bias.map(like).transpose()?);
        list.extend([on.at(&x)?, on.at(&weight)?, on.maybe(bias.as_ref())?, on.at(pool)?, on.at(out)?]);
        list.push(on.int(pool.dim(1))?);
        blocks += pool.dim(1).div_ceil(lanes);
        held.extend([Some(x), Some(weight), bias].into_iter().flatten());
    }
    for _ in all.len()..STREAMS {
        list.extend([Arg::Ptr(0); 5]);
        list.push(Arg::I32(0));
    }
    let slots: Vec<i32> = slots.iter().map(|&s| s as i32).collect();
    let rows = slots.len();
    let slots = on.table(slots)?;
    list.extend([on.at(&slots)?, on.int(rows)?, on.int(taps)?, Arg::I32(one.bias.is_some().into())]);
    list.push(Arg::I32(super::is_silu(one.activation)?.into()));
    // SAFETY: the slots were checked against the pools and are all different; the arrays have the sizes that R, D and W state; what is absent has no channels.
    unsafe { on.launch(&kernel.name, [blocks, rows, 1], &list) }?;
    drop(held);
    for (args, out) in all.iter().zip(outs) {
        if let Some(r) = args.residual {
            *out = out.add(&r.to_dtype(dtype)?)?;
        }
    }
    Ok(())
}
