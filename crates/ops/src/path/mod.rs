#![doc = include_str!("README.md")]

mod chunks;
pub(crate) mod conform;
pub mod reference;
#[cfg(test)]
mod tests;

use flashlin_tensor::{DType, Error, Result, Tensor, Var, no_grad};

use crate::{OpInfo, PackedSeqs};

const OP: &str = "path_attn";

/// Registry entry of [`path_attn`].
pub static PATH_ATTN: OpInfo = OpInfo {
    name: OP,
    family: "softmax",
    summary: "softmax(scale (q_i^T H_i .. H_{j+1} k_j + g_{j+1} + .. + g_i)) v with H_s = I - beta_s w_s w_s^T",
    source: "arXiv:2505.16381",
    modes: &[],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["q", "k", "v", "w", "beta", "g"],
};

/// Arguments of [`path_attn`]; shapes in the module's table.
#[derive(Clone, Copy, Debug)]
pub struct PathArgs<'a> {
    /// Queries `[B, T, HQ, D]`.
    pub q: &'a Var,
    /// Keys `[B, T, H, D]`.
    pub k: &'a Var,
    /// Values `[B, T, H, V]`.
    pub v: &'a Var,
    /// Directions `[B, T, H, D]`.
    pub w: &'a Var,
    /// Strengths `[B, T, H]`.
    pub beta: &'a Var,
    /// Log forget gates `[B, T, HQ]`. Default: none.
    pub g: Option<&'a Var>,
    /// Factor on the scores. Default: `D^-0.5`.
    pub scale: Option<f64>,
    /// What came before. Default: nothing.
    pub past: Option<&'a PathCache>,
    /// Return the cache after the last token. Default: false.
    pub output_cache: bool,
    /// Packed sequences (B must be 1). Default: B sequences of T.
    pub seqs: Option<&'a PackedSeqs>,
    /// Most tokens of a chunk, a power of two. Default: 64.
    pub chunk_size: usize,
}

impl<'a> PathArgs<'a> {
    /// A call with every option at its default.
    pub fn new(q: &'a Var, k: &'a Var, v: &'a Var, w: &'a Var, beta: &'a Var) -> Self {
        PathArgs {
            q,
            k,
            v,
            w,
            beta,
            g: None,
            scale: None,
            past: None,
            output_cache: false,
            seqs: None,
            chunk_size: 64,
        }
    }
}

/// Keys and values of N sequences; a row's first `lens[n]` entries count.
#[derive(Clone, Debug)]
pub struct PathCache {
    /// Keys, transformed up to the last token, `[N, capacity, H, D]`, f32 (f64 for f64 inputs).
    pub k: Tensor,
    /// Values `[N, capacity, H, V]`.
    pub v: Tensor,
    /// Sums of the gates after each token `[N, capacity, HQ]`, f32 (f64); without gates HQ is 0.
    pub decay: Tensor,
    /// Entries of each sequence.
    pub lens: Vec<usize>,
}

/// What [`path_attn`] returns.
#[derive(Clone, Debug)]
pub struct PathOutput {
    /// `[B, T, HQ, V]` in the dtype of v.
    pub o: Var,
    /// Where it was asked for.
    pub cache: Option<PathCache>,
}

/// Sequences of equal length with equally long pasts, heads repeated, in the accumulator's dtype.
struct Group {
    /// `[b, T, HQ, D]`, scaled.
    q: Var,
    /// `[b, T, HQ, D]`
    k: Var,
    v: Var,
    w: Var,
    /// `[b, T, HQ, 1]`
    beta: Var,
    g: Option<Var>,
    past: Option<Past>,
}

/// `[b, P, HQ, ..]`
struct Past {
    k: Var,
    v: Var,
    decay: Option<Var>,
}

