//! Var-len batches: several sequences packed into one row, with their boundaries checked once.

use std::{ops::Range, sync::Arc};

use flashlin_tensor::{Error, Result, Tensor};

/// Boundaries of N sequences packed along T. Cheap to clone.
///
/// `cu_seqlens` starts at 0, never falls, and ends at the number of tokens; empty sequences are legal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedSeqs {
    cu: Arc<[usize]>,
}

impl PackedSeqs {
    /// Checks cumulative lengths against the number of packed tokens.
    ///
    /// # Errors
    /// When they do not start at 0, fall, or do not end at `total`; the message names the first offender.
    pub fn new(cu_seqlens: &[usize], total: usize) -> Result<Self> {
        let bad = |why: String| Err(Error::invalid("packed sequences", "cu_seqlens", why));
        match cu_seqlens {
            [] => return bad("is empty, expected at least [0]".into()),
            [first, ..] if *first != 0 => return bad(format!("starts at {first}, expected 0")),
            _ => {}
        }
        if let Some(i) = cu_seqlens.windows(2).position(|w| w[1] < w[0]) {
            return bad(format!("falls from {} to {} at index {}", cu_seqlens[i], cu_seqlens[i + 1], i + 1));
        }
        match cu_seqlens.last() {
            Some(&last) if last != total => {
                bad(format!("ends at {last}, expected the {total} packed tokens"))
            }
            _ => Ok(PackedSeqs { cu: cu_seqlens.into() }),
        }
    }

    /// Reads boundaries from an i64 or i32 tensor `[N + 1]`.
    ///
    /// # Errors
    /// As [`PackedSeqs::new`], and for negative values or another dtype.
    pub fn from_tensor(cu_seqlens: &Tensor, total: usize) -> Result<Self> {
        let values = match cu_seqlens.dtype() {
            flashlin_tensor::DType::I64 => cu_seqlens.to_vec::<i64>()?,
            flashlin_tensor::DType::I32 => cu_seqlens.to_vec::<i32>()?.into_iter().map(i64::from).collect(),
            other => return Err(Error::dtype("packed sequences", "cu_seqlens", other, "i64 or i32")),
        };
        let cu = values.iter().map(|&v| {
            let why =
                || Error::invalid("packed sequences", "cu_seqlens", format!("holds {v}, expected >= 0"));
            usize::try_from(v).map_err(|_| why())
        });
        Self::new(&cu.collect::<Result<Vec<_>>>()?, total)
    }

    /// From the lengths of the sequences.
    pub fn from_lens(lens: &[usize]) -> Self {
        let mut cu = Vec::with_capacity(lens.len() + 1);
        cu.push(0);
        cu.extend(lens.iter().scan(0, |end, n| {
            *end += n;
            Some(*end)
        }));
        PackedSeqs { cu: cu.into() }
    }

    /// `batch` sequences of `len` tokens each: what a dense `[B, T]` input is.
    pub fn dense(batch: usize, len: usize) -> Self {
        PackedSeqs { cu: (0..=batch).map(|i| i * len).collect() }
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.cu.len() - 1
    }

    /// True when there are no sequences.
    pub fn is_empty(&self) -> bool {
        self.cu.len() == 1
    }

    /// Packed tokens.
    pub fn total(&self) -> usize {
        self.cu[self.cu.len() - 1]
    }

    /// The boundaries `[N + 1]`.
    pub fn cu_seqlens(&self) -> &[usize] {
        &self.cu
    }

    /// Tokens of sequence `n`.
    pub fn range(&self, n: usize) -> Range<usize> {
        self.cu[n]..self.cu[n + 1]
    }

    /// Tokens of each sequence, in order.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.cu.windows(2).map(|w| w[0]..w[1])
    }

    /// Length of the longest sequence.
    pub fn longest(&self) -> usize {
        self.ranges().map(|r| r.len()).max().unwrap_or(0)
    }

    /// Position of every token within its sequence.
    pub fn positions(&self) -> Vec<usize> {
        self.ranges().flat_map(|r| 0..r.len()).collect()
    }

    /// For an op on `[B, T, ..]` inputs: the sequences to run over. Dense inputs are B sequences of T; packed ones
    /// need B = 1 and boundaries that end at T.
    ///
    /// # Errors
    /// When packed boundaries meet B != 1 or another T.
    pub fn resolve(
        op: &'static str,
        seqs: Option<&PackedSeqs>,
        batch: usize,
        len: usize,
    ) -> Result<PackedSeqs> {
        match seqs {
            None => Ok(Self::dense(batch, len)),
            Some(s) if batch != 1 => {
                let why =
                    format!("describes {} packed sequences, which needs a batch of 1, not {batch}", s.len());
                Err(Error::invalid(op, "cu_seqlens", why))
            }
            Some(s) if s.total() != len => {
                Err(Error::invalid(op, "cu_seqlens", format!("ends at {}, expected T = {len}", s.total())))
            }
            Some(s) => Ok(s.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_checked() {
        let s = PackedSeqs::new(&[0, 3, 3, 7], 7).unwrap();
        assert_eq!((s.len(), s.total(), s.longest()), (3, 7, 4));
        assert_eq!(s.positions(), [0, 1, 2, 0, 1, 2, 3]);
        assert_eq!(PackedSeqs::from_lens(&[3, 0, 4]), s);
        for (bad, word) in [
            (&[][..], "empty"),
            (&[1, 7], "starts"),
            (&[0, 5, 4, 7], "falls from 5 to 4"),
            (&[0, 6], "ends at 6"),
        ] {
            let msg = PackedSeqs::new(bad, 7).unwrap_err().to_string();
            assert!(msg.contains(word), "{msg}");
        }
        let neg = Tensor::from_vec(vec![0i64, -1], &[2]).unwrap();
        assert!(PackedSeqs::from_tensor(&neg, 0).unwrap_err().to_string().contains("-1"));
        assert!(PackedSeqs::resolve("op", Some(&s), 2, 7).is_err());
        assert!(PackedSeqs::resolve("op", Some(&s), 1, 8).is_err());
        assert_eq!(PackedSeqs::resolve("op", None, 2, 3).unwrap().cu_seqlens(), [0, 3, 6]);
        assert!(PackedSeqs::new(&[0], 0).unwrap().is_empty());
    }
}
