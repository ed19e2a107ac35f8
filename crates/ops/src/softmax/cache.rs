//! The key-value cache of decoding: padded rows with a length each, appended in place.

use flashlin_tensor::{DType, Device, Error, Result, Tensor};

use crate::PackedSeqs;

const OP: &str = "kv_cache";

/// Keys `[N, cap, H, K]` and values `[N, cap, H, V]` of N sequences, of which the first `lens[n]` of row n count.
///
/// A clone is a fork: storage is shared until one side appends. Room grows by doubling, so appending copies nothing of
/// the past on most calls; with a window, keys that no later query sees are dropped when room runs out.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `[N, cap, H, K]`
    pub k: Tensor,
    /// `[N, cap, H, V]`
    pub v: Tensor,
    /// Valid entries of each row
    pub lens: Vec<usize>,
}

impl KvCache {
    /// An empty cache of `rows` sequences.
    ///
    /// # Errors
    /// When memory is short or the device is not served.
    pub fn new(
        rows: usize,
        heads: usize,
        k_dim: usize,
        v_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Ok(KvCache {
            k: Tensor::zeros(&[rows, 0, heads, k_dim], dtype, device)?,
            v: Tensor::zeros(&[rows, 0, heads, v_dim], dtype, device)?,
            lens: vec![0; rows],
        })
    }

    /// Appends the tokens of `k` and `v`, `[N, T, H, D]` or packed `[1, T, H, D]` with boundaries of N sequences.
    /// `window` is that of the attention: what lies further back than it may be dropped.
    ///
    /// # Errors
    /// When shapes or boundaries do not fit, or memory is short.
    pub fn append(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        seqs: Option<&PackedSeqs>,
        window: Option<usize>,
    ) -> Result<()> {
        append_tokens(&mut [&mut self.k, &mut self.v], &mut self.lens, &[k, v], seqs, window)
    }
}

/// Appends tokens `[N, T, H, D]` (or packed `[1, T, H, D]` with boundaries of N sequences) to padded rows `[N, cap, H, D]`, for any number of
/// tensors that belong together: keys and values, or what else is kept of each token. `lens` counts the valid entries of each row. As
/// [`KvCache::append`], which it serves.
///
/// # Errors
/// When shapes or boundaries do not fit, or memory is short.
pub fn append_tokens(
    rows: &mut [&mut Tensor],
    lens: &mut Vec<usize>,
    new: &[&Tensor],
    seqs: Option<&PackedSeqs>,
    window: Option<usize>,
) -> Result<()> {
    let Some((first, room)) = new.first().zip(rows.first()) else { return Ok(()) };
    let [b, t, ..] = first.dims_n::<4>(OP, "k")?;
    let cap = room.dim(1);
    let seqs = PackedSeqs::resolve(OP, seqs, b, t)?;
    for (i, (new, old)) in new.iter().zip(rows.iter()).enumerate() {
        if new.rank() != 4 || new.dims()[..2] != [b, t] || new.dims()[2..] != old.dims()[2..] {
            let arg = ["k", "v"].get(i).copied().unwrap_or("tokens");
            return Err(Error::shape(OP, arg, new.dims(), format!("[{b}, {t}] and {:?}", &old.dims()[2..])));
        }
    }
    if seqs.len() != lens.len() {
        let why = format!("is for {} sequences, but the cache has {} rows", seqs.len(), lens.len());
        return Err(Error::invalid(OP, "k", why));
    }
    let added: Vec<usize> = seqs.ranges().map(|r| r.len()).collect();
    let kept: Vec<usize> = lens.iter().map(|&l| window.map_or(l, |w| l.min(w.max(1) - 1))).collect();
    let most = |have: &[usize]| have.iter().zip(&added).map(|(h, a)| h + a).max().unwrap_or(0);
    let (need, least) = (most(lens), most(&kept));
    if need > cap || least.saturating_mul(4) < cap {
        let room = if need > cap { least.max(cap.min(2 * least)) } else { least };
        let keep = if window.is_some() { &kept } else { &*lens };
        let room = room.next_power_of_two().max(16);
        for row in rows.iter_mut() {
            **row = moved(row, lens, keep, room)?;
        }
        *lens = keep.clone();
    }
    for (row, new) in rows.iter_mut().zip(new) {
        write(row, new, &seqs, lens)?;
    }
    lens.iter_mut().zip(&added).for_each(|(l, a)| *l += a);
    Ok(())
}

/// The newest `keep[n]` of `lens[n]` entries of each row, at the front of rows with room for `cap`.
fn moved(old: &Tensor, lens: &[usize], keep: &[usize], cap: usize) -> Result<Tensor> {
    let [n, _, h, d] = old.dims_n::<4>(OP, "cache")?;
    let mut out = Tensor::zeros(&[n, cap, h, d], old.dtype(), &old.device())?;
    let same = |x: &[usize]| x.windows(2).all(|p| p[0] == p[1]);
    let rows = if same(lens) && same(keep) { n } else { 1 };
    for row in (0..n).step_by(rows.max(1)) {
        let (len, keep) = (lens[row], keep[row]);
        out.write(&[row, 0, 0, 0], &old.narrow(0, row, rows)?.narrow(1, len - keep, keep)?)?;
    }
    Ok(out)
}

/// Writes the tokens of sequence n at `lens[n]` of row n; one write where all sequences are alike.
fn write(cache: &mut Tensor, new: &Tensor, seqs: &PackedSeqs, lens: &[usize]) -> Result<()> {
    let [b, t, h, d] = new.dims_n::<4>(OP, "tokens")?;
    if b == lens.len() && lens.windows(2).all(|p| p[0] == p[1]) {
        return cache.write(&[0, lens.first().copied().unwrap_or(0), 0, 0], new);
    }
    let flat = new.reshape(&[1, b * t, h, d])?;
    for (n, range) in seqs.ranges().enumerate() {
        cache.write(&[n, lens[n], 0, 0], &flat.narrow(1, range.start, range.len())?)?;
    }
    Ok(())
}
