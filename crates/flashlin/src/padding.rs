//! The model's door: a padded batch becomes a packed one, once, for all models; and back.

use flashlin_ops::PackedSeqs;
use flashlin_tensor::{DType, Tensor, Var, cuda};

use crate::{Error, Result};

/// Where the real tokens of a padded batch `[B, T]` lie.
#[derive(Clone, Debug)]
pub struct Padding {
    /// Position in the flattened batch of each real token, row by row.
    index: Tensor,
    seqs: PackedSeqs,
    batch: usize,
    len: usize,
}

impl Padding {
    /// Reads a mask `[B, T]` of u8, 1 for real tokens. Real tokens of a row may lie anywhere; their order counts.
    ///
    /// # Errors
    /// When the mask has another shape, dtype or other values than 0 and 1.
    pub fn from_mask(mask: &Tensor) -> Result<Self> {
        let [batch, len] = mask.dims_n::<2>("attention mask", "mask")?;
        if mask.dtype() != DType::U8 {
            return Err(Error::argument("mask", format!("has dtype {}, expected u8", mask.dtype())));
        }
        let bits = mask.to_vec::<u8>()?;
        if let Some(bad) = bits.iter().find(|b| **b > 1) {
            return Err(Error::argument("mask", format!("holds {bad}, expected 0 (padding) or 1 (token)")));
        }
        let index: Vec<i64> = (0..bits.len() as i64).filter(|&i| bits[i as usize] == 1).collect();
        let lens: Vec<usize> = match len {
            0 => vec![0; batch],
            _ => bits.chunks_exact(len).map(|row| row.iter().filter(|b| **b == 1).count()).collect(),
        };
        let n = index.len();
        Ok(Padding { index: Tensor::from_vec(index, &[n])?, seqs: PackedSeqs::from_lens(&lens), batch, len })
    }

    /// The rows as packed sequences.
    pub fn seqs(&self) -> &PackedSeqs {
        &self.seqs
    }

    /// `[B, T, ..]` to `[1, tokens, ..]`.
    ///
    /// # Errors
    /// When the leading dimensions are not the mask's.
    pub fn pack(&self, x: &Var) -> Result<Var> {
        if x.dims().len() < 2 || x.dims()[..2] != [self.batch, self.len] {
            let why = format!("has shape [{}, {}], but the input has {:?}", self.batch, self.len, x.dims());
            return Err(Error::argument("mask", why));
        }
        let rest = &x.dims()[2..];
        let flat: Vec<usize> = std::iter::once(self.batch * self.len).chain(rest.iter().copied()).collect();
        let packed: Vec<usize> = [1, self.seqs.total()].into_iter().chain(rest.iter().copied()).collect();
        let index = cuda::kept(&self.index, &x.device())?;
        Ok(x.reshape(&flat)?.index_select(&index)?.reshape(&packed)?)
    }

    /// As [`Padding::pack`] for an array without gradient (token ids, labels).
    ///
    /// # Errors
    /// As [`Padding::pack`].
    pub fn pack_tensor(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.pack(&Var::constant(x.clone()))?.into_tensor())
    }

    /// `[1, tokens, ..]` back to `[B, T, ..]`, zero at padding.
    ///
    /// # Errors
    /// When memory is short.
    pub fn unpack(&self, x: &Var) -> Result<Var> {
        let rest = &x.dims()[2..];
        let flat: Vec<usize> = std::iter::once(self.seqs.total()).chain(rest.iter().copied()).collect();
        let full: Vec<usize> = [self.batch, self.len].into_iter().chain(rest.iter().copied()).collect();
        let index = cuda::kept(&self.index, &x.device())?;
        Ok(x.reshape(&flat)?.index_add(&index, self.batch * self.len)?.reshape(&full)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_any_side_and_back() {
        let mask = Tensor::from_vec(vec![0u8, 1, 1, 1, 1, 0, 0, 0, 0], &[3, 3]).unwrap();
        let p = Padding::from_mask(&mask).unwrap();
        assert_eq!(p.seqs().cu_seqlens(), [0, 2, 4, 4]);
        let x = Tensor::from_vec((0..18).map(|v| v as f32).collect(), &[3, 3, 2]).unwrap();
        let packed = p.pack(&Var::constant(x)).unwrap();
        assert_eq!(packed.tensor().to_f64_vec().unwrap(), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        let back = p.unpack(&packed).unwrap();
        assert_eq!(back.dims(), [3, 3, 2]);
        assert_eq!(back.tensor().to_f64_vec().unwrap()[..6], [0.0, 0.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(Padding::from_mask(&Tensor::from_vec(vec![2u8], &[1, 1]).unwrap()).is_err());
    }
}
