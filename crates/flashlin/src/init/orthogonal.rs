//! Orthogonal initial matrices.
//!
//! Policy: rows are made orthogonal in blocks, each block against all before it as matrix products, twice (once leaves what cancellation left), so
//! that wide models start in seconds; the numbers do not depend on the number of threads.

use flashlin_tensor::{DType, Device, Philox, Tensor};

use crate::{Error, Result};

/// Rows of a block.
const BLOCK: usize = 32;

/// A random matrix `[rows, cols]` in f32 whose shorter side is orthogonal, all its vectors of length `gain`.
pub(super) fn orthogonal(rng: &Philox, dims: &[usize], gain: f64) -> Result<Tensor> {
    let &[rows, cols] = dims else {
        return Err(Error::argument("orthogonal", format!("needs a matrix, not {dims:?}")));
    };
    let (count, width) = (rows.min(cols), rows.max(cols));
    let random = rng.randn(0.0, 1.0, &[count, width], DType::F32, &Device::Cpu)?;
    let mut done = Tensor::zeros(&[count, width], DType::F32, &Device::Cpu)?;
    for from in (0..count).step_by(BLOCK) {
        let n = BLOCK.min(count - from);
        let mut block = random.narrow(0, from, n)?.contiguous()?;
        for _ in 0..2 {
            if from > 0 {
                let before = done.narrow(0, 0, from)?;
                block = block.sub(&block.matmul(&before.transpose(0, 1)?)?.matmul(&before)?)?;
            }
            block = orthonormal(&block, n, width)?;
        }
        done.write(&[from, 0], &block)?;
    }
    let scaled = done.affine(gain, 0.0)?;
    Ok(if rows <= cols { scaled } else { scaled.transpose(0, 1)?.contiguous()? })
}

/// The rows of `x`, each made orthogonal to those before it and of unit length.
fn orthonormal(x: &Tensor, n: usize, width: usize) -> Result<Tensor> {
    let mut rows = x.to_vec::<f32>()?;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    for i in 0..n {
        let (before, row) = rows.split_at_mut(i * width);
        let row = &mut row[..width];
        for other in before.chunks_exact(width) {
            let along = dot(row, other) as f32;
            row.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
        }
        let length = dot(row, row).sqrt().max(1e-30) as f32;
        row.iter_mut().for_each(|x| *x /= length);
    }
    Ok(Tensor::from_vec(rows, &[n, width])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_side_is_orthogonal() {
        for (i, [rows, cols]) in [[70, 70], [20, 100], [100, 20], [1, 1], [65, 64]].into_iter().enumerate() {
            let m = orthogonal(&Philox::new(4, i as u64), &[rows, cols], 0.5).unwrap();
            assert_eq!(m.dims(), [rows, cols]);
            let t = m.transpose(0, 1).unwrap();
            let gram = if rows <= cols { m.matmul(&t) } else { t.matmul(&m) }.unwrap();
            let n = rows.min(cols);
            for (at, x) in gram.to_f64_vec().unwrap().into_iter().enumerate() {
                let want = if at / n == at % n { 0.25 } else { 0.0 };
                assert!((x - want).abs() < 1e-6, "[{rows}, {cols}]: {x} at {at}");
            }
        }
    }
}
