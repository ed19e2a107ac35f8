//! Linear layer and cross entropy in one: a block of tokens goes through one product to logits, whose gradients are
//! written over them and go through two more products; then the block's logits are forgotten.

use flashlin_tensor::{
    Backward, BackwardCtx, DType, Device, Element, Error, Real, Result, Tensor, Var,
    cpu::{Matrix, Parallelism, gemm_f32_into, gemm_into, par_zip, vectorized},
    grad_enabled,
};
use half::bf16;
use rayon::prelude::*;

use super::{
    LossOptions, LossOutput, Reduction, labels,
    plain::reduce,
    rows::{RowLoss, RowStats},
};
use crate::rows::{check_dims, grad_of, opt_to_real, sum_parts};

const OP: &str = "linear_cross_entropy";

/// Elements of a block of logits (64 MiB in f32): enough tokens for the products to run at full speed.
const LOGITS: usize = 16 << 20;

/// Tokens of a block: depends on the vocabulary only, so the bits are the same everywhere.
fn block_tokens(classes: usize) -> usize {
    (LOGITS / classes.max(1) / 64 * 64).clamp(64, 1024)
}

/// Cross entropy of `labels` `[..]` under x W^T + b: `x` `[.., H]`, `weight` `[V, H]`, `bias` `[V]`, all of one dtype.
/// Same numbers as [`cross_entropy`](super::cross_entropy) of a linear layer, without its logits in memory.
///
/// # Errors
/// As [`cross_entropy`](super::cross_entropy); and for [`Reduction::None`], whose gradients cannot be made in forward.
pub fn linear_cross_entropy(
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    labels: &Tensor,
    options: &LossOptions,
) -> Result<LossOutput> {
    options.check(OP)?;
    if options.reduction == Reduction::None {
        return Err(Error::unsupported(OP, "reduction none", "mean, sum; or cross_entropy of the logits"));
    }
    let [classes, hidden] = weight.tensor().dims_n::<2>(OP, "weight")?;
    let dims = match x.dims().split_last() {
        Some((&h, dims)) if h == hidden => dims.to_vec(),
        _ => return Err(Error::shape(OP, "x", x.dims(), format!("[.., {hidden}] for this weight"))),
    };
    bias.map_or(Ok(()), |b| check_dims(OP, "bias", b.tensor(), &[classes]))?;
    for (arg, v) in [("weight", Some(weight)), ("bias", bias)] {
        match v {
            Some(v) if v.dtype() != x.dtype() => {
                return Err(Error::dtype(OP, arg, v.dtype(), format!("{} as x", x.dtype())));
            }
            _ => {}
        }
    }
    let labels = labels::read(OP, labels, &dims, classes, options.ignore_index)?;
    if x.device() != flashlin_tensor::Device::Cpu {
        return super::cuda::linear(OP, x, weight, bias, &labels, options);
    }
    match x.dtype() {
        DType::F64 => run::<f64>(x, weight, bias, &labels, options),
        DType::F32 | DType::BF16 | DType::F16 => run::<f32>(x, weight, bias, &labels, options),
        other => Err(Error::dtype(OP, "x", other, "a float type")),
    }
}

fn run<R: Real>(
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    labels: &[Option<usize>],
    options: &LossOptions,
) -> Result<LossOutput> {
    let [classes, hidden] = weight.tensor().dims_n::<2>(OP, "weight")?;
    let tokens = labels.len();
    // bf16 is multiplied as it is, twice as fast where the processor can; f16 gradients would underflow.
    let stored = if x.dtype() == DType::BF16 { DType::BF16 } else { R::DTYPE };
    let xt = x.tensor().to_dtype(stored)?.contiguous()?;
    let wt = weight.tensor().to_dtype(stored)?.contiguous()?;
    let bt = opt_to_real::<R>(bias.map(Var::tensor))?;
    let wanted = |v: Option<&Var>| grad_enabled() && v.is_some_and(Var::is_tracked);
    let zeros =
        |want: bool, dims: &[usize]| want.then(|| Tensor::zeros(dims, R::DTYPE, &x.device())).transpose();
    let mut pass = Pass {
        operands: match stored {
            DType::BF16 => Operands::Bf16(xt.as_slice()?, wt.as_slice()?),
            _ => Operands::Real(xt.as_slice()?, wt.as_slice()?),
        },
        bias: bt.as_deref(),
        hidden,
        classes,
        dx: zeros(wanted(Some(x)), x.dims())?,
        dw: zeros(wanted(Some(weight)), weight.dims())?,
        db: wanted(bias).then(Vec::new),
        stats: Vec::with_capacity(tokens),
    };
    let count = labels.iter().flatten().count();
    if classes > 0 {
        pass.all(labels, options, count)?;
    }
    let loss = reduce(&pass.stats, count, options.reduction, &[])?;
    let db = match (pass.db, bias) {
        (Some(parts), Some(b)) => Some(grad_of(sum_parts(&parts, classes), b.tensor())?),
        _ => None,
    };
    let saved = [pass.dx, pass.dw, db];
    let absent = x.detach();
    let inputs = [x, weight, bias.unwrap_or(&absent)];
    let loss = Var::from_op1(OP, &inputs, loss, || -> Box<dyn Backward> {
        Box::new(move |_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let Some(g) = g[0].take() else { return Ok(vec![None; 3]) };
            let up = g.to_scalar()?;
            // The loss is nearly always the root: nothing to scale then.
            let scale = |d: Option<Tensor>| match d {
                Some(d) if up != 1.0 => d.affine(up, 0.0).map(Some),
                d => Ok(d),
            };
            saved.into_iter().map(scale).collect()
        })
    });
    Ok(LossOutput { loss, count })
}

