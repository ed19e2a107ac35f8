//! Labels: checking them, and shifting them within documents.

use flashlin_tensor::{DType, Error, Result, Tensor};

use crate::PackedSeqs;

/// The label of every token, None where it is ignored.
pub(super) fn read(
    op: &'static str,
    labels: &Tensor,
    dims: &[usize],
    classes: usize,
    ignore: i64,
) -> Result<Vec<Option<usize>>> {
    if labels.dims() != dims {
        return Err(Error::shape(op, "labels", labels.dims(), format!("{dims:?}")));
    }
    let values = match labels.dtype() {
        DType::I64 => labels.to_vec::<i64>()?,
        DType::I32 => labels.to_vec::<i32>()?.into_iter().map(i64::from).collect(),
        other => return Err(Error::dtype(op, "labels", other, "i64 or i32")),
    };
    let check = |(i, l): (usize, i64)| match usize::try_from(l) {
        _ if l == ignore => Ok(None),
        Ok(l) if l < classes => Ok(Some(l)),
        _ => {
            let why = format!("holds {l} at token {i}, expected 0..{classes} or {ignore} (ignored)");
            Err(Error::invalid(op, "labels", why))
        }
    };
    values.into_iter().enumerate().map(check).collect()
}

/// Next-token labels: position t gets the label of t + 1, and the last position of every sequence -100, so that no
/// document is asked for the first token of the next.
///
/// `labels` is `[B, T]` (i64 or i32), `seqs` the boundaries of packed sequences (B = 1); the result is i64.
///
/// # Errors
/// When the rank is not 2, the dtype is no integer, or the boundaries do not fit.
pub fn shift_labels(labels: &Tensor, seqs: Option<&PackedSeqs>) -> Result<Tensor> {
    const OP: &str = "shift_labels";
    let [batch, len] = labels.dims_n::<2>(OP, "labels")?;
    let seqs = PackedSeqs::resolve(OP, seqs, batch, len)?;
    let values = match labels.dtype() {
        DType::I64 => labels.to_vec::<i64>()?,
        DType::I32 => labels.to_vec::<i32>()?.into_iter().map(i64::from).collect(),
        other => return Err(Error::dtype(OP, "labels", other, "i64 or i32")),
    };
    let mut out = vec![-100; values.len()];
    for r in seqs.ranges().filter(|r| !r.is_empty()) {
        out[r.start..r.end - 1].copy_from_slice(&values[r.start + 1..r.end]);
    }
    Tensor::from_vec(out, labels.dims())
}
