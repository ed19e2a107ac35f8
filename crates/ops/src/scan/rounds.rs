//! Scans by tensor operations, for devices without a kernel: in round k every token takes in what the token `2^k` before it has summed (Hillis
//! and Steele, Data parallel algorithms, 1986). Nothing is divided, and all factors are at most 1.

use flashlin_tensor::{Result, Tensor, cuda::kept};

use super::{index, linear::Walk};
use crate::PackedSeqs;

/// The tokens in walking order: turned round where `reverse`, with their boundaries.
struct Order {
    seqs: PackedSeqs,
    turned: Option<Tensor>,
}

impl Order {
    fn new(seqs: &PackedSeqs, reverse: bool, like: &Tensor) -> Result<Order> {
        if !reverse {
            return Ok(Order { seqs: seqs.clone(), turned: None });
        }
        let n = seqs.total();
        let mut lens: Vec<usize> = seqs.ranges().map(|r| r.len()).collect();
        lens.reverse();
        let places = (0..n).rev().map(|t| t as i64).collect();
        Ok(Order { seqs: PackedSeqs::from_lens(&lens), turned: Some(index(places, like)?) })
    }

    fn walked(&self, x: &Tensor) -> Result<Tensor> {
        self.turned.as_ref().map_or_else(|| Ok(x.clone()), |at| x.index_select(at))
    }

    /// Rows `[N, D]` of the sequences.
    fn rows(&self, x: &Tensor) -> Result<Tensor> {
        match self.turned {
            None => Ok(x.clone()),
            Some(_) => x.index_select(&index((0..x.dim(0) as i64).rev().collect(), x)?),
        }
    }
}

/// `value` where a token is at least `by` tokens into its sequence, else 0: `[tokens, 1]`.
fn inside(seqs: &PackedSeqs, by: usize, value: [f64; 2], like: &Tensor) -> Result<Tensor> {
    let mask: Vec<f64> = seqs.positions().iter().map(|&p| value[usize::from(p >= by)]).collect();
    let n = mask.len();
    kept(&Tensor::from_vec(mask, &[n, 1])?.to_dtype(like.dtype())?, &like.device())
}

/// `x` as of the token `by` before, for the tokens from `by` on.
fn shifted(x: &Tensor, by: usize) -> Result<Tensor> {
    x.narrow(0, 0, x.dim(0) - by)
}

/// The first `by` rows of `x`, then `rest`.
fn joined(x: &Tensor, by: usize, rest: &Tensor) -> Result<Tensor> {
    Tensor::cat(&[&x.narrow(0, 0, by)?, rest], 0)
}

/// The outputs of `h = a h + x`, or of its adjoint, over `[tokens, D]` from `first` `[N, D]`; see [`super::chunks::Linear`].
pub(super) fn linear(
    a: &Tensor,
    x: &Tensor,
    first: &Tensor,
    seqs: &PackedSeqs,
    walk: Walk,
) -> Result<Tensor> {
    let order = Order::new(seqs, walk.reverse, x)?;
    let (mut a, x, first) = (order.walked(a)?, order.walked(x)?, order.rows(first)?);
    let seqs = &order.seqs;
    let n = x.dim(0);
    if n == 0 {
        return Ok(x);
    }
    if walk.adjoint {
        // A token's factor acts on what it hands on: it belongs to the next one.
        a = joined(&a, 1, &shifted(&a, 1)?)?;
    }
    let starts: Vec<i64> = seqs.ranges().filter(|r| !r.is_empty()).map(|r| r.start as i64).collect();
    let rows = seqs.ranges().enumerate().filter(|(_, r)| !r.is_empty()).map(|(i, _)| i as i64).collect();
    let starts = index(starts, &x)?;
    let carried = first.index_select(&index(rows, &x)?)?;
    let carried = if walk.adjoint { carried } else { carried.mul(&a.index_select(&starts)?)? };
    let mut h = x.add(&carried.index_add(&starts, n)?)?;
    // Nothing crosses the start of a sequence.
    a = a.mul(&inside(seqs, 1, [0.0, 1.0], &x)?)?;
    let mut by = 1;
    while by < seqs.longest() {
        let factor = a.narrow(0, by, n - by)?;
        h = joined(&h, by, &h.narrow(0, by, n - by)?.add(&factor.mul(&shifted(&h, by)?)?)?)?;
        a = joined(&a, by, &factor.mul(&shifted(&a, by)?)?)?;
        by *= 2;
    }
    order.walked(&h)
}

/// Far below any logarithm, and finite: differences of two such are 0, not NaN.
const NOTHING: f64 = -1e30;

/// `z = ln(e^z + e^x)` over `[tokens, D]` from `first` `[N, D]`. The outputs.
pub(super) fn log_sum(x: &Tensor, first: &Tensor, seqs: &PackedSeqs, reverse: bool) -> Result<Tensor> {
    let order = Order::new(seqs, reverse, x)?;
    let (x, first) = (order.walked(x)?, order.rows(first)?.clamp(NOTHING, f64::MAX)?);
    let seqs = &order.seqs;
    let n = x.dim(0);
    if n == 0 {
        return Ok(x);
    }
    let row = |(i, r): (usize, std::ops::Range<usize>)| r.map(move |_| i as i64);
    let rows = index(seqs.ranges().enumerate().flat_map(row).collect(), &x)?;
    let mut z = x.clamp(NOTHING, f64::MAX)?;
    let mut by = 1;
    while by < seqs.longest() {
        let hidden = inside(seqs, by, [NOTHING, 0.0], &x)?.narrow(0, by, n - by)?;
        z = joined(&z, by, &log_add(&z.narrow(0, by, n - by)?, &shifted(&z, by)?.add(&hidden)?)?)?;
        by *= 2;
    }
    order.walked(&log_add(&z, &first.index_select(&rows)?)?)
}

/// `ln(e^a + e^b)`
fn log_add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.maximum(b)?.add(&a.sub(b)?.abs()?.neg()?.exp()?.affine(1.0, 1.0)?.log()?)
}
