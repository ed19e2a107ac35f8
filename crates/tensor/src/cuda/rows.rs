//! Sums, and rows gathered and scattered by index. Sums are f32 in a fixed order, so a repeated run gives the same bits.

use super::Launcher;
use crate::{DType, Device, Error, Result, Tensor};

/// Columns of a block in sums down columns.
const COLUMNS: usize = 128;
/// Rows that a block adds; longer columns are added in pieces, then the pieces.
const PIECE: usize = 32;
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
    let on = Launcher::on("sum", x)?;
    let kernel = on.find("array_row_sum", on.float("self", x.dtype)?, &[])?;
    let rows = out.numel();
    let args = [on.at(x)?, on.at(out)?, on.int(rows)?, on.int(n)?];
    on.int(x.numel())?;
    // SAFETY: x holds rows * n elements, out one a row.
    unsafe { on.launch(&kernel.name, [rows, 1, 1], &args) }
}

fn columns(x: &Tensor, out: &Tensor, n: usize) -> Result<()> {
    let cols = out.numel();
    let pieces = n.div_ceil(PIECE);
    if pieces > 1 {
        let parts = Tensor::empty(&[pieces, cols], DType::F32, &x.device())?;
        add_down(x, &parts, n, PIECE)?;
        return columns(&parts, out, pieces);
    }
    add_down(x, out, n, n)
}

/// Each row of `out` is the sum of `step` rows of `x` (of what is left in the last).
fn add_down(x: &Tensor, out: &Tensor, n: usize, step: usize) -> Result<()> {
    let (on, cols) = (Launcher::on("sum", x)?, x.numel() / n);
    let kinds = format!("{}-{}", on.float("self", x.dtype)?, on.float("self", out.dtype)?);
    let kernel = on.find("array_column_sum", &kinds, &[])?;
    let args = [on.at(x)?, on.at(out)?, on.int(n)?, on.int(cols)?, on.int(step)?];
    on.int(x.numel())?;
    let grid = [cols.div_ceil(COLUMNS), n.div_ceil(step), 1];
    // SAFETY: x holds n * cols elements, out one row for each step.
    unsafe { on.launch(&kernel.name, grid, &args) }
}

/// The index on the device of `x`. One of the host is checked against `rows` and sent; what one of the device holds nobody waits for.
fn place_index(op: &'static str, x: &Tensor, index: &Tensor, rows: usize) -> Result<Tensor> {
    if index.device() == Device::Cpu {
        return Tensor::from_vec(checked(op, index, rows)?, index.dims())?.to_device(&x.device());
    }
    match index.dtype {
        DType::I64 => index.contiguous(),
        other => Err(Error::dtype(op, "index", other, "i64 on a GPU")),
    }
}

/// The numbers of an index of the host, all below `rows`.
fn checked(op: &'static str, index: &Tensor, rows: usize) -> Result<Vec<i64>> {
    if !matches!(index.dtype, DType::I64 | DType::I32) {
        return Err(Error::dtype(op, "index", index.dtype, "i64 or i32"));
    }
    let values = index.to_dtype(DType::I64)?.to_vec::<i64>()?;
    match values.iter().find(|i| !(0..rows as i64).contains(i)) {
        Some(bad) => Err(Error::invalid(op, "index", format!("holds {bad}, outside 0..{rows}"))),
        None => Ok(values),
    }
}

/// Rows `index` of the contiguous `x` `[rows, w]`; a row outside is NaN, as nothing may wait for the device to complain.
pub(crate) fn gather(x: &Tensor, index: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let op = "index_select";
    let index = place_index(op, x, index, x.dim(0))?;
    let on = Launcher::on(op, x)?;
    let kind = on.float("self", x.dtype)?;
    let out = Tensor::empty(dims, x.dtype, &x.device())?;
    let (count, rows) = (index.numel(), x.dim(0));
    if out.numel() == 0 {
        return Ok(out);
    }
    let w = out.numel() / count;
    let args = [on.at(x)?, on.at(&index)?, on.at(&out)?, on.int(count)?, on.int(rows)?, on.int(w)?];
    for long in [x, &out] {
        on.int(long.numel())?;
    }
    // SAFETY: x holds rows * w elements, index count, out count * w; rows outside are not read.
    unsafe { on.launch(&on.find("array_gather", kind, &[])?.name, [count, w.div_ceil(WIDTH), 1], &args) }?;
    Ok(out)
}

