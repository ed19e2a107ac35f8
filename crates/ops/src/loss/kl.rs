//! Kullback-Leibler divergence of two linear layers' distributions, a block of tokens at a time: distillation without either's logits in memory.

use flashlin_tensor::{DType, Error, Result, Tensor, Var, checkpoint};

use super::Reduction;
use crate::OpInfo;

const OP: &str = "linear_kl_divergence";

/// Registry entry of [`linear_kl_divergence`].
pub static LINEAR_KL_DIVERGENCE: OpInfo = OpInfo {
    name: OP,
    family: "loss",
    summary: "sum_v p (ln p - ln q), p = softmax(x' W'^T), q = softmax(x W^T), without holding the logits whole",
    source: "arXiv:1503.02531",
    modes: &[],
    dtypes: super::FLOATS,
    devices: &["cpu", "cuda"],
    grads: &["x", "weight"],
};

/// Numbers in a block of logits.
const LOGITS: usize = 16 << 20;

/// `KL(p || q)` summed over tokens, and divided by their number with [`Reduction::Mean`]: the student's distribution q comes from x `[.., H]` and `weight` `[V, H]`, the
/// teacher's p from `target_x` `[.., H']` and `target_weight` `[V, H']`. Gradients flow to the student. Arithmetic on logits is f32 (f64 for f64); the blocks'
/// logits are made again in the backward pass.
///
/// # Errors
/// When shapes or dtypes do not fit, and for [`Reduction::None`].
pub fn linear_kl_divergence(
    x: &Var,
    weight: &Var,
    target_x: &Tensor,
    target_weight: &Tensor,
    reduction: Reduction,
) -> Result<Var> {
    let [classes, hidden] = weight.tensor().dims_n::<2>(OP, "weight")?;
    let [target_classes, target_hidden] = target_weight.dims_n::<2>(OP, "target_weight")?;
    if target_classes != classes {
        let want = format!("[{classes}, H'] as the student's classes");
        return Err(Error::shape(OP, "target_weight", target_weight.dims(), want));
    }
    let rows = |arg, dims: &[usize], width: usize| match dims.split_last() {
        Some((&w, rest)) if w == width => Ok(rest.iter().product::<usize>()),
        _ => Err(Error::shape(OP, arg, dims, format!("[.., {width}] for this weight"))),
    };
    let tokens = rows("x", x.dims(), hidden)?;
    if rows("target_x", target_x.dims(), target_hidden)? != tokens {
        return Err(Error::shape(OP, "target_x", target_x.dims(), format!("{tokens} tokens, as x")));
    }
    for (arg, dtype) in [("x", x.dtype()), ("weight", weight.dtype()), ("target_x", target_x.dtype())] {
        if !dtype.is_float() {
            return Err(Error::dtype(OP, arg, dtype, "a float dtype"));
        }
    }
    if reduction == Reduction::None {
        return Err(Error::unsupported(OP, "reduction none", "mean, sum"));
    }
    let wide = x.dtype().accumulator();
    let x = x.reshape(&[tokens, hidden])?;
    let target = target_x.reshape(&[tokens, target_hidden])?;
    let step = (LOGITS / classes.max(1)).clamp(1, 1024);
    let mut parts = Vec::new();
    for from in (0..tokens).step_by(step) {
        let n = step.min(tokens - from);
        let (target, target_weight) = (target.narrow(0, from, n)?, target_weight.clone());
        let body = move |v: &[Var]| {
            let teacher =
                log_softmax(&Var::constant(target.clone()), &Var::constant(target_weight.clone()), wide)?;
            let student = log_softmax(&v[0], &v[1], wide)?;
            Ok(vec![teacher.exp()?.mul(&teacher.sub(&student)?)?.sum_all()?])
        };
        parts.push(checkpoint(body, &[&x.narrow(0, from, n)?, weight])?.remove(0));
    }
    let zero = || -> Result<Var> {
        // Without tokens; the student's gradients are zero.
        x.to_dtype(wide)?.sum_all()?.add(&weight.to_dtype(wide)?.sum_all()?)?.affine(0.0, 0.0)
    };
    let mut sum = parts.pop().map_or_else(zero, Ok)?;
    for part in parts.into_iter().rev() {
        sum = part.add(&sum)?;
    }
    match reduction {
        Reduction::Mean => sum.affine(1.0 / tokens.max(1) as f64, 0.0),
        _ => Ok(sum),
    }
}

/// ln softmax(x W^T) in `dtype`.
fn log_softmax(x: &Var, weight: &Var, dtype: DType) -> Result<Var> {
    let logits = x.to_dtype(dtype)?.linear(&weight.to_dtype(dtype)?)?;
    let top = Var::constant(logits.tensor().max_last()?.0.unsqueeze(1)?);
    let logits = logits.sub(&top)?;
    logits.sub(&logits.exp()?.sum(&[1], true)?.log()?)
}
