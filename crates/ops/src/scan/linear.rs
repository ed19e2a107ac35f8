//! The linear recurrence, its gradient, and the call.

use flashlin_tensor::{BackwardCtx, DType, Error, Result, Tensor, Var};

use super::{before, chunks, edge, on_cpu, rounds, rows, sequences, start};
use crate::PackedSeqs;

const OP: &str = "linear_scan";

/// Arguments of [`linear_scan`].
#[derive(Clone, Copy, Debug)]
pub struct ScanArgs<'a> {
    /// Inputs `[B, T, D]`.
    pub x: &'a Var,
    /// Log decays `[B, T, D]`, `<= 0`, any float dtype.
    pub g: &'a Var,
    /// h_0 `[N, D]`, f32 (f64 where x is f64). Default: zero.
    pub initial_state: Option<&'a Var>,
    /// Boundaries of sequences packed along T (then B = 1). Default: B sequences of T.
    pub seqs: Option<&'a PackedSeqs>,
}

impl<'a> ScanArgs<'a> {
    /// From zero states over dense sequences.
    pub fn new(x: &'a Var, g: &'a Var) -> Self {
        ScanArgs { x, g, initial_state: None, seqs: None }
    }
}

/// What a scan returns.
#[derive(Clone, Debug)]
pub struct ScanOutput {
    /// `[B, T, D]` in the dtype of x.
    pub o: Var,
    /// `[N, D]` after the last token of every sequence, f32 (f64 for f64).
    pub final_state: Var,
}

/// `h_t = e^{g_t} h_{t-1} + x_t`, differentiable in x, g and the initial state; h is the output.
///
/// # Errors
/// When shapes, dtypes, devices or boundaries do not fit.
pub fn linear_scan(args: &ScanArgs) -> Result<ScanOutput> {
    let (x, g) = (args.x.tensor(), args.g.tensor());
    let (seqs, dims) = sequences(OP, x, args.seqs)?;
    if g.dims() != dims {
        return Err(Error::shape(OP, "g", g.dims(), format!("{dims:?}, the shape of x")));
    }
    if !g.dtype().is_float() || (g.dtype() == DType::F64) != (x.dtype() == DType::F64) {
        return Err(Error::dtype(OP, "g", g.dtype(), "a float type, f64 where x is"));
    }
    if g.device() != x.device() {
        return Err(Error::DeviceMismatch { op: OP, a: x.device(), b: g.device() });
    }
    let first = start(OP, args.initial_state.map(Var::tensor), &[seqs.len(), dims[2]], x)?;
    let a = rows(g)?.exp()?;
    let h = recurrence(&a, &rows(x)?, &first, &seqs, Walk::FORWARD)?;
    let last = edge(&h, &first, &seqs, false)?;
    let o = h.to_dtype(x.dtype())?.reshape(&dims)?;
    let absent = args.x.detach();
    let inputs = [args.x, args.g, args.initial_state.unwrap_or(&absent)];
    let types = inputs.map(Var::dtype);
    let backward = move |ctx: &mut BackwardCtx<'_>, mut grads: Vec<Option<Tensor>>| {
        let dh = rows(&ctx.or_zeros(0, &mut grads)?)?;
        let d_last = rows(&ctx.or_zeros(1, &mut grads)?)?;
        let dx = recurrence(&a, &dh, &d_last, &seqs, Walk::FORWARD.back())?;
        let decayed = dx.mul(&a)?;
        let d_first =
            if ctx.needs(2) { Some(edge(&decayed, &d_last, &seqs, true)?.to_dtype(types[2])?) } else { None };
        let dg = if ctx.needs(1) {
            Some(decayed.mul(&before(&h, &first, &seqs)?)?.reshape(&dims)?.to_dtype(types[1])?)
        } else {
            None
        };
        Ok(vec![Some(dx.reshape(&dims)?.to_dtype(types[0])?), dg, d_first])
    };
    let mut out = Var::from_op(OP, &inputs, vec![o, last], || Box::new(backward)).into_iter();
    match (out.next(), out.next()) {
        (Some(o), Some(final_state)) => Ok(ScanOutput { o, final_state }),
        _ => Err(Error::invalid(OP, "o", "was not computed")),
    }
}

/// Which way a recurrence goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// From the end to the beginning.
    pub reverse: bool,
    /// A token's factor acts on what it hands on, not on what it is handed: the gradient of the recurrence of the other direction.
    pub adjoint: bool,
}

impl Walk {
    pub const FORWARD: Walk = Walk { reverse: false, adjoint: false };

    /// The gradient's way.
    pub fn back(self) -> Walk {
        Walk { reverse: !self.reverse, adjoint: !self.adjoint }
    }
}

/// The outputs `[tokens, D]` of the recurrence with factors `a` from `first` `[N, D]`.
pub(super) fn recurrence(
    a: &Tensor,
    x: &Tensor,
    first: &Tensor,
    seqs: &PackedSeqs,
    walk: Walk,
) -> Result<Tensor> {
    let (width, Walk { reverse, adjoint }) = (x.dim(1), walk);
    match x.dtype() {
        _ if !on_cpu(x) => rounds::linear(a, x, first, seqs, walk),
        DType::F64 => {
            let step = chunks::Linear::<f64> { a: a.as_slice()?, x: x.as_slice()?, width, adjoint };
            chunks::scan(&step, first, seqs, reverse)
        }
        _ => {
            let step = chunks::Linear::<f32> { a: a.as_slice()?, x: x.as_slice()?, width, adjoint };
            chunks::scan(&step, first, seqs, reverse)
        }
    }
}
