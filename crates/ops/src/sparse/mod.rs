#![doc = include_str!("README.md")]

pub(crate) mod conform;
pub mod reference;
mod select;
#[cfg(test)]
mod tests;

use std::ops::Range;

use flashlin_tensor::{DType, Error, Result, Tensor, Var, checkpoint, cuda};
pub use select::{NsaStats, QueryBlock};
use select::{Selection, chosen};

use crate::softmax::{AttentionArgs, attention};
use crate::{OpInfo, PackedSeqs};

const OP: &str = "nsa";
/// Queries that are looked at together.
const QUERIES: usize = 256;
/// Added to hidden scores.
const HIDDEN: f64 = -1e30;

/// Registry entry of [`nsa`].
pub static NSA: OpInfo = OpInfo {
    name: OP,
    family: "sparse",
    summary: "gated sum of attention over block means, over selected blocks and over a window",
    source: "arXiv:2502.11089",
    modes: &[],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["q", "k", "v", "g_cmp", "g_slc", "g_swa"],
};

/// Arguments of [`nsa`]; shapes in the module's table.
#[derive(Clone, Copy, Debug)]
pub struct NsaArgs<'a> {
    /// Queries `[B, T, HQ, D]`.
    pub q: &'a Var,
    /// Keys `[B, T, H, D]`; packed `[1, S, H, D]` with `kv_seqs`; padded rows `[N, cap, H, D]` with `kv_lens`.
    pub k: &'a Var,
    /// Values, as the keys.
    pub v: &'a Var,
    /// Gates `[B, T, HQ]` of the compressed, the selected and the window branch.
    pub gates: [&'a Var; 3],
    /// Tokens of a block.
    pub block_size: usize,
    /// Blocks that a query selects.
    pub block_count: usize,
    /// Keys of the window branch, the own included. Default: none, no such branch.
    pub window: Option<usize>,
    /// Factor on the scores. Default: `D^-0.5`.
    pub scale: Option<f64>,
    /// Packed sequences of queries (B must be 1). Default: B sequences of T.
    pub seqs: Option<&'a PackedSeqs>,
    /// Keys of each sequence where there are more than queries (then `seqs` is set too). Default: as many.
    pub kv_seqs: Option<&'a PackedSeqs>,
    /// Keys of each sequence where they lie in padded rows (excludes `kv_seqs`). Default: none do.
    pub kv_lens: Option<&'a [usize]>,
    /// Count what was looked at. Default: false.
    pub stats: bool,
}

impl<'a> NsaArgs<'a> {
    /// A call with blocks of 64, 16 of them selected, and no window.
    pub fn new(q: &'a Var, k: &'a Var, v: &'a Var, gates: [&'a Var; 3]) -> Self {
        NsaArgs {
            q,
            k,
            v,
            gates,
            block_size: 64,
            block_count: 16,
            window: None,
            scale: None,
            seqs: None,
            kv_seqs: None,
            kv_lens: None,
            stats: false,
        }
    }
}

/// What [`nsa`] returns.
#[derive(Clone, Debug)]
pub struct NsaOutput {
    /// `[B, T, HQ, V]` in the dtype of v.
    pub o: Var,
    /// Where they were asked for.
    pub stats: Option<NsaStats>,
}

