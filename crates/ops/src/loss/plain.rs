//! Cross entropy from logits.

use flashlin_tensor::{
    Backward, BackwardCtx, DType, Device, Error, Real, Result, Tensor, Var, cpu::vectorized,
};
use rayon::prelude::*;

use super::{
    LossOptions, LossOutput, Reduction, labels,
    rows::{RowLoss, RowStats},
};
use crate::rows::{Rows, blocks, to_real, with_rows};

const OP: &str = "cross_entropy";

/// Cross entropy of `labels` `[..]` (i64 or i32) under `logits` `[.., V]`; see the module's formula.
///
/// # Errors
/// When shapes do not fit, a label is neither a class nor ignored, an option is out of range, or a dtype does not fit.
pub fn cross_entropy(logits: &Var, labels: &Tensor, options: &LossOptions) -> Result<LossOutput> {
    options.check(OP)?;
    let Some((&classes, dims)) = logits.dims().split_last() else {
        return Err(Error::shape(OP, "logits", logits.dims(), "[.., V]"));
    };
    let labels = labels::read(OP, labels, dims, classes, options.ignore_index)?;
    if logits.device() != Device::Cpu {
        return super::cuda::plain(OP, logits, &labels, options);
    }
    let x = with_rows(OP, "logits", logits.tensor())?;
    match x.dtype() {
        DType::F64 => run::<f64>(logits, x, labels, *options),
        _ => run::<f32>(logits, x, labels, *options),
    }
}

fn run<R: Real>(
    logits: &Var,
    x: Tensor,
    labels: Vec<Option<usize>>,
    options: LossOptions,
) -> Result<LossOutput> {
    let dims = x.dims()[..x.rank() - 1].to_vec();
    let classes = x.dim(x.rank() - 1);
    let count = labels.iter().flatten().count();
    let row = RowLoss::<R>::new(&options);
    let rows = Rows::new(&x)?;
    let warp = options.l2_warp.is_some();
    let of = |buf: &mut Vec<R>, (i, &label): (usize, &Option<usize>)| {
        vectorized(
            #[inline(always)]
            || row.forward(rows.row(i, buf), label, warp),
        )
    };
    let stats: Vec<RowStats<R>> =
        labels.par_iter().enumerate().map_init(|| vec![R::ZERO; classes], of).collect();
    let loss = reduce(&stats, count, options.reduction, &dims)?;
    let loss = Var::from_op1(OP, &[logits], loss, || -> Box<dyn Backward> {
        Box::new(move |_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let Some(g) = g[0].take() else { return Ok(vec![None]) };
            gradient::<R>(&x, &labels, &stats, &options, count, &g).map(|d| vec![Some(d)])
        })
    });
    Ok(LossOutput { loss, count })
}

/// The losses of tokens as the result asked for; added up in f64, in order.
pub(super) fn reduce<R: Real>(
    stats: &[RowStats<R>],
    count: usize,
    reduction: Reduction,
    dims: &[usize],
) -> Result<Tensor> {
    let total: f64 = stats.iter().map(|s| s.loss.to_f64()).sum();
    match reduction {
        Reduction::None => Tensor::from_vec(stats.iter().map(|s| s.loss).collect::<Vec<R>>(), dims),
        Reduction::Sum => Tensor::from_vec(vec![R::from_f64(total)], &[]),
        Reduction::Mean => Tensor::from_vec(vec![R::from_f64(total / count.max(1) as f64)], &[]),
    }
}

fn gradient<R: Real>(
    x: &Tensor,
    labels: &[Option<usize>],
    stats: &[RowStats<R>],
    options: &LossOptions,
    count: usize,
    upstream: &Tensor,
) -> Result<Tensor> {
    let classes = x.dim(x.rank() - 1);
    let mut dx = Tensor::empty(x.dims(), x.dtype(), &x.device())?;
    let row = RowLoss::<R>::new(options);
    let rows = Rows::new(x)?;
    let up = to_real::<R>(upstream)?;
    let (weight, warp) = (R::from_f64(options.token_weight(count)), R::from_f64(options.warp(labels.len())));
    let outs = blocks(Some(&mut dx), labels.len() * classes, classes)?;
    let task = |buf: &mut (Vec<R>, Vec<R>), (i, out): (usize, Option<_>)| {
        let Some(mut out): Option<crate::rows::RowsMut> = out else { return };
        vectorized(
            #[inline(always)]
            || {
                let u = if up.len() == 1 { up[0] } else { up[i] };
                buf.1.copy_from_slice(rows.row(i, &mut buf.0));
                row.gradient(&mut buf.1, labels[i], &stats[i], weight * u, warp * u);
                out.write(0, &buf.1);
            },
        );
    };
    let scratch = || (vec![R::ZERO; classes], vec![R::ZERO; classes]);
    outs.into_par_iter().enumerate().for_each_init(scratch, task);
    Ok(dx)
}
