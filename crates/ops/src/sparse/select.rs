//! Which blocks queries take, and what that saves.

use flashlin_tensor::{Result, Tensor, Var};

use super::HIDDEN;

/// A block of queries of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selection {
    /// Position of the first.
    pub at: usize,
    /// Queries.
    pub rows: usize,
    /// Keys that at least one of them may see.
    pub keys: usize,
    pub block_size: usize,
    pub block_count: usize,
}

/// For each key head and query the blocks taken, in ascending order.
pub(super) type Taken = Vec<Vec<usize>>;

/// The blocks of each query: from the mean probabilities `[H, n, NB]` of complete blocks.
pub(super) fn chosen(s: &Selection, heads: usize, probabilities: Option<&Tensor>) -> Result<Taken> {
    let (scores, width) = match probabilities {
        Some(p) => (p.to_f64_vec()?, p.dim(2)),
        None => (Vec::new(), 0),
    };
    let row = |x: usize| pick(s, s.at + x % s.rows, scores.get(x * width..(x + 1) * width).unwrap_or(&[]));
    Ok((0..heads * s.rows).map(row).collect())
}

/// The first block, the own and the one before it, then the best complete past ones.
pub(super) fn pick(s: &Selection, position: usize, probabilities: &[f64]) -> Vec<usize> {
    let own = position / s.block_size;
    let always = |c: usize| c == 0 || c == own || c + 1 == own;
    let score = |c: usize| if always(c) { 1.0 } else { probabilities.get(c).copied().unwrap_or(0.0) };
    let allowed = |c: usize| always(c) || (c + 1) * s.block_size <= position + 1;
    let mut blocks: Vec<usize> = (0..=own).filter(|&c| allowed(c)).collect();
    // Stable: among equals the earlier block.
    blocks.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    blocks.truncate(s.block_count);
    blocks.sort_unstable();
    blocks
}

impl Selection {
    /// What is added to the scores `[H, G, n, S]`: 0 for keys of taken blocks up to the query.
    pub fn hidden(&self, taken: &Taken, heads: usize, like: &Var) -> Result<Var> {
        let mut mask = vec![HIDDEN; heads * self.rows * self.keys];
        for (x, blocks) in taken.iter().enumerate() {
            let row = &mut mask[x * self.keys..][..self.keys];
            let end = self.at + x % self.rows + 1;
            for c in blocks {
                row[(c * self.block_size).min(end)..((c + 1) * self.block_size).min(end)].fill(0.0);
            }
        }
        // Not kept on a device: it differs from call to call.
        let t = Tensor::from_vec(mask, &[heads, 1, self.rows, self.keys])?.to_dtype(like.dtype())?;
        match like.device() {
            flashlin_tensor::Device::Cpu => Ok(t.into()),
            device => Ok(t.to_device(&device)?.into()),
        }
    }
}

/// What a block of queries looked at, summed over queries and query heads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueryBlock {
    /// Pairs of queries and keys that full attention would form.
    pub causal: u64,
    /// Pairs of queries and block means.
    pub compressed: u64,
    /// Pairs of queries and keys of selected blocks.
    pub selected: u64,
    /// Pairs of queries and keys of the window.
    pub window: u64,
    /// Blocks selected.
    pub blocks: u64,
    /// Queries times query heads.
    pub queries: u64,
    /// Floating-point operations of the three branches (two products of a multiplication and an addition for each pair).
    pub flops: u64,
    /// Those of full attention.
    pub full_flops: u64,
    /// Position of the first query.
    at: usize,
    rows: usize,
    pair: u64,
}

/// What a call looked at, one entry a block of 256 queries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NsaStats {
    /// The blocks of queries, sequence after sequence.
    pub query_blocks: Vec<QueryBlock>,
}

impl NsaStats {
    pub(super) fn add(&mut self, s: &Selection, taken: &Taken, group: usize, [d, v]: [usize; 2]) {
        let heads = (taken.len() / s.rows * group) as u64;
        let rows = || (0..s.rows).map(|i| (s.at + i + 1) as u64);
        let keys_of = |(x, blocks): (usize, &Vec<usize>)| {
            let end = s.at + x % s.rows + 1;
            blocks.iter().map(|c| (end - (c * s.block_size).min(end)).min(s.block_size)).sum::<usize>() as u64
        };
        let selected: u64 = taken.iter().enumerate().map(keys_of).sum::<u64>() * group as u64;
        let causal: u64 = rows().sum::<u64>() * heads;
        let compressed: u64 = rows().map(|end| end / s.block_size as u64).sum::<u64>() * heads;
        let pair = 2 * (d + v) as u64;
        self.query_blocks.push(QueryBlock {
            causal,
            compressed,
            selected,
            window: 0,
            blocks: taken.iter().map(|b| b.len() as u64).sum::<u64>() * group as u64,
            queries: s.rows as u64 * heads,
            flops: (compressed + selected) * pair,
            full_flops: causal * pair,
            at: s.at,
            rows: s.rows,
            pair,
        });
    }

    pub(super) fn add_window(&mut self, window: usize, heads: usize) {
        for b in &mut self.query_blocks {
            let keys: u64 = (0..b.rows).map(|i| (b.at + i + 1).min(window) as u64).sum();
            b.window = keys * heads as u64;
            b.flops += b.window * b.pair;
        }
    }

    /// Share of the pairs of full attention that the selected branch reads.
    pub fn selected_share(&self) -> f64 {
        let sum = |f: fn(&QueryBlock) -> u64| self.query_blocks.iter().map(f).sum::<u64>() as f64;
        sum(|b| b.selected) / sum(|b| b.causal).max(1.0)
    }

    /// Floating-point operations of all branches over those of full attention.
    pub fn flops_share(&self) -> f64 {
        let sum = |f: fn(&QueryBlock) -> u64| self.query_blocks.iter().map(f).sum::<u64>() as f64;
        sum(|b| b.flops) / sum(|b| b.full_flops).max(1.0)
    }
}