/// Native sparse attention.
///
/// # Errors
/// When a shape, dtype or option does not fit.
pub fn nsa(a: &NsaArgs<'_>) -> Result<NsaOutput> {
    let [b, t, hq, _] = a.q.tensor().dims_n::<4>(OP, "q")?;
    let [_, _, h, _] = a.k.tensor().dims_n::<4>(OP, "k")?;
    let queries = PackedSeqs::resolve(OP, a.seqs, b, t)?;
    let keys: Vec<Range<usize>> = match (a.kv_seqs, a.kv_lens) {
        (Some(k), _) => PackedSeqs::resolve(OP, Some(k), a.k.dim(0), a.k.dim(1))?.ranges().collect(),
        (None, Some(lens)) => {
            let row = |(n, &len): (usize, &usize)| n * a.k.dim(1)..n * a.k.dim(1) + len;
            lens.iter().enumerate().map(row).collect()
        }
        (None, None) => queries.ranges().collect(),
    };
    check(a, &queries, &keys, [b, t, hq, h])?;
    let dtype = a.v.dtype().accumulator();
    let flat = |x: &Var| -> Result<Var> {
        let dims: Vec<usize> =
            std::iter::once(x.dim(0) * x.dim(1)).chain(x.dims()[2..].iter().copied()).collect();
        x.to_dtype(dtype)?.reshape(&dims)
    };
    let (q, k, v) = (flat(a.q)?, flat(a.k)?, flat(a.v)?);
    let gates = [flat(a.gates[0])?, flat(a.gates[1])?];
    let mut stats = a.stats.then(NsaStats::default);
    let mut parts = Vec::new();
    for (range, kv) in queries.ranges().zip(keys.iter().cloned()).filter(|(r, _)| !r.is_empty()) {
        let one = Sequence::new(a, [&q, &k, &v], range.clone(), kv)?;
        for from in (0..range.len()).step_by(QUERIES) {
            let rows = from..(from + QUERIES).min(range.len());
            parts.push(one.block(&gates, range.start, rows, stats.as_mut())?);
        }
    }
    let o = match parts.is_empty() {
        true => Tensor::zeros(&[b * t, hq, a.v.dim(3)], dtype, &a.v.device())?.into(),
        false => Var::cat(&parts.iter().collect::<Vec<_>>(), 0)?,
    };
    let o = o.reshape(&[b, t, hq, a.v.dim(3)])?.to_dtype(a.v.dtype())?;
    let o = match a.window {
        Some(window) => o.add(&windowed(a, window, &queries)?)?,
        None => {
            // Without the branch its gate learns nothing.
            let gate = a.gates[2].to_dtype(o.dtype())?.affine(0.0, 0.0)?;
            o.add(&gate.reshape(&[b, t, hq, 1])?)?
        }
    };
    if let (Some(stats), Some(window)) = (&mut stats, a.window) {
        stats.add_window(window, hq);
    }
    Ok(NsaOutput { o, stats })
}

fn windowed(a: &NsaArgs<'_>, window: usize, queries: &PackedSeqs) -> Result<Var> {
    let [b, t, hq, d] = a.q.tensor().dims_n::<4>(OP, "q")?;
    // Packed keys want packed queries.
    let q = if a.kv_seqs.is_some() { a.q.reshape(&[1, b * t, hq, d])? } else { a.q.clone() };
    let o = attention(&AttentionArgs {
        window: Some(window),
        scale: a.scale,
        seqs: if a.kv_seqs.is_some() { Some(queries) } else { a.seqs },
        kv_seqs: a.kv_seqs,
        kv_lens: a.kv_lens,
        ..AttentionArgs::new(&q, a.k, a.v)
    })?
    .o;
    let gate = a.gates[2].to_dtype(o.dtype())?.reshape(&[b, t, hq, 1])?;
    o.reshape(&[b, t, hq, a.v.dim(3)])?.mul(&gate)
}

/// One sequence: heads first.
struct Sequence<'a> {
    args: &'a NsaArgs<'a>,
    /// `[H, G, T, D]`, scaled.
    q: Var,
    /// `[H, S, D]`
    k: Var,
    /// `[H, S, V]`
    v: Var,
    /// Means of complete blocks `[H, NB, ..]`.
    pooled: Option<[Var; 2]>,
    /// Keys before the first query.
    before: usize,
}