/// x and the weight, as they are multiplied.
#[derive(Clone, Copy)]
enum Operands<'a, R> {
    Real(&'a [R], &'a [R]),
    /// Sums in f32, which R is.
    Bf16(&'a [bf16], &'a [bf16]),
}

/// One pass over the tokens.
struct Pass<'a, R> {
    operands: Operands<'a, R>,
    bias: Option<&'a [R]>,
    hidden: usize,
    classes: usize,
    dx: Option<Tensor>,
    dw: Option<Tensor>,
    /// Partial sums, one a block
    db: Option<Vec<Vec<R>>>,
    stats: Vec<RowStats<R>>,
}

impl<R: Real> Pass<'_, R> {
    fn all(&mut self, labels: &[Option<usize>], options: &LossOptions, count: usize) -> Result<()> {
        let step = block_tokens(self.classes);
        let n = step.min(labels.len());
        let mut logits = Tensor::empty(&[n, self.classes], R::DTYPE, &Device::Cpu)?;
        let logits = logits.as_mut_slice::<R>()?;
        let weight = R::from_f64(options.token_weight(count));
        let warp = R::from_f64(options.warp(labels.len()));
        for (b, labels) in labels.chunks(step).enumerate() {
            let logits = &mut logits[..labels.len() * self.classes];
            self.block(b * step, labels, logits, RowLoss::new(options), weight, warp)?;
        }
        Ok(())
    }

    fn block(
        &mut self,
        first: usize,
        labels: &[Option<usize>],
        logits: &mut [R],
        row: RowLoss<R>,
        weight: R,
        warp: R,
    ) -> Result<()> {
        let (n, h, v) = (labels.len(), self.hidden, self.classes);
        let tokens = first * h..(first + n) * h;
        match self.operands {
            _ if h == 0 => logits.fill(R::ZERO),
            Operands::Real(x, w) => {
                gemm_into(logits, v, false, rows(&x[tokens.clone()], h), transposed(rows(w, h)), PAR)
            }
            Operands::Bf16(x, w) => {
                let (x, w) = (rows(&x[tokens.clone()], h), rows(w, h));
                gemm_f32_into(as_f32(logits), v, false, x, transposed(w), true)?;
            }
        }
        let grads = self.dx.is_some() || self.dw.is_some() || self.db.is_some();
        let bias = self.bias;
        let stats = logits.par_chunks_mut(v).zip(labels).map(|(l, &label)| {
            vectorized(
                #[inline(always)]
                || {
                    if let Some(b) = bias {
                        l.iter_mut().zip(b).for_each(|(l, &b)| *l += b);
                    }
                    let stats = row.forward(l, label, warp != R::ZERO);
                    if grads {
                        row.gradient(l, label, &stats, weight, warp);
                    }
                    stats
                },
            )
        });
        self.stats.extend(stats.collect::<Vec<_>>());
        if h > 0 && (self.dx.is_some() || self.dw.is_some()) {
            self.products(tokens, logits)?;
        }
        if let Some(db) = &mut self.db {
            db.push(column_sums(logits, v));
        }
        Ok(())
    }

    /// The gradients that a block's logit gradients `d` give x (elements `tokens`) and the weight.
    fn products(&mut self, tokens: std::ops::Range<usize>, d: &[R]) -> Result<()> {
        let (h, v) = (self.hidden, self.classes);
        match self.operands {
            Operands::Real(x, w) => {
                let d = rows(d, v);
                if let Some(dx) = &mut self.dx {
                    gemm_into(&mut dx.as_mut_slice::<R>()?[tokens.clone()], h, false, d, rows(w, h), PAR);
                }
                if let Some(dw) = &mut self.dw {
                    gemm_into(dw.as_mut_slice::<R>()?, h, true, transposed(d), rows(&x[tokens], h), PAR);
                }
            }
            Operands::Bf16(x, w) => {
                let mut half = Tensor::empty(&[d.len()], DType::BF16, &Device::Cpu)?;
                par_zip(half.as_mut_slice::<bf16>()?, d, |o, d| {
                    vectorized(
                        #[inline(always)]
                        || o.iter_mut().zip(d).for_each(|(o, d)| *o = Element::from_f32(d.to_f32())),
                    )
                });
                let d = rows(half.as_slice::<bf16>()?, v);
                if let Some(dx) = &mut self.dx {
                    let dx = &mut dx.as_mut_slice::<f32>()?[tokens.clone()];
                    gemm_f32_into(dx, h, false, d, rows(w, h), true)?;
                }
                if let Some(dw) = &mut self.dw {
                    let x = rows(&x[tokens], h);
                    gemm_f32_into(dw.as_mut_slice::<f32>()?, h, true, transposed(d), x, true)?;
                }
            }
        }
        Ok(())
    }
}

const PAR: Parallelism = Parallelism::Rayon(0);

/// A row-major matrix of this width.
fn rows<T>(data: &[T], width: usize) -> Matrix<'_, T> {
    Matrix { data, rows: data.len() / width, cols: width, row_stride: width, col_stride: 1 }
}

fn as_f32<R: Real>(x: &mut [R]) -> &mut [f32] {
    bytemuck::cast_slice_mut(x)
}

fn transposed<R>(m: Matrix<R>) -> Matrix<R> {
    Matrix { data: m.data, rows: m.cols, cols: m.rows, row_stride: m.col_stride, col_stride: m.row_stride }
}

fn column_sums<R: Real>(rows: &[R], width: usize) -> Vec<R> {
    let mut sums = vec![R::ZERO; width];
    sums.par_chunks_mut(1024).enumerate().for_each(|(c, sums)| {
        for row in rows.chunks_exact(width) {
            sums.iter_mut().zip(&row[c * 1024..]).for_each(|(s, &x)| *s += x);
        }
    });
    sums
}
