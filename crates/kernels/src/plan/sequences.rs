//! How tokens lie: rows of one length, or sequences packed behind each other.

use crate::{Error, Result};

/// Tokens of a chunk.
pub const CHUNK: usize = 64;

/// The sequences of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// B: rows of the arrays; 1 where packed.
    pub batch: usize,
    /// T: tokens of a row; all tokens where packed.
    pub tokens: usize,
    /// Where each packed sequence begins, and the end of the last.
    bounds: Option<Vec<usize>>,
}

impl Sequences {
    /// `batch` rows of `tokens` tokens.
    pub fn rows(batch: usize, tokens: usize) -> Sequences {
        Sequences { batch, tokens, bounds: None }
    }

    /// Packed sequences.
    ///
    /// # Errors
    /// Bounds that do not begin at 0 or that fall.
    pub fn packed(cu_seqlens: &[usize]) -> Result<Sequences> {
        let bad = |why: String| Err(Error::Entry { name: "cu_seqlens".into(), why });
        if cu_seqlens.first() != Some(&0) {
            return bad(format!("begins with {:?}, expected 0", cu_seqlens.first()));
        }
        if let Some(pair) = cu_seqlens.windows(2).find(|p| p[0] > p[1]) {
            return bad(format!("falls from {} to {}", pair[0], pair[1]));
        }
        let tokens = cu_seqlens.last().copied().unwrap_or(0);
        Ok(Sequences { batch: 1, tokens, bounds: Some(cu_seqlens.to_vec()) })
    }

    /// True where packed.
    pub fn is_packed(&self) -> bool {
        self.bounds.is_some()
    }

    /// How many sequences: each has a state.
    pub fn count(&self) -> usize {
        self.bounds.as_ref().map_or(self.batch, |b| b.len() - 1)
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        match &self.bounds {
            None => self.tokens,
            Some(b) => b.windows(2).map(|p| p[1] - p[0]).max().unwrap_or(0),
        }
    }

    /// NC: chunks of all sequences.
    pub fn chunks(&self) -> usize {
        match &self.bounds {
            None => self.batch * self.tokens.div_ceil(CHUNK),
            Some(b) => b.windows(2).map(|p| (p[1] - p[0]).div_ceil(CHUNK)).sum(),
        }
    }

    /// The last two dimensions of a grid with a block for each chunk.
    pub(super) fn chunk_grid(&self) -> [usize; 2] {
        if self.is_packed() { [self.chunks(), 1] } else { [self.tokens.div_ceil(CHUNK), self.batch] }
    }

    /// What kernels read of packed sequences: for each sequence (first token, length, first chunk, 0). Empty for rows.
    ///
    /// # Errors
    /// More tokens than 32 bits count.
    pub fn sequence_table(&self) -> Result<Vec<i32>> {
        let mut out = Vec::new();
        let mut chunk = 0;
        for p in self.bounds.iter().flat_map(|b| b.windows(2)) {
            let len = p[1] - p[0];
            out.extend([int(p[0])?, int(len)?, int(chunk)?, 0]);
            chunk += len.div_ceil(CHUNK);
        }
        Ok(out)
    }

    /// The same for each chunk: (first token of its sequence, length of the sequence, number of the chunk in it, sequence).
    ///
    /// # Errors
    /// More tokens than 32 bits count.
    pub fn chunk_table(&self) -> Result<Vec<i32>> {
        let mut out = Vec::new();
        for (sequence, p) in self.bounds.iter().flat_map(|b| b.windows(2)).enumerate() {
            let len = p[1] - p[0];
            for chunk in 0..len.div_ceil(CHUNK) {
                out.extend([int(p[0])?, int(len)?, int(chunk)?, int(sequence)?]);
            }
        }
        Ok(out)
    }
}

fn int(n: usize) -> Result<i32> {
    let why = || format!("reaches {n}; kernels count up to {}", i32::MAX);
    i32::try_from(n).map_err(|_| Error::Entry { name: "cu_seqlens".into(), why: why() })
}
