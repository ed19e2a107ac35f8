//! Sums, and rows gathered and scattered by index. Sums are f32 in a fixed order, so a repeated run gives the same bits.

use super::{at, float_name, gpu_of, int, launch};
use crate::{DType, Error, Result, Tensor};

/// Columns of a block in sums down columns.
const COLUMNS: usize = 128;
/// Rows that a block adds; longer columns are added in pieces, then the pieces.
const PIECE: usize = 256;
/// Columns of a block in gathers and scatters.
const WIDTH: usize = 1024;

/// Sums `x`, contiguous, over its rows (`[n, cols]` to `[cols]`, in the shape `dims`) or along them (`[rows, n]` to `[rows]`).
pub(crate) fn sum(x: &Tensor, dims: &[usize], n: usize, down: bool) -> Result<Tensor> {
    let out = Tensor::empty(dims, x.dtype, &x.device())?;
    if n == 0 || out.numel() == 0 {
        return Tensor::zeros(dims, x.dtype, &x.device());
    }
    if down {
        columns(x, &out, n)?
    } else {
        along(x, &out, n)?
    }
    Ok(out)
}

fn along(x: &Tensor, out: &Tensor, n: usize) -> Result<()> {
    let (op, rows) = ("sum", out.numel());
    let kind = float_name(op, "self", x.dtype)?;
    let args = [at(x)?, at(out)?, int(op, rows)?, int(op, n)?];
    int(op, x.numel())?;
    // SAFETY: x holds rows * n elements, out one a row.
    unsafe { launch(op, gpu_of(x)?, "array_row_sum", kind, [rows, 1, 1], &args) }
}

fn columns(x: &Tensor, out: &Tensor, n: usize) -> Result<()> {
    let (op, cols) = ("sum", out.numel());
    let pieces = n.div_ceil(PIECE);
    if pieces > 1 {
        let parts = Tensor::empty(&[pieces, cols], DType::F32, &x.device())?;
        add_down(x, &parts, n, PIECE)?;
        return columns(&parts, out, pieces);
    }
    float_name(op, "self", out.dtype)?;
    add_down(x, out, n, n)
}

/// Each row of `out` is the sum of `step` rows of `x` (of what is left in the last).
fn add_down(x: &Tensor, out: &Tensor, n: usize, step: usize) -> Result<()> {
    let (op, cols) = ("sum", x.numel() / n);
    let kinds = format!("{}-{}", float_name(op, "self", x.dtype)?, float_name(op, "self", out.dtype)?);
    let args = [at(x)?, at(out)?, int(op, n)?, int(op, cols)?, int(op, step)?];
    int(op, x.numel())?;
    let grid = [cols.div_ceil(COLUMNS), n.div_ceil(step), 1];
    // SAFETY: x holds n * cols elements, out one row for each step.
    unsafe { launch(op, gpu_of(x)?, "array_column_sum", &kinds, grid, &args) }
}

fn check_index(op: &'static str, index: &Tensor) -> Result<Tensor> {
    match index.dtype {
        DType::I64 => index.contiguous(),
        other => Err(Error::dtype(op, "index", other, "i64 on a GPU")),
    }
}

/// Rows `index` of the contiguous `x` `[rows, w]`; a row outside is NaN, as nothing may wait for the device to complain.
pub(crate) fn gather(x: &Tensor, index: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let op = "index_select";
    let index = check_index(op, index)?;
    let kind = float_name(op, "self", x.dtype)?;
    let out = Tensor::empty(dims, x.dtype, &x.device())?;
    let (count, rows) = (index.numel(), x.dim(0));
    if out.numel() == 0 {
        return Ok(out);
    }
    let w = out.numel() / count;
    let args = [at(x)?, at(&index)?, at(&out)?, int(op, count)?, int(op, rows)?, int(op, w)?];
    for long in [x, &out] {
        int(op, long.numel())?;
    }
    // SAFETY: x holds rows * w elements, index count, out count * w; rows outside are not read.
    unsafe { launch(op, gpu_of(x)?, "array_gather", kind, [count, w.div_ceil(WIDTH), 1], &args) }?;
    Ok(out)
}

/// An f32 tensor of `dims` (its first is the number of rows), zero but for the sums of the rows of the contiguous `x` that `index` sends
/// there. The first of equal indices adds all of them, in order.
pub(crate) fn scatter_add(x: &Tensor, index: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let op = "index_add";
    let index = check_index(op, index)?;
    let kind = float_name(op, "self", x.dtype)?;
    let out = Tensor::zeros(dims, DType::F32, &x.device())?;
    let (count, rows) = (index.numel(), dims[0]);
    if x.numel() == 0 || out.numel() == 0 {
        return Ok(out);
    }
    let w = x.numel() / count;
    let args = [at(x)?, at(&index)?, at(&out)?, int(op, count)?, int(op, rows)?, int(op, w)?];
    for long in [x, &out] {
        int(op, long.numel())?;
    }
    // SAFETY: x holds count * w elements, index count, out rows * w; rows outside are not written.
    unsafe { launch(op, gpu_of(x)?, "array_scatter_add", kind, [count, w.div_ceil(WIDTH), 1], &args) }?;
    Ok(out)
}