/// An f32 tensor of `dims` (its first is the number of rows), zero but for the sums of the rows of the contiguous `x` that `index` sends
/// there. The first of equal indices adds all of them, in order.
pub(crate) fn scatter_add(x: &Tensor, index: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let op = "index_add";
    if index.device() == Device::Cpu {
        return segment_add(op, x, index, dims);
    }
    let index = place_index(op, x, index, dims[0])?;
    let on = Launcher::on(op, x)?;
    let kind = on.float("self", x.dtype)?;
    let out = Tensor::zeros(dims, DType::F32, &x.device())?;
    let (count, rows) = (index.numel(), dims[0]);
    if x.numel() == 0 || out.numel() == 0 {
        return Ok(out);
    }
    let w = x.numel() / count;
    let args = [on.at(x)?, on.at(&index)?, on.at(&out)?, on.int(count)?, on.int(rows)?, on.int(w)?];
    for long in [x, &out] {
        on.int(long.numel())?;
    }
    // SAFETY: x holds count * w elements, index count, out rows * w; rows outside are not written.
    unsafe {
        on.launch(&on.find("array_scatter_add", kind, &[])?.name, [count, w.div_ceil(WIDTH), 1], &args)
    }?;
    Ok(out)
}

/// The largest element of each row of the contiguous `x` `[.., n]`, and its index (i64), in the shape `dims`.
pub(crate) fn max_last(x: &Tensor, dims: &[usize], n: usize) -> Result<(Tensor, Tensor)> {
    let on = Launcher::on("max_last", x)?;
    let kernel = on.find("array_row_max", on.float("self", x.dtype)?, &[])?;
    let value = Tensor::empty(dims, x.dtype, &x.device())?;
    let index = Tensor::empty(dims, DType::I64, &x.device())?;
    on.int(x.numel())?;
    let args = [on.at(x)?, on.at(&value)?, on.at(&index)?, on.int(n)?];
    // SAFETY: x holds n elements for each of value and index.
    unsafe { on.launch(&kernel.name, [value.numel(), 1, 1], &args) }?;
    Ok((value, index))
}

/// [`scatter_add`] for an index of the host, which is sorted there: a block adds the rows of one target.
fn segment_add(op: &'static str, x: &Tensor, index: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let on = Launcher::on(op, x)?;
    let kernel = on.find("array_segment_add", on.float("self", x.dtype)?, &[])?;
    let out = Tensor::zeros(dims, DType::F32, &x.device())?;
    let rows = checked(op, index, dims[0])?;
    if x.numel() == 0 || out.numel() == 0 {
        return Ok(out);
    }
    let (order, segments) = segments(&rows);
    let (count, w) = (rows.len(), x.numel() / rows.len());
    let send = |v: Vec<i32>| Tensor::from_slice(&v, &[v.len()])?.to_device(&x.device());
    let targets = segments.len() / 3;
    let (order, segments) = (send(order)?, send(segments)?);
    let mut args = vec![on.at(x)?, on.at(&order)?, on.at(&segments)?, on.at(&out)?];
    args.extend([on.int(count)?, on.int(targets)?, on.int(w)?]);
    for long in [x, &out] {
        on.int(long.numel())?;
    }
    // SAFETY: x holds count * w elements, order the numbers of its rows, and every segment a row of out and a piece of the order.
    unsafe { on.launch(&kernel.name, [targets, w.div_ceil(WIDTH), 1], &args) }?;
    Ok(out)
}

/// The places of `rows` sorted by their values, and for each value (value, where its places begin, how many): equal ones keep their order.
fn segments(rows: &[i64]) -> (Vec<i32>, Vec<i32>) {
    let mut order: Vec<i32> = (0..rows.len() as i32).collect();
    order.sort_by_key(|&i| rows[i as usize]);
    let mut segments: Vec<i32> = Vec::new();
    for (at, &i) in order.iter().enumerate() {
        let row = rows[i as usize] as i32;
        match segments.len() {
            n if n > 0 && segments[n - 3] == row => segments[n - 1] += 1,
            _ => segments.extend([row, at as i32, 1]),
        }
    }
    (order, segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_into_segments() {
        let (order, parts) = segments(&[7, 2, 7, 0, 2, 7]);
        assert_eq!(order, [3, 1, 4, 0, 2, 5]);
        assert_eq!(parts, [0, 0, 1, 2, 1, 2, 7, 3, 3]);
        assert_eq!(segments(&[]), (vec![], vec![]));
    }
}
