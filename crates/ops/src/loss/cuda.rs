//! Cross entropy on a GPU (kernel in `tiles/src/loss`): one block a row, the gradient written over the logits.
//!
//! Labels are read and counted on the host, where they come from, and sent; nothing of the loss is read back.

use flashlin_tensor::{
    Backward, BackwardCtx, DType, Result, Tensor, Var,
    cuda::{Arg, Launcher},
    grad_enabled,
};

use super::{LossOptions, LossOutput, Reduction};

/// Elements of a block of logits: 512 MiB in f32.
const LOGITS: usize = 128 << 20;

/// Labels as the kernel reads them: -1 for tokens that do not count.
fn send(labels: &[Option<usize>], like: &Tensor) -> Result<Tensor> {
    let of = |l: &Option<usize>| l.map_or(-1, |l| l as i64);
    Tensor::from_vec(labels.iter().map(of).collect(), &[labels.len()])?.to_device(&like.device())
}

/// What a gradient is scaled by: each token's weight, and that of the largest logit.
#[derive(Clone, Copy)]
struct Scale {
    token: f64,
    warp: f64,
}

impl Scale {
    fn of(options: &LossOptions, count: usize, tokens: usize) -> Self {
        Scale { token: options.token_weight(count), warp: options.warp(tokens) }
    }
}

/// Losses `[rows]` in f32 of contiguous logits `[rows, V]`. With a `scale`, the logits become their gradient times it.
fn rows(
    op: &'static str,
    logits: &Tensor,
    labels: &Tensor,
    options: &LossOptions,
    scale: Option<Scale>,
) -> Result<Tensor> {
    let on = Launcher::on(op, logits)?;
    let kernel = on.find("cross_entropy", on.float("logits", logits.dtype())?, &[])?;
    let [n, v] = logits.dims_n::<2>(op, "logits")?;
    on.int(logits.numel())?;
    let loss = Tensor::empty(&[n], DType::F32, &logits.device())?;
    let lse = Tensor::empty(&[n], DType::F32, &logits.device())?;
    let float = |x: f64| Arg::F32(x as f32);
    let mut args = vec![on.at(logits)?, on.at(labels)?, on.at(&loss)?, on.at(&lse)?, on.int(n)?, on.int(v)?];
    args.extend([Arg::I32(scale.is_some() as i32), float(options.label_smoothing)]);
    let [token, warp] = scale.map_or([0.0; 2], |s| [s.token, s.warp]).map(float);
    args.extend([float(options.lse_square_scale), token, float(options.logit_scale)]);
    args.extend([float(options.logit_softcapping.unwrap_or(0.0)), warp]);
    // SAFETY: the logits are contiguous, [n, V]; labels, loss and lse have n elements.
    unsafe { on.launch(&kernel.name, [n, 1, 1], &args) }?;
    Ok(loss)
}

fn reduce(losses: Tensor, count: usize, reduction: Reduction, dims: &[usize]) -> Result<Tensor> {
    match reduction {
        Reduction::None => losses.reshape(dims),
        Reduction::Sum => losses.sum_all(),
        Reduction::Mean => losses.sum_all()?.affine(1.0 / count.max(1) as f64, 0.0),
    }
}

/// [`cross_entropy`](super::cross_entropy) of contiguous or strided logits `[.., V]` with read labels.
pub(super) fn plain(
    op: &'static str,
    logits: &Var,
    labels: &[Option<usize>],
    options: &LossOptions,
) -> Result<LossOutput> {
    let options = *options;
    let (dims, v) = (logits.dims().to_vec(), logits.dim(logits.dims().len() - 1));
    let count = labels.iter().flatten().count();
    let scale = Scale::of(&options, count, labels.len());
    let flat = logits.tensor().reshape(&[labels.len(), v])?.contiguous()?;
    let labels = send(labels, &flat)?;
    let losses = rows(op, &flat, &labels, &options, None)?;
    let loss = reduce(losses, count, options.reduction, &dims[..dims.len() - 1])?;
    let loss = Var::from_op1(op, &[logits], loss, || -> Box<dyn Backward> {
        Box::new(move |_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let Some(g) = g[0].take() else { return Ok(vec![None]) };
            // In f32 until all factors are in, so that it is rounded once.
            let d = match flat.dtype() {
                DType::F32 => flat.copy()?,
                _ => flat.to_dtype(DType::F32)?,
            };
            rows(op, &d, &labels, &options, Some(scale))?;
            // One number for all rows, or one a row.
            let g = g.to_dtype(DType::F32)?.reshape(&[g.numel(), 1])?;
            Ok(vec![Some(d.mul(&g)?.to_dtype(flat.dtype())?.reshape(&dims)?)])
        })
    });
    Ok(LossOutput { loss, count })
}

