//! Linear maps of few rows (a decode step): one launch reads all their weights once, at the speed of the memory.

use flashlin_kernels::Kernel;

use super::Launcher;
use crate::{DType, Error, Result, Tensor};

/// Rows that a block takes at most, and that this path takes of any weights: more go through dense products.
const MAX_ROWS: usize = 4;
/// Rows that it takes where every weight is [`NARROW`]: a product of few columns spreads over few blocks, and takes as long as a wide one.
const MANY_ROWS: usize = 64;
/// Columns of a narrow weight.
const NARROW: usize = 32;
/// Maps of one launch.
const MAPS: usize = 6;

/// The kernel that takes `x` `[.., k]` with these weights `[n, k]`, where there is one, with x's rows and k, and the rows that a block takes: few rows in
/// half precision, whole vectors, dense weights.
///
/// # Errors
/// As [`Launcher::on`].
pub fn thin(
    op: &'static str,
    kernel: &str,
    x: &Tensor,
    weights: &[&Tensor],
) -> Result<Option<(&'static Kernel, [usize; 2], usize)>> {
    let k = x.dims().last().copied().unwrap_or(0);
    let rows = x.numel() / k.max(1);
    let fits = |w: &&Tensor| {
        let own = w.rank() == 2 && w.dim(1) == k && w.dim(0) > 0 && w.dtype == x.dtype;
        own && w.is_contiguous() && w.device() == x.device()
    };
    let narrow = weights.iter().all(|w| w.dims().first().is_some_and(|n| *n <= NARROW));
    let most = if narrow { MANY_ROWS } else { MAX_ROWS };
    let served = x.dtype == DType::BF16 && (1..=most).contains(&rows) && k > 0 && k.is_multiple_of(8);
    if !served || weights.is_empty() || !weights.iter().all(fits) {
        return Ok(None);
    }
    let on = Launcher::on(op, x)?;
    let m = rows.next_power_of_two().min(MAX_ROWS);
    let kernel = on.choose(kernel, on.float("x", x.dtype)?, &[("M", m as i64)])?;
    Ok(Some((kernel, [rows, k], m)))
}

/// `x` times each weight transposed, where there is a kernel for that ([`thin`]).
pub(crate) fn thin_linear(x: &Tensor, weights: &[&Tensor]) -> Result<Option<Vec<Tensor>>> {
    let narrow = |w: &Tensor| w.rank() == 2 && w.dim(0) <= NARROW;
    let (few, wide): (Vec<&Tensor>, Vec<&Tensor>) = weights.iter().copied().partition(|w| narrow(w));
    let Some((kernel, sizes, m)) = thin("linear", "thin_linear", x, weights)? else {
        if few.is_empty() || wide.is_empty() {
            return Ok(None);
        }
        // The narrow ones of a mixed list together, the others each by itself.
        let Some(few) = thin_linear(x, &few)? else { return Ok(None) };
        let mut few = few.into_iter();
        let one = |w: &&Tensor| if narrow(w) { Ok(few.next()) } else { x.linear(w).map(Some) };
        let all = weights.iter().map(one).collect::<Result<Option<Vec<_>>>>()?;
        return all.ok_or_else(|| Error::invalid("linear", "weight", "gave no output")).map(Some);
    };
    let mut outs = Vec::with_capacity(weights.len());
    for maps in weights.chunks(MAPS) {
        outs.extend(launch(kernel, x, maps, sizes, m)?);
    }
    Ok(Some(outs))
}

fn launch(
    kernel: &Kernel,
    x: &Tensor,
    weights: &[&Tensor],
    [rows, k]: [usize; 2],
    m: usize,
) -> Result<Vec<Tensor>> {
    let on = Launcher::on("linear", x)?;
    let columns = kernel.need_generic("BN").map_err(Error::Kernel)?.max(1) as usize;
    let x = on.dense(x, x.dtype)?;
    let mut dims = x.dims().to_vec();
    let (mut held, mut outs) = (Vec::new(), Vec::new());
    for w in weights {
        dims.splice(dims.len() - 1.., [w.dim(0)]);
        outs.push(Tensor::empty(&dims, x.dtype, &x.device())?);
        held.push(on.dense(w, w.dtype)?);
    }
    let mut args = vec![on.at(&x)?];
    for tensors in [&held, &outs] {
        for i in 0..MAPS {
            args.push(on.maybe(tensors.get(i))?);
        }
    }
    args.extend([on.int(rows)?, on.int(k)?]);
    for i in 0..MAPS {
        args.push(on.int(weights.get(i).map_or(0, |w| w.dim(0)))?);
    }
    let blocks = weights.iter().map(|w| w.dim(0).div_ceil(columns)).sum();
    // SAFETY: x holds rows * k elements, each weight n * k and each output rows * n; what is absent has n = 0 and no block.
    unsafe { on.launch(&kernel.name, [blocks, rows.div_ceil(m), 1], &args) }?;
    Ok(outs)
}
