#![doc = include_str!("README.md")]

pub(crate) mod conform;
#[cfg(test)]
mod tests;

use flashlin_tensor::{DType, Error, Result, Tensor, Var, cuda};

use crate::{OpInfo, PackedSeqs};

const POINTWISE: OpInfo = OpInfo {
    name: "token_shift",
    family: "rwkv",
    summary: "the token before, within each sequence",
    source: "arXiv:2404.05892",
    modes: &[],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["x", "last"],
};

/// Registry entry of [`token_shift`].
pub static TOKEN_SHIFT: OpInfo = POINTWISE;

/// Registry entry of [`mix`], [`key_update`] and [`output_correction`].
pub static RWKV7_POINTWISE: OpInfo = OpInfo {
    name: "rwkv7_pointwise",
    summary: "x + (p - x) mu; k (1 + (a - 1) k_a); (o + (r . k r_k) v) g",
    source: "arXiv:2503.14456",
    grads: &["x", "previous", "mu", "k", "a", "k_a", "o", "r", "r_k", "v", "g"],
    ..POINTWISE
};

/// What [`token_shift`] returns.
#[derive(Clone, Debug)]
pub struct Shifted {
    /// For each token the one before, `[B, T, D]`.
    pub previous: Var,
    /// The last token of each sequence `[N, D]`; what it was before where a sequence is empty.
    pub last: Var,
}

/// The token before each token of `x` `[B, T, D]`. Before a sequence's first token stands its row of `last` `[N, D]`, or zero.
///
/// # Errors
/// When boundaries or `last` do not fit `x`.
pub fn token_shift(x: &Var, seqs: Option<&PackedSeqs>, last: Option<&Var>) -> Result<Shifted> {
    const OP: &str = "token_shift";
    let [b, t, d] = x.tensor().dims_n::<3>(OP, "x")?;
    let packed = PackedSeqs::resolve(OP, seqs, b, t)?;
    let n = packed.len();
    let last = match last {
        Some(last) if last.dims() != [n, d] => {
            return Err(Error::shape(OP, "last", last.dims(), format!("[{n}, {d}]")));
        }
        Some(last) => last.to_dtype(x.dtype())?,
        None => Tensor::zeros(&[n, d], x.dtype(), &x.device())?.into(),
    };
    if packed.total() == 0 {
        return Ok(Shifted { previous: x.clone(), last });
    }
    if seqs.is_none() {
        let first = last.reshape(&[b, 1, d])?;
        let previous = Var::cat(&[&first, &x.narrow(1, 0, t - 1)?], 1)?;
        return Ok(Shifted { previous, last: x.narrow(1, t - 1, 1)?.reshape(&[b, d])? });
    }
    // Tokens, then what stands before each sequence.
    let table = Var::cat(&[&x.reshape(&[t, d])?, &last], 0)?;
    let rows = |index: Vec<i64>| -> Result<Var> {
        let count = index.len();
        table.index_select(&cuda::kept(&Tensor::from_vec(index, &[count])?, &x.device())?)
    };
    let before = |(row, r): (usize, std::ops::Range<usize>)| {
        r.clone().map(move |i| if i == r.start { (t + row) as i64 } else { i as i64 - 1 })
    };
    let after = |(row, r): (usize, std::ops::Range<usize>)| {
        if r.is_empty() { (t + row) as i64 } else { r.end as i64 - 1 }
    };
    let previous = rows(packed.ranges().enumerate().flat_map(before).collect())?.reshape(&[b, t, d])?;
    Ok(Shifted { previous, last: rows(packed.ranges().enumerate().map(after).collect())? })
}

/// `x + (previous - x) mu` for each mu `[D]` (or anything that broadcasts against `[B, T, D]`).
///
/// # Errors
/// When shapes do not fit.
pub fn mix<const N: usize>(x: &Var, previous: &Var, mu: [&Var; N]) -> Result<[Var; N]> {
    let (dtype, wide) = (x.dtype(), x.dtype().accumulator());
    let x = x.to_dtype(wide)?;
    let delta = previous.to_dtype(wide)?.sub(&x)?;
    let all = mu.iter().map(|mu| x.add(&delta.mul(&mu.to_dtype(wide)?)?)?.to_dtype(dtype));
    let all = all.collect::<Result<Vec<_>>>()?;
    all.try_into().map_err(|_| Error::invalid("mix", "mu", "gave another number of outputs"))
}

/// `k (1 + (a - 1) k_a)`: RWKV-7's replacement key, from k and a `[B, T, D]` and k_a `[D]`.
///
/// # Errors
/// When shapes do not fit.
pub fn key_update(k: &Var, a: &Var, k_a: &Var) -> Result<Var> {
    let (dtype, wide) = (k.dtype(), k.dtype().accumulator());
    let (k, a) = (k.to_dtype(wide)?, a.to_dtype(wide)?);
    k.add(&k.mul(&a.affine(1.0, -1.0)?)?.mul(&k_a.to_dtype(wide)?)?)?.to_dtype(dtype)
}

/// What [`output_correction`] reads.
#[derive(Clone, Copy, Debug)]
pub struct Correction<'a> {
    /// Normed outputs `[B, T, H V]`.
    pub o: &'a Var,
    /// Receptance `[B, T, H, K]`.
    pub r: &'a Var,
    /// Keys `[B, T, H, K]`.
    pub k: &'a Var,
    /// Weights `[H, K]`.
    pub r_k: &'a Var,
    /// Values `[B, T, H, V]`.
    pub v: &'a Var,
    /// Gate `[B, T, H V]`.
    pub g: &'a Var,
}

/// `(o + (sum_c r_c k_c r_k,c) v) g`: a token's own value, then the output gate.
///
/// # Errors
/// When shapes do not fit.
pub fn output_correction(x: &Correction<'_>) -> Result<Var> {
    let wide = x.o.dtype().accumulator();
    let cast = |x: &Var| x.to_dtype(wide);
    let own = cast(x.r)?.mul(&cast(x.k)?)?.mul(&cast(x.r_k)?)?.sum(&[3], true)?;
    let own = own.mul(&cast(x.v)?)?.reshape(x.o.dims())?;
    cast(x.o)?.add(&own)?.mul(&cast(x.g)?)?.to_dtype(x.o.dtype())
}