/// [`linear_cross_entropy`](super::linear_cross_entropy) with read labels: blocks of tokens, whose logits are forgotten.
pub(super) fn linear(
    op: &'static str,
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    labels: &[Option<usize>],
    options: &LossOptions,
) -> Result<LossOutput> {
    let [classes, hidden] = weight.tensor().dims_n::<2>(op, "weight")?;
    let wanted = |v: Option<&Var>| grad_enabled() && v.is_some_and(Var::is_tracked);
    let wants = [wanted(Some(x)), wanted(Some(weight)), wanted(bias)];
    let count = labels.iter().flatten().count();
    let scale = wants.contains(&true).then(|| Scale::of(options, count, labels.len()));
    let flat = x.tensor().reshape(&[labels.len(), hidden])?.contiguous()?;
    let sent = send(labels, &flat)?;
    let mut saved: [Option<Tensor>; 3] = [const { None }; 3];
    let (mut losses, mut dx) = (Vec::new(), Vec::new());
    let step = (LOGITS / classes.max(1) / 64 * 64).clamp(64, 8192);
    for from in (0..labels.len()).step_by(step) {
        let n = step.min(labels.len() - from);
        let tokens = flat.narrow(0, from, n)?;
        let mut logits = tokens.linear_to(weight.tensor(), DType::F32)?;
        if let Some(b) = bias {
            logits = logits.add(&b.tensor().to_dtype(DType::F32)?)?;
        }
        losses.push(rows(op, &logits, &sent.narrow(0, from, n)?, options, scale)?);
        // Now the logits are their gradient.
        let d = logits.to_dtype(x.dtype())?;
        if wants[0] {
            dx.push(d.matmul_to(weight.tensor(), DType::F32)?);
        }
        if wants[1] {
            add(&mut saved[1], d.transpose(0, 1)?.matmul_to(&tokens, DType::F32)?)?;
        }
        if wants[2] {
            add(&mut saved[2], logits.sum(&[0], false)?)?;
        }
    }
    if !dx.is_empty() {
        saved[0] = Some(Tensor::cat(&dx.iter().collect::<Vec<_>>(), 0)?.reshape(x.dims())?);
    }
    let losses = match losses.is_empty() {
        true => Tensor::zeros(&[0], DType::F32, &x.device())?,
        false => Tensor::cat(&losses.iter().collect::<Vec<_>>(), 0)?,
    };
    let loss = reduce(losses, count, options.reduction, &[])?;
    let (absent, dtype) = (x.detach(), x.dtype());
    let inputs = [x, weight, bias.unwrap_or(&absent)];
    let loss = Var::from_op1(op, &inputs, loss, || -> Box<dyn Backward> {
        Box::new(move |_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let Some(g) = g[0].take() else { return Ok(vec![None; 3]) };
            // The loss is nearly always the root, but whether its gradient is 1 only the device knows.
            let g = g.to_dtype(DType::F32)?;
            let scaled = |d: Option<Tensor>| d.map(|d| d.mul(&g)).transpose();
            let mut grads = saved.into_iter().map(scaled).collect::<Result<Vec<_>>>()?;
            grads[0] = grads[0].take().map(|d| d.to_dtype(dtype)).transpose()?;
            Ok(grads)
        })
    });
    Ok(LossOutput { loss, count })
}

fn add(sum: &mut Option<Tensor>, part: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(s) => s.add(&part)?,
        None => part,
    });
    Ok(())
}
