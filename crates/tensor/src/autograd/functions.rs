//! Differentiable versions of the array operations. Fused operators live in `flashlin-ops`; these are the glue
//! between them.

use super::{Backward, Var};
use crate::{DType, Device, Result, Tensor, cuda};

/// Sums a gradient down to the shape that was broadcast.
fn unbroadcast(grad: Tensor, dims: &[usize]) -> Result<Tensor> {
    if grad.dims() == dims {
        return Ok(grad);
    }
    let pad = grad.rank() - dims.len();
    let summed: Vec<usize> =
        (0..grad.rank()).filter(|&i| i < pad || (dims[i - pad] == 1 && grad.dim(i) != 1)).collect();
    grad.sum(&summed, false)?.reshape(dims)
}

/// One gradient in, one out.
fn unary(
    op: &'static str,
    x: &Var,
    y: Tensor,
    df: impl FnOnce(Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Var {
    Var::from_op1(op, &[x], y, || -> Box<dyn Backward> {
        Box::new(move |_: &mut super::BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            g[0].take().map(df).transpose().map(|g| vec![g])
        })
    })
}

/// One gradient in, one for each of two operands, summed down to their shapes.
fn binary(
    op: &'static str,
    a: &Var,
    b: &Var,
    y: Tensor,
    da: impl FnOnce(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
    db: impl FnOnce(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Var {
    let (ad, bd) = (a.dims().to_vec(), b.dims().to_vec());
    Var::from_op1(op, &[a, b], y, || -> Box<dyn Backward> {
        Box::new(move |ctx: &mut super::BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let Some(g) = g[0].take() else { return Ok(vec![None, None]) };
            let ga = if ctx.needs(0) { Some(unbroadcast(da(&g)?, &ad)?) } else { None };
            let gb = if ctx.needs(1) { Some(unbroadcast(db(&g)?, &bd)?) } else { None };
            Ok(vec![ga, gb])
        })
    })
}

impl Var {
    /// a + b with broadcasting.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn add(&self, rhs: &Var) -> Result<Var> {
        let y = self.tensor().add(rhs.tensor())?;
        Ok(binary("add", self, rhs, y, |g| Ok(g.clone()), |g| Ok(g.clone())))
    }

    /// a - b with broadcasting.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn sub(&self, rhs: &Var) -> Result<Var> {
        let y = self.tensor().sub(rhs.tensor())?;
        Ok(binary("sub", self, rhs, y, |g| Ok(g.clone()), |g| g.neg()))
    }

    /// a b with broadcasting.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn mul(&self, rhs: &Var) -> Result<Var> {
        let (a, b) = (self.tensor().clone(), rhs.tensor().clone());
        let y = a.mul(&b)?;
        Ok(binary("mul", self, rhs, y, move |g| g.mul(&b), move |g| g.mul(&a)))
    }

    /// a / b with broadcasting.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn div(&self, rhs: &Var) -> Result<Var> {
        let b = rhs.tensor().clone();
        let y = self.tensor().div(&b)?;
        let (b2, y2) = (b.clone(), y.clone());
        Ok(binary("div", self, rhs, y, move |g| g.div(&b), move |g| g.mul(&y2)?.div(&b2)?.neg()))
    }

    /// x * scale + shift
    ///
    /// # Errors
    /// For integer tensors.
    pub fn affine(&self, scale: f64, shift: f64) -> Result<Var> {
        let y = self.tensor().affine(scale, shift)?;
        Ok(unary("affine", self, y, move |g| g.affine(scale, 0.0)))
    }

    /// -x
    ///
    /// # Errors
    /// For integer tensors.
    pub fn neg(&self) -> Result<Var> {
        self.affine(-1.0, 0.0)
    }

    /// e^x
    ///
    /// # Errors
    /// For integer tensors.
    pub fn exp(&self) -> Result<Var> {
        let y = self.tensor().exp()?;
        let saved = y.clone();
        Ok(unary("exp", self, y, move |g| g.mul(&saved)))
    }

    /// Natural logarithm.
    ///
    /// # Errors
    /// For integer tensors.
    pub fn log(&self) -> Result<Var> {
        let x = self.tensor().clone();
        Ok(unary("log", self, x.log()?, move |g| g.div(&x)))
    }

    /// Square root.
    ///
    /// # Errors
    /// For integer tensors.
    pub fn sqrt(&self) -> Result<Var> {
        let y = self.tensor().sqrt()?;
        let saved = y.clone();
        Ok(unary("sqrt", self, y, move |g| g.div(&saved)?.affine(0.5, 0.0)))
    }

    /// 1 / (1 + e^-x)
    ///
    /// # Errors
    /// For integer tensors.
    pub fn sigmoid(&self) -> Result<Var> {
        let y = self.tensor().sigmoid()?;
        let s = y.clone();
        Ok(unary("sigmoid", self, y, move |g| g.mul(&s)?.mul(&s.affine(-1.0, 1.0)?)))
    }

    /// x sigmoid(x)
    ///
    /// # Errors
    /// For integer tensors.
    pub fn silu(&self) -> Result<Var> {
        let x = self.tensor().clone();
        Ok(unary("silu", self, x.silu()?, move |g| {
            let s = x.sigmoid()?;
            // s (1 + x (1 - s))
            let slope = x.mul(&s.affine(-1.0, 1.0)?)?.affine(1.0, 1.0)?.mul(&s)?;
            g.mul(&slope)
        }))
    }

    /// Hyperbolic tangent.
    ///
    /// # Errors
    /// For integer tensors.
    pub fn tanh(&self) -> Result<Var> {
        let y = self.tensor().tanh()?;
        let t = y.clone();
        Ok(unary("tanh", self, y, move |g| g.mul(&t.sqr()?.affine(-1.0, 1.0)?)))
    }

    /// ln(1 + e^x)
    ///
    /// # Errors
    /// For integer tensors.
    pub fn softplus(&self) -> Result<Var> {
        let x = self.tensor().clone();
        Ok(unary("softplus", self, x.softplus()?, move |g| g.mul(&x.sigmoid()?)))
    }

    /// max(x, 0)
    ///
    /// # Errors
    /// For integer tensors.
    pub fn relu(&self) -> Result<Var> {
        let x = self.tensor().clone();
        let y = x.relu()?;
        Ok(unary("relu", self, y, move |g| {
            let zero = Tensor::zeros(&[], x.dtype(), &x.device())?;
            g.where_(&x.gt(0.0)?, &zero)
        }))
    }

    /// x limited to [lo, hi]; the gradient is zero outside.
    ///
    /// # Errors
    /// For integer tensors.
    pub fn clamp(&self, lo: f64, hi: f64) -> Result<Var> {
        let x = self.tensor().clone();
        let y = x.clamp(lo, hi)?;
        Ok(unary("clamp", self, y, move |g| {
            let zero = Tensor::zeros(&[], x.dtype(), &x.device())?;
            g.where_(&x.ge(lo)?, &zero)?.where_(&x.neg()?.ge(-hi)?, &zero)
        }))
    }

    /// Converts to another dtype; the gradient converts back.
    ///
    /// # Errors
    /// When a tracked value would become an integer.
    pub fn to_dtype(&self, dtype: DType) -> Result<Var> {
        let from = self.dtype();
        if from == dtype {
            return Ok(self.clone());
        }
        if !dtype.is_float() {
            Var::refuse_tracked("to_dtype to an integer", &[self])?;
        }
        Ok(unary("to_dtype", self, self.tensor().to_dtype(dtype)?, move |g| g.to_dtype(from)))
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&self, dims: &[usize]) -> Result<Var> {
        let from = self.dims().to_vec();
        let y = unary("reshape", self, self.tensor().reshape(dims)?, move |g| g.reshape(&from));
        Ok(Var { recipe: self.recipe.clone().filter(|_| y.is_tracked()), ..y })
    }

    /// Swaps two dimensions.
    ///
    /// # Errors
    /// When one does not exist.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Var> {
        Ok(unary("transpose", self, self.tensor().transpose(a, b)?, move |g| g.transpose(a, b)))
    }

    /// Reorders the dimensions.
    ///
    /// # Errors
    /// When `axes` is not a permutation.
    pub fn permute(&self, axes: &[usize]) -> Result<Var> {
        let y = self.tensor().permute(axes)?;
        let mut inverse = vec![0; axes.len()];
        axes.iter().enumerate().for_each(|(i, &a)| inverse[a] = i);
        Ok(unary("permute", self, y, move |g| g.permute(&inverse)))
    }

    /// Elements `start..start + len` along `dim`.
    ///
    /// # Errors
    /// When the range does not exist.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Var> {
        let total = *self.dims().get(dim).unwrap_or(&0);
        let mut parts = self.split(dim, &[start, len, total.saturating_sub(start.saturating_add(len))])?;
        Ok(parts.swap_remove(1))
    }

    /// Pieces of the given sizes along `dim`; their gradients are joined once.
    ///
    /// # Errors
    /// When the sizes do not add up to the dimension.
    pub fn split(&self, dim: usize, sizes: &[usize]) -> Result<Vec<Var>> {
        let parts = self.tensor().split(dim, sizes)?;
        Ok(Var::from_op("split", &[self], parts, || -> Box<dyn Backward> {
            Box::new(move |ctx: &mut super::BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
                let parts = (0..g.len()).map(|i| ctx.or_zeros(i, &mut g)).collect::<Result<Vec<_>>>()?;
                Ok(vec![Some(Tensor::cat(&parts.iter().collect::<Vec<_>>(), dim)?)])
            })
        }))
    }

    /// Joins variables along `dim`.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn cat(parts: &[&Var], dim: usize) -> Result<Var> {
        let y = Tensor::cat(&parts.iter().map(|v| v.tensor()).collect::<Vec<_>>(), dim)?;
        let sizes: Vec<usize> = parts.iter().map(|v| v.dim(dim)).collect();
        Ok(Var::from_op1("cat", parts, y, || -> Box<dyn Backward> {
            Box::new(move |_: &mut super::BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| match g[0].take() {
                Some(g) => Ok(g.split(dim, &sizes)?.into_iter().map(Some).collect()),
                None => Ok(vec![None; sizes.len()]),
            })
        }))
    }

    /// Repeats dimensions of size 1 up to `dims`.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn expand(&self, dims: &[usize]) -> Result<Var> {
        let from = self.dims().to_vec();
        Ok(unary("expand", self, self.tensor().expand(dims)?, move |g| unbroadcast(g, &from)))
    }

    /// Sum over `dims`.
    ///
    /// # Errors
    /// When a dimension does not exist.
    pub fn sum(&self, dims: &[usize], keep: bool) -> Result<Var> {
        let from = self.dims().to_vec();
        let kept: Vec<usize> =
            from.iter().enumerate().map(|(i, &d)| if dims.contains(&i) { 1 } else { d }).collect();
        let y = self.tensor().sum(dims, keep)?;
        Ok(unary("sum", self, y, move |g| g.reshape(&kept)?.expand(&from)))
    }

    /// Sum of all elements.
    ///
    /// # Errors
    /// For integer tensors.
    pub fn sum_all(&self) -> Result<Var> {
        self.sum(&(0..self.dims().len()).collect::<Vec<_>>(), false)
    }

    /// Mean over `dims`.
    ///
    /// # Errors
    /// When a dimension does not exist.
    pub fn mean(&self, dims: &[usize], keep: bool) -> Result<Var> {
        let n: usize = dims.iter().map(|&d| self.dims().get(d).copied().unwrap_or(1)).product();
        self.sum(dims, keep)?.affine(1.0 / n as f64, 0.0)
    }

    /// Matrix product over the last two dimensions; leading dimensions broadcast.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn matmul(&self, rhs: &Var) -> Result<Var> {
        let (a, b) = (self.tensor().clone(), rhs.tensor().clone());
        let y = a.matmul(&b)?;
        let rb = b.rank();
        let t = |x: &Tensor| x.transpose(x.rank() - 2, x.rank() - 1);
        Ok(binary(
            "matmul",
            self,
            rhs,
            y,
            move |g| g.matmul(&t(&b)?),
            move |g| {
                let (ra, rg) = (a.rank(), g.rank());
                if rb == 2 && ra > 2 {
                    // One matrix against a batch: the sum over the batch is one tall product.
                    let (k, n) = (a.dim(ra - 1), g.dim(rg - 1));
                    let rows = a.numel() / k.max(1);
                    return t(&a.reshape(&[rows, k])?)?.matmul(&g.reshape(&[rows, n])?);
                }
                t(&a)?.matmul(g)
            },
        ))
    }

    /// `self` [.., in] times `weight` [out, in] transposed: a linear layer without bias.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn linear(&self, weight: &Var) -> Result<Var> {
        let mut y = self.linear_many(&[weight])?;
        Ok(y.swap_remove(0))
    }

    /// Several linear layers of one input; see [`Tensor::linear_many`].
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn linear_many(&self, weights: &[&Var]) -> Result<Vec<Var>> {
        let arrays: Vec<&Tensor> = weights.iter().map(|w| w.tensor()).collect();
        let outputs = self.tensor().linear_many(&arrays)?;
        let inputs: Vec<&Var> = std::iter::once(self).chain(weights.iter().copied()).collect();
        Ok(Var::from_op("linear", &inputs, outputs, || -> Box<dyn Backward> {
            let (x, ws) = (self.saved(), arrays.into_iter().cloned().collect::<Vec<_>>());
            Box::new(move |ctx: &mut super::BackwardCtx<'_>, g: Vec<Option<Tensor>>| {
                linear_back(ctx, &x, &ws, g)
            })
        }))
    }

    /// Rows `index` (i64 or i32) of dimension 0: an embedding lookup.
    ///
    /// # Errors
    /// When an index is out of range.
    pub fn index_select(&self, index: &Tensor) -> Result<Var> {
        let y = self.tensor().index_select(index)?;
        let (rows, index) = (self.dim(0), index.clone());
        let dtype = self.dtype();
        Ok(unary("index_select", self, y, move |g| {
            // Leaf gradients of half precision stay in f32 until they are summed.
            let sum = g.index_add(&index, rows)?;
            if dtype.is_half() { Ok(sum) } else { sum.to_dtype(dtype) }
        }))
    }

    /// Rows of `self` (dimension 0 .. rank of `index`) summed into a tensor of `rows` rows: scatter, the reverse of
    /// [`Var::index_select`].
    ///
    /// # Errors
    /// When an index is out of range.
    pub fn index_add(&self, index: &Tensor, rows: usize) -> Result<Var> {
        let y = self.tensor().index_add(index, rows)?.to_dtype(self.dtype())?;
        let index = index.clone();
        Ok(unary("index_add", self, y, move |g| g.index_select(&index)))
    }
}