/// PaTH attention.
///
/// # Errors
/// When a shape, dtype or option does not fit.
pub fn path_attn(a: &PathArgs<'_>) -> Result<PathOutput> {
    let [b, t, hq, d] = a.q.tensor().dims_n::<4>(OP, "q")?;
    let packed = PackedSeqs::resolve(OP, a.seqs, b, t)?;
    check(a, &packed, [b, t, hq, d])?;
    let dtype = a.v.dtype().accumulator();
    let scale = a.scale.unwrap_or((d as f64).powf(-0.5));
    let heads = |x: &Var| crate::composed::repeat_heads(&x.to_dtype(dtype)?, hq);
    let column = |x: &Var| x.reshape(&[x.dim(0), x.dim(1), x.dim(2), 1]);
    // The scale goes into queries and gates once.
    let all = Group {
        q: a.q.to_dtype(dtype)?.affine(scale, 0.0)?,
        k: heads(a.k)?,
        v: heads(a.v)?,
        w: heads(a.w)?,
        beta: heads(&column(a.beta)?)?,
        g: a.g.map(|g| column(&g.to_dtype(dtype)?)?.affine(scale, 0.0)).transpose()?,
        past: None,
    };
    let lens = a.past.map_or_else(|| vec![0; packed.len()], |p| p.lens.clone());
    let past = |from: usize, n: usize, len: usize| -> Result<Option<Past>> {
        let Some(cache) = a.past.filter(|_| len > 0) else { return Ok(None) };
        let cut = |x: &Tensor| -> Result<Var> { Ok(Var::constant(x.narrow(0, from, n)?.narrow(1, 0, len)?)) };
        let decay = || column(&cut(&cache.decay)?)?.affine(scale, 0.0);
        Ok(Some(Past {
            k: heads(&cut(&cache.k)?)?,
            v: heads(&cut(&cache.v)?)?,
            decay: a.g.map(|_| decay()).transpose()?,
        }))
    };
    let alike = a.seqs.is_none() && lens.windows(2).all(|w| w[0] == w[1]) && !lens.is_empty();
    let mut o = Vec::new();
    if alike {
        o.push(chunks::run(&Group { past: past(0, b, lens[0])?, ..all }, a.chunk_size)?);
    } else {
        for (row, range) in packed.ranges().enumerate() {
            let group = Group { past: past(row, 1, lens[row])?, ..all.cut(range)? };
            o.push(chunks::run(&group, a.chunk_size)?);
        }
    }
    let o = match o.len() {
        0 => Tensor::zeros(&[b, t, hq, a.v.dim(3)], dtype, &a.v.device())?.into(),
        _ => Var::cat(&o.iter().collect::<Vec<_>>(), if a.seqs.is_some() { 1 } else { 0 })?,
    };
    let cache = if a.output_cache { Some(no_grad(|| cache(a, &packed, &lens))?) } else { None };
    Ok(PathOutput { o: o.to_dtype(a.v.dtype())?, cache })
}

impl Group {
    /// The tokens `range` of the flattened batch as one sequence.
    fn cut(&self, range: std::ops::Range<usize>) -> Result<Group> {
        let one = |x: &Var| {
            let [b, t, h, d] = x.tensor().dims_n::<4>(OP, "x")?;
            x.reshape(&[1, b * t, h, d])?.narrow(1, range.start, range.len())
        };
        Ok(Group {
            q: one(&self.q)?,
            k: one(&self.k)?,
            v: one(&self.v)?,
            w: one(&self.w)?,
            beta: one(&self.beta)?,
            g: self.g.as_ref().map(one).transpose()?,
            past: None,
        })
    }
}

