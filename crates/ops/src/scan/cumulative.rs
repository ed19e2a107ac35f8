//! Sums, and logarithms of sums of exponentials, along time.

use flashlin_tensor::{BackwardCtx, DType, Error, Result, Tensor, Var};

use super::{
    before, chunks, edge,
    linear::{ScanOutput, Walk, recurrence},
    on_cpu, rounds, rows, sequences, start,
};
use crate::PackedSeqs;

/// Arguments of [`cumsum`] and [`logcumsumexp`].
#[derive(Clone, Copy, Debug)]
pub struct CumArgs<'a> {
    /// `[B, T, D]`
    pub x: &'a Var,
    /// From a sequence's end to its beginning; false.
    pub reverse: bool,
    /// Start anew every so many tokens of a sequence (counted from its beginning); None: never.
    pub chunk: Option<usize>,
    /// Boundaries of sequences packed along T (then B = 1). Default: B sequences of T.
    pub seqs: Option<&'a PackedSeqs>,
}

impl<'a> CumArgs<'a> {
    /// Forwards over whole dense sequences.
    pub fn new(x: &'a Var) -> Self {
        CumArgs { x, reverse: false, chunk: None, seqs: None }
    }

    /// The sequences that the sums run over, and the shape of x.
    fn sequences(&self, op: &'static str) -> Result<(PackedSeqs, [usize; 3])> {
        let (seqs, dims) = sequences(op, self.x.tensor(), self.seqs)?;
        let Some(chunk) = self.chunk else { return Ok((seqs, dims)) };
        if chunk == 0 {
            return Err(Error::invalid(op, "chunk", "is 0, expected at least 1 token"));
        }
        let lens = seqs.ranges().flat_map(|r| {
            let end = r.end;
            r.step_by(chunk).map(move |t| chunk.min(end - t))
        });
        Ok((PackedSeqs::from_lens(&lens.collect::<Vec<_>>()), dims))
    }
}

/// Sums along time, each token's own included, in the dtype of x.
///
/// # Errors
/// When shapes or boundaries do not fit, x is no float tensor, or `chunk` is 0.
pub fn cumsum(args: &CumArgs) -> Result<Var> {
    const OP: &str = "cumsum";
    let (seqs, dims) = args.sequences(OP)?;
    let dtype = args.x.dtype();
    let walk = Walk { reverse: args.reverse, ..Walk::FORWARD };
    let sums = move |x: &Tensor, walk: Walk| {
        let x = rows(x)?;
        let ones = Tensor::ones(x.dims(), x.dtype(), &x.device())?;
        let first = Tensor::zeros(&[seqs.len(), dims[2]], x.dtype(), &x.device())?;
        recurrence(&ones, &x, &first, &seqs, walk)?.to_dtype(dtype)?.reshape(&dims)
    };
    let y = sums(args.x.tensor(), walk)?;
    Ok(Var::from_op1(OP, &[args.x], y, || {
        Box::new(move |_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            Ok(vec![g[0].take().map(|g| sums(&g, walk.back())).transpose()?])
        })
    }))
}

/// `z_t = ln(e^{z_0} + sum_{s <= t} e^{x_s})`, f32 for half precision too (f64 for f64), and z after the last token (before the first, where
/// `reverse`). `initial_state` is z_0 `[N, D]`, which may be minus infinity; default: that.
///
/// # Errors
/// When shapes or boundaries do not fit, x is no float tensor, `chunk` is 0, or an initial state meets chunks.
pub fn logcumsumexp(args: &CumArgs, initial_state: Option<&Var>) -> Result<ScanOutput> {
    const OP: &str = "logcumsumexp";
    if args.chunk.is_some() && initial_state.is_some() {
        return Err(Error::unsupported(OP, "an initial state with chunks", "whole sequences with one"));
    }
    let (seqs, dims) = args.sequences(OP)?;
    let (x, reverse) = (rows(args.x.tensor())?, args.reverse);
    let shape = [seqs.len(), dims[2]];
    let first = match initial_state {
        Some(z) => start(OP, Some(z.tensor()), &shape, args.x.tensor())?,
        None => Tensor::full(f64::NEG_INFINITY, &shape, x.dtype(), &x.device())?,
    };
    let z = log_sums(&x, &first, &seqs, reverse)?;
    let last = edge(&z, &first, &seqs, reverse)?;
    let o = z.reshape(&dims)?;
    let absent = args.x.detach();
    let inputs = [args.x, initial_state.unwrap_or(&absent)];
    let types = inputs.map(Var::dtype);
    let backward = move |ctx: &mut BackwardCtx<'_>, mut grads: Vec<Option<Tensor>>| {
        let dz = rows(&ctx.or_zeros(0, &mut grads)?)?;
        let d_last = rows(&ctx.or_zeros(1, &mut grads)?)?;
        // z moves with x by e^{x - z} and with the z before it by e^{z' - z}, which is at most 1.
        let prior = if reverse { after(&z, &first, &seqs)? } else { before(&z, &first, &seqs)? };
        let kept = share(&prior, &z)?;
        let flow = recurrence(&kept, &dz, &d_last, &seqs, Walk { reverse, adjoint: false }.back())?;
        let dx = flow.mul(&share(&x, &z)?)?.reshape(&dims)?.to_dtype(types[0])?;
        let d_first = if ctx.needs(1) {
            Some(edge(&flow.mul(&kept)?, &d_last, &seqs, !reverse)?.to_dtype(types[1])?)
        } else {
            None
        };
        Ok(vec![Some(dx), d_first])
    };
    let mut out = Var::from_op(OP, &inputs, vec![o, last], || Box::new(backward)).into_iter();
    match (out.next(), out.next()) {
        (Some(o), Some(final_state)) => Ok(ScanOutput { o, final_state }),
        _ => Err(Error::invalid(OP, "o", "was not computed")),
    }
}

/// `e^{part - whole}`, 0 where there is nothing (minus infinity).
fn share(part: &Tensor, whole: &Tensor) -> Result<Tensor> {
    // Numbers so far below all logarithms that their differences are those of minus infinity, without its NaN.
    let low = |x: &Tensor, at: f64| x.clamp(at, f64::MAX);
    low(part, -2e30)?.sub(&low(whole, -1e30)?)?.exp()
}

/// [`before`] in the other direction: the row after each token, of `first` at a sequence's end.
fn after(z: &Tensor, first: &Tensor, seqs: &PackedSeqs) -> Result<Tensor> {
    let n = seqs.len() as i64;
    let from = |(row, r): (usize, std::ops::Range<usize>)| {
        let end = r.end;
        r.map(move |t| if t + 1 == end { row as i64 } else { n + t as i64 + 1 })
    };
    let places = seqs.ranges().enumerate().flat_map(from).collect();
    Tensor::cat(&[first, z], 0)?.index_select(&super::index(places, z)?)
}

fn log_sums(x: &Tensor, first: &Tensor, seqs: &PackedSeqs, reverse: bool) -> Result<Tensor> {
    let width = x.dim(1);
    match x.dtype() {
        _ if !on_cpu(x) => rounds::log_sum(x, first, seqs, reverse),
        DType::F64 => chunks::scan(&chunks::LogSum::<f64> { x: x.as_slice()?, width }, first, seqs, reverse),
        _ => chunks::scan(&chunks::LogSum::<f32> { x: x.as_slice()?, width }, first, seqs, reverse),
    }
}