impl<'a> Sequence<'a> {
    fn new(a: &'a NsaArgs<'a>, [q, k, v]: [&Var; 3], range: Range<usize>, kv: Range<usize>) -> Result<Self> {
        let (hq, h, d) = (q.dim(1), k.dim(1), q.dim(2));
        let scale = a.scale.unwrap_or((d as f64).powf(-0.5));
        let q = q.narrow(0, range.start, range.len())?.affine(scale, 0.0)?;
        let q = q.reshape(&[range.len(), h, hq / h, d])?.permute(&[1, 2, 0, 3])?;
        let heads_first = |x: &Var| x.narrow(0, kv.start, kv.len())?.permute(&[1, 0, 2]);
        let (k, v) = (heads_first(k)?, heads_first(v)?);
        let blocks = kv.len() / a.block_size;
        let pool = |x: &Var| {
            let d = x.dim(2);
            let x = x.narrow(1, 0, blocks * a.block_size)?.reshape(&[h, blocks, a.block_size, d])?;
            x.mean(&[2], false)
        };
        let pooled = if blocks > 0 { Some([pool(&k)?, pool(&v)?]) } else { None };
        Ok(Sequence { args: a, q, k, v, pooled, before: kv.len() - range.len() })
    }

    /// Both branches of the queries `rows`, gated: `[n, HQ, V]`.
    fn block(
        &self,
        gates: &[Var; 2],
        first: usize,
        rows: Range<usize>,
        stats: Option<&mut NsaStats>,
    ) -> Result<Var> {
        let (h, g, n) = (self.q.dim(0), self.q.dim(1), rows.len());
        let q = self.q.narrow(2, rows.start, n)?;
        let gate = |x: &Var| {
            let x = x.narrow(0, first + rows.start, n)?.reshape(&[n, h, g, 1])?;
            x.permute(&[1, 2, 0, 3])
        };
        // Keys beyond the last query are hidden from all of them.
        let len = self.before + rows.end;
        let (k, v) = (self.k.narrow(1, 0, len)?, self.v.narrow(1, 0, len)?);
        let blocks = self.pooled.as_ref().map_or(0, |_| len / self.args.block_size);
        let at = self.before + rows.start;
        let compressed = match (&self.pooled, blocks) {
            (Some([k, v]), 1..) => Some([k.narrow(1, 0, blocks)?, v.narrow(1, 0, blocks)?]),
            _ => None,
        };
        let selection = Selection {
            at,
            rows: n,
            keys: len,
            block_size: self.args.block_size,
            block_count: self.args.block_count,
        };
        let probabilities = match &compressed {
            Some([k, _]) => {
                Some(flashlin_tensor::no_grad(|| visible(&q, k, &selection))?.tensor().mean(&[1], false)?)
            }
            None => None,
        };
        let taken = chosen(&selection, h, probabilities.as_ref())?;
        if let Some(stats) = stats {
            stats.add(&selection, &taken, g, [q.dim(3), v.dim(2)]);
        }
        let hidden = selection.hidden(&taken, h, &q)?;
        let mut inputs = vec![q, k, v, gate(&gates[0])?, gate(&gates[1])?];
        inputs.extend(compressed.into_iter().flatten());
        let body = move |x: &[Var]| -> Result<Vec<Var>> {
            let scores = scores(&x[0], &x[1])?.add(&hidden)?;
            let o = read(&softmax(&scores)?, &x[2])?.mul(&x[4])?;
            let o = match x.get(5..7) {
                Some([k, v]) => o.add(&read(&visible(&x[0], k, &selection)?, v)?.mul(&x[3])?)?,
                // Nothing to see yet: the gate learns nothing.
                _ => o.add(&x[3].affine(0.0, 0.0)?)?,
            };
            Ok(vec![o])
        };
        let o = checkpoint(body, &inputs.iter().collect::<Vec<_>>())?.remove(0);
        let dv = o.dim(3);
        o.permute(&[2, 0, 1, 3])?.reshape(&[n, h * g, dv])
    }
}

/// `[H, G, n, D]` against `[H, S, D]`: `[H, G, n, S]`.
fn scores(q: &Var, k: &Var) -> Result<Var> {
    let [h, g, n, d] = q.tensor().dims_n::<4>(OP, "q")?;
    let s = q.reshape(&[h, g * n, d])?.matmul(&k.transpose(1, 2)?)?;
    s.reshape(&[h, g, n, k.dim(1)])
}