impl Tensor {
    /// 1 where x > bound, as u8.
    ///
    /// # Errors
    /// For integer tensors on a GPU.
    pub fn gt(&self, bound: f64) -> Result<Tensor> {
        if self.device() != Device::Cpu {
            return cuda::compare("gt", self, bound, false);
        }
        self.compare(|x| x > bound)
    }

    /// 1 where x >= bound, as u8.
    ///
    /// # Errors
    /// For integer tensors on a GPU.
    pub fn ge(&self, bound: f64) -> Result<Tensor> {
        if self.device() != Device::Cpu {
            return cuda::compare("ge", self, bound, true);
        }
        self.compare(|x| x >= bound)
    }

    fn compare(&self, f: impl Fn(f64) -> bool) -> Result<Tensor> {
        let bits = self.to_f64_vec()?.into_iter().map(|x| f(x) as u8).collect();
        Tensor::from_vec(bits, self.dims())
    }
}

/// The reverse of linear maps of one input: its gradient is summed over the maps; those of weights stay in f32, as they are accumulated.
fn linear_back(
    ctx: &super::BackwardCtx<'_>,
    x: &super::Saved,
    weights: &[Tensor],
    grads: Vec<Option<Tensor>>,
) -> Result<Vec<Option<Tensor>>> {
    let width = x.dims().last().copied().unwrap_or(0);
    let rows = x.dims().iter().product::<usize>() / width.max(1);
    let mut out = vec![None; weights.len() + 1];
    let flows = |i: &usize| grads[*i].is_some() && ctx.needs(i + 1);
    let value = match (0..weights.len()).any(|i| flows(&i)) {
        true => Some(x.get()?.reshape(&[rows, width])?),
        false => None,
    };
    let mut parts = Vec::new();
    for (i, (g, w)) in grads.into_iter().zip(weights).enumerate() {
        let Some(g) = g else { continue };
        let g = g.reshape(&[rows, w.dim(0)])?;
        if ctx.needs(0) {
            parts.push(g.matmul(w)?);
        }
        if let (Some(x), true) = (&value, ctx.needs(i + 1)) {
            out[i + 1] = Some(g.transpose(0, 1)?.matmul_to(x, w.dtype().accumulator())?);
        }
    }
    drop(value);
    if let Some(first) = parts.first() {
        let dtype = first.dtype();
        out[0] = super::backward::sum_of(parts, dtype)?.map(|dx| dx.reshape(x.dims())).transpose()?;
    }
    Ok(out)
}