/// The cache after the last token: for each sequence what it held and its new tokens, keys taken to the end.
fn cache(a: &PathArgs<'_>, packed: &PackedSeqs, lens: &[usize]) -> Result<PathCache> {
    let (hq, dtype) = (a.q.dim(2), a.v.dtype().accumulator());
    let total: Vec<usize> = packed.ranges().zip(lens).map(|(r, l)| r.len() + l).collect();
    let capacity = total.iter().copied().max().unwrap_or(0);
    let flat = |x: &Var, range: &std::ops::Range<usize>| -> Result<Tensor> {
        let rest: Vec<usize> = x.dims()[2..].to_vec();
        let dims: Vec<usize> = [1, packed.total()].into_iter().chain(rest).collect();
        x.tensor().reshape(&dims)?.narrow(1, range.start, range.len())
    };
    let filled = |x: Tensor| -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        dims[1] = capacity - dims[1];
        Tensor::cat(&[&x, &Tensor::zeros(&dims, x.dtype(), &x.device())?], 1)
    };
    let (mut keys, mut values, mut decays) = (Vec::new(), Vec::new(), Vec::new());
    for (row, range) in packed.ranges().enumerate() {
        let old = |x: &Tensor| x.narrow(0, row, 1)?.narrow(1, 0, lens[row]);
        let cast = |x: &Var| flat(x, &range)?.to_dtype(dtype);
        let (mut k, mut v) = (cast(a.k)?, flat(a.v, &range)?);
        let (w, beta) = (Var::constant(cast(a.w)?), Var::constant(cast(a.beta)?));
        let past = a.past.map(|p| old(&p.k)).transpose()?;
        k = chunks::advanced(past, k, &w, &beta, a.chunk_size)?;
        if let Some(p) = a.past {
            v = Tensor::cat(&[&old(&p.v)?, &v], 1)?;
        }
        let decay = match a.g {
            None => Tensor::zeros(&[1, total[row], 0], dtype, &a.v.device())?,
            Some(g) => {
                let (after, whole) = chunks::sums_after(&cast(g)?)?;
                let parts = match a.past {
                    Some(p) => vec![old(&p.decay)?.add(&whole)?, after],
                    None => vec![after],
                };
                Tensor::cat(&parts.iter().collect::<Vec<_>>(), 1)?
            }
        };
        debug_assert!(a.g.is_none() || decay.dim(2) == hq);
        keys.push(filled(k)?);
        values.push(filled(v)?);
        decays.push(filled(decay)?);
    }
    let joined = |x: &[Tensor], like: &[usize], dtype: DType| match x.len() {
        0 => Tensor::zeros(like, dtype, &a.v.device()),
        _ => Tensor::cat(&x.iter().collect::<Vec<_>>(), 0),
    };
    let h = a.k.dim(2);
    Ok(PathCache {
        k: joined(&keys, &[0, 0, h, a.k.dim(3)], dtype)?,
        v: joined(&values, &[0, 0, h, a.v.dim(3)], a.v.dtype())?,
        decay: joined(&decays, &[0, 0, a.g.map_or(0, |_| hq)], dtype)?,
        lens: total,
    })
}

fn check(a: &PathArgs<'_>, packed: &PackedSeqs, [b, t, hq, d]: [usize; 4]) -> Result<()> {
    let [_, _, h, _] = a.k.tensor().dims_n::<4>(OP, "k")?;
    let [_, _, _, dv] = a.v.tensor().dims_n::<4>(OP, "v")?;
    if h == 0 || hq % h != 0 {
        return Err(Error::shape(OP, "q", a.q.dims(), format!("[B, T, HQ, D], HQ a multiple of {h}")));
    }
    for (arg, x, want) in [
        ("k", Some(a.k), vec![b, t, h, d]),
        ("v", Some(a.v), vec![b, t, h, dv]),
        ("w", Some(a.w), vec![b, t, h, d]),
        ("beta", Some(a.beta), vec![b, t, h]),
        ("g", a.g, vec![b, t, hq]),
    ] {
        let Some(x) = x else { continue };
        if x.dims() != want {
            return Err(Error::shape(OP, arg, x.dims(), format!("{want:?}")));
        }
        if !x.dtype().is_float() {
            return Err(Error::dtype(OP, arg, x.dtype(), "a float dtype"));
        }
    }
    if !a.chunk_size.is_power_of_two() {
        let why = format!("is {}, expected a power of two", a.chunk_size);
        return Err(Error::invalid(OP, "chunk_size", why));
    }
    let Some(p) = a.past else { return Ok(()) };
    let (n, capacity) = (packed.len(), p.k.dims().get(1).copied().unwrap_or(0));
    let gates = if a.g.is_some() { hq } else { 0 };
    for (arg, x, want, dtype) in [
        ("past.k", &p.k, vec![n, capacity, h, d], a.v.dtype().accumulator()),
        ("past.v", &p.v, vec![n, capacity, h, dv], a.v.dtype()),
        ("past.decay", &p.decay, vec![n, capacity, gates], a.v.dtype().accumulator()),
    ] {
        if x.dims() != want {
            return Err(Error::shape(OP, arg, x.dims(), format!("{want:?}")));
        }
        if x.dtype() != dtype {
            return Err(Error::dtype(OP, arg, x.dtype(), dtype.to_string()));
        }
    }
    match p.lens.len() == n && p.lens.iter().all(|&l| l <= capacity) {
        true => Ok(()),
        false => Err(Error::invalid(
            OP,
            "past.lens",
            format!("are {:?}, expected {n} of at most {capacity}", p.lens),
        )),
    }
}