/// Probabilities `[H, G, n, S]` of values `[H, S, V]`.
fn read(p: &Var, v: &Var) -> Result<Var> {
    let [h, g, n, s] = p.tensor().dims_n::<4>(OP, "p")?;
    p.reshape(&[h, g * n, s])?.matmul(v)?.reshape(&[h, g, n, v.dim(2)])
}

fn softmax(scores: &Var) -> Result<Var> {
    let top = Var::constant(scores.tensor().max_last()?.0.unsqueeze(3)?);
    let p = scores.sub(&top)?.exp()?;
    p.div(&p.sum(&[3], true)?)
}

/// The compressed branch's probabilities `[H, G, n, NB]`; zero for queries that see no block.
fn visible(q: &Var, k: &Var, s: &Selection) -> Result<Var> {
    let blocks = k.dim(1);
    let sees = |i: usize, c: usize| (c + 1) * s.block_size <= s.at + i + 1;
    let mask =
        (0..s.rows * blocks).map(|x| if sees(x / blocks, x % blocks) { 0.0 } else { HIDDEN }).collect();
    let any = (0..s.rows).map(|i| f64::from(u8::from(sees(i, 0)))).collect();
    let p = softmax(&scores(q, k)?.add(&constant(mask, &[s.rows, blocks], q)?)?)?;
    p.mul(&constant(any, &[s.rows, 1], q)?)
}

fn constant(values: Vec<f64>, dims: &[usize], like: &Var) -> Result<Var> {
    let t = Tensor::from_vec(values, dims)?.to_dtype(like.dtype())?;
    Ok(cuda::kept(&t, &like.device())?.into())
}

fn check(
    a: &NsaArgs<'_>,
    queries: &PackedSeqs,
    keys: &[Range<usize>],
    [b, t, hq, h]: [usize; 4],
) -> Result<()> {
    let d = a.q.dim(3);
    if h == 0 || hq % h != 0 {
        return Err(Error::shape(OP, "q", a.q.dims(), format!("[B, T, HQ, D], HQ a multiple of {h}")));
    }
    for (key, n) in
        [("block_size", a.block_size), ("block_count", a.block_count), ("window", a.window.unwrap_or(1))]
    {
        if n == 0 {
            return Err(Error::invalid(OP, key, "is 0, expected a positive number"));
        }
    }
    let kv = match (a.kv_seqs, a.kv_lens) {
        (Some(_), Some(_)) => return Err(Error::invalid(OP, "kv_lens", "and kv_seqs exclude each other")),
        (Some(seqs), None) => [1, seqs.total()],
        (None, Some(_)) => [queries.len(), a.k.dim(1)],
        (None, None) => [b, t],
    };
    let [.., dv] = a.v.tensor().dims_n::<4>(OP, "v")?;
    let gate = vec![b, t, hq];
    for (arg, x, want) in [
        ("k", a.k, vec![kv[0], kv[1], h, d]),
        ("v", a.v, vec![kv[0], kv[1], h, dv]),
        ("g_cmp", a.gates[0], gate.clone()),
        ("g_slc", a.gates[1], gate.clone()),
        ("g_swa", a.gates[2], gate),
    ] {
        if x.dims() != want {
            return Err(Error::shape(OP, arg, x.dims(), format!("{want:?}")));
        }
        if !x.dtype().is_float() {
            return Err(Error::dtype(OP, arg, x.dtype(), "a float dtype"));
        }
    }
    let fits = queries.len() == keys.len() && queries.ranges().zip(keys).all(|(q, k)| q.len() <= k.len());
    let inside = a.kv_lens.is_none_or(|lens| lens.iter().all(|&l| l <= a.k.dim(1)));
    match fits && inside {
        true => Ok(()),
        false => Err(Error::invalid(
            OP,
            "keys",
            "must be at least as many as queries in every sequence, and lie in their rows",
        )),
    }
}
