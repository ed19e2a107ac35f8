#![doc = include_str!("README.md")]

pub(crate) mod conform;
#[cfg(test)]
mod tests;

use flashlin_tensor::{DType, Error, Result, Tensor, Var, cuda::kept};

use crate::OpInfo;

/// Registry entry of the feature maps.
pub static FEATURE_MAP: OpInfo = OpInfo {
    name: "feature_map",
    family: "maps",
    summary: "softmax, elu + 1, hedgehog, dpfp, Taylor (Based) and squared (ReBased) maps of the last dimension",
    source: "arXiv:2402.04347, arXiv:2102.11174, arXiv:2402.18668, arXiv:2402.10644",
    modes: &[],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["x"],
};

/// Copies of the features that [`dpfp`] makes unless told otherwise.
pub const DPFP_NU: usize = 4;

/// Runs `f` on `x` in the accumulator type and gives the dtype of `x` back.
fn wide(op: &'static str, x: &Var, f: impl FnOnce(&Var) -> Result<Var>) -> Result<Var> {
    match (x.dtype().is_float(), x.dims().last()) {
        (false, _) => Err(Error::dtype(op, "x", x.dtype(), "a float type")),
        (_, None | Some(0)) => Err(Error::shape(op, "x", x.dims(), "a last dimension that is not empty")),
        _ => f(&x.to_dtype(x.dtype().accumulator())?)?.to_dtype(x.dtype()),
    }
}

/// `e^x / sum e^x` over the last dimension.
///
/// # Errors
/// When `x` is no float tensor or its last dimension is empty.
pub fn softmax(x: &Var) -> Result<Var> {
    wide("softmax", x, |x| {
        let last = x.dims().len() - 1;
        // The largest cancels: a constant is enough, in the gradient too.
        let (most, _) = x.tensor().max_last()?;
        let e = x.sub(&Var::constant(most.unsqueeze(last)?))?.exp()?;
        e.div(&e.sum(&[last], true)?)
    })
}

/// `elu(x) + 1 = max(x, 0) + e^min(x, 0)`
///
/// # Errors
/// When `x` is no float tensor.
pub fn elu_plus_one(x: &Var) -> Result<Var> {
    wide("elu_plus_one", x, |x| x.relu()?.add(&x.neg()?.relu()?.neg()?.exp()?))
}

/// `softmax([2x, -2x])`
///
/// # Errors
/// As [`softmax`].
pub fn hedgehog(x: &Var) -> Result<Var> {
    let (y, last) = (x.affine(2.0, 0.0)?, x.dims().len().saturating_sub(1));
    softmax(&Var::cat(&[&y, &y.neg()?], last)?)
}

/// `y * roll(y, j)` for j in `1..=nu`, joined, of `y = [relu x, -relu x]`.
///
/// # Errors
/// When `x` is no float tensor or its last dimension is empty.
pub fn dpfp(x: &Var, nu: usize) -> Result<Var> {
    wide("dpfp", x, |x| {
        let last = x.dims().len() - 1;
        let y = x.relu()?;
        let y = Var::cat(&[&y, &y.neg()?], last)?;
        let n = y.dim(last);
        let rolled = |j: usize| {
            let parts = y.split(last, &[n - j % n, j % n])?;
            y.mul(&Var::cat(&[&parts[1], &parts[0]], last)?)
        };
        let all = (1..=nu).map(rolled).collect::<Result<Vec<_>>>()?;
        Var::cat(&all.iter().collect::<Vec<_>>(), last)
    })
}

/// Second-order Taylor features: their inner product is `1 + s + s^2 / 2` with `s = q . k / sqrt(D)`.
///
/// # Errors
/// When `x` is no float tensor or its last dimension is empty.
pub fn taylor(x: &Var) -> Result<Var> {
    wide("taylor", x, |x| {
        let last = x.dims().len() - 1;
        let d = x.dim(last) as f64;
        let mut one = x.dims().to_vec();
        one[last] = 1;
        let one = Var::constant(Tensor::ones(&one, x.dtype(), &x.device())?);
        let squares = x.mul(x)?.affine((2.0 * d).sqrt().recip(), 0.0)?;
        let parts = [one, x.affine(d.powf(-0.25), 0.0)?, squares, pairs(x)?.affine(d.sqrt().recip(), 0.0)?];
        Var::cat(&parts.each_ref(), last)
    })
}

/// Squared features: their inner product is `(q . k)^2 / D`.
///
/// # Errors
/// When `x` is no float tensor or its last dimension is empty.
pub fn rebased(x: &Var) -> Result<Var> {
    wide("rebased", x, |x| {
        let last = x.dims().len() - 1;
        let d = x.dim(last) as f64;
        let squares = x.mul(x)?.affine(d.sqrt().recip(), 0.0)?;
        Var::cat(&[&squares, &pairs(x)?.affine((2.0 / d).sqrt(), 0.0)?], last)
    })
}

/// `x_i x_j` for i < j, by products with matrices that pick one channel each (exact, and the same on every device).
fn pairs(x: &Var) -> Result<Var> {
    let n = x.dims().last().copied().unwrap_or(0);
    let rows = x.reshape(&[x.tensor().numel() / n.max(1), n])?;
    let mut dims = x.dims().to_vec();
    let picked: Vec<(usize, usize)> = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).collect();
    let pick = |of: fn(&(usize, usize)) -> usize| {
        let mut matrix = vec![0f32; n * picked.len()];
        picked.iter().enumerate().for_each(|(c, pair)| matrix[of(pair) * picked.len() + c] = 1.0);
        let matrix = Tensor::from_vec(matrix, &[n, picked.len()])?.to_dtype(x.dtype())?;
        rows.matmul(&Var::constant(kept(&matrix, &x.device())?))
    };
    let products = pick(|p| p.0)?.mul(&pick(|p| p.1)?)?;
    dims[x.dims().len() - 1] = picked.len();
    products.reshape(&dims)
}
