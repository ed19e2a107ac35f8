//! From batches to what is run at once: whole (micro-)batches, or segments of long sequences.

use flashlin_ops::PackedSeqs;
use flashlin_tensor::Tensor;

use crate::{
    Result,
    data::{Batch, IGNORE},
    trainable::Piece,
};

/// What is run without a state from outside.
#[derive(Debug)]
pub(crate) enum Unit {
    /// Sequences that are run whole.
    Whole(Piece),
    /// Segments, in order, of sequences that are too long.
    Long(Vec<Piece>),
}

/// Cuts a batch. Rows of equal length make a dense [B, T] piece, others a packed one. With `segment_len`, longer sequences are
/// cut into segments, and no piece holds more than `segment_len` tokens a row.
pub(crate) fn units(batch: &Batch, segment_len: Option<usize>) -> Result<Vec<Unit>> {
    let limit = segment_len.unwrap_or(usize::MAX);
    if let Some((rows, len)) = batch.dense() {
        return Ok(match len <= limit {
            true => vec![Unit::Whole(dense(batch, 0, rows, len, 0..len)?)],
            false => vec![Unit::Long(segments(batch, 0, rows, len, limit)?)],
        });
    }
    let (mut out, mut short, mut tokens) = (Vec::new(), Vec::new(), 0usize);
    for (n, w) in batch.cu_seqlens.windows(2).enumerate() {
        let len = w[1] - w[0];
        if len > limit {
            out.push(Unit::Long(segments(batch, w[0], 1, len, limit)?));
            continue;
        }
        if tokens.saturating_add(len) > limit {
            out.push(Unit::Whole(packed(batch, &short)?));
            short.clear();
            tokens = 0;
        }
        short.push(n);
        tokens += len;
    }
    if !short.is_empty() {
        out.push(Unit::Whole(packed(batch, &short)?));
    }
    Ok(out)
}

/// Columns `cols` of `rows` rows of `len` tokens that begin at token `start` of the batch.
fn dense(
    batch: &Batch,
    start: usize,
    rows: usize,
    len: usize,
    cols: std::ops::Range<usize>,
) -> Result<Piece> {
    let at = |r: usize| start + r * len + cols.start..start + r * len + cols.end;
    let dims = [rows, cols.len()];
    piece((0..rows).map(at), batch, &dims, None)
}

fn segments(batch: &Batch, start: usize, rows: usize, len: usize, limit: usize) -> Result<Vec<Piece>> {
    let starts = (0..len).step_by(limit);
    starts.map(|a| dense(batch, start, rows, len, a..len.min(a + limit))).collect()
}

/// Some sequences of the batch, one after the other.
fn packed(batch: &Batch, sequences: &[usize]) -> Result<Piece> {
    let ranges: Vec<_> = sequences.iter().map(|&n| batch.cu_seqlens[n]..batch.cu_seqlens[n + 1]).collect();
    let lens: Vec<usize> = ranges.iter().map(|r| r.len()).collect();
    let dims = [1, lens.iter().sum()];
    let seqs = (lens.len() > 1).then(|| PackedSeqs::from_lens(&lens));
    piece(ranges.into_iter(), batch, &dims, seqs)
}

fn piece(
    ranges: impl Iterator<Item = std::ops::Range<usize>>,
    batch: &Batch,
    dims: &[usize],
    seqs: Option<PackedSeqs>,
) -> Result<Piece> {
    let (mut ids, mut targets) = (Vec::new(), Vec::new());
    for r in ranges {
        ids.extend(batch.tokens[r.clone()].iter().map(|&t| i64::from(t)));
        targets.extend_from_slice(&batch.labels[r]);
    }
    let counted = targets.iter().filter(|&&t| t != IGNORE).count() as u64;
    let (ids, targets) = (Tensor::from_vec(ids, dims)?, Tensor::from_vec(targets, dims)?);
    Ok(Piece { ids, targets: Some(targets), seqs, counted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lens: &[usize]) -> Batch {
        let total: usize = lens.iter().sum();
        let mut cu_seqlens = vec![0];
        cu_seqlens.extend(lens.iter().scan(0, |at, l| {
            *at += l;
            Some(*at)
        }));
        let mut labels: Vec<i64> = (0..total as i64).map(|t| t + 1).collect();
        labels[total - 1] = IGNORE;
        Batch {
            tokens: (0..total as u32).collect(),
            labels,
            cu_seqlens,
            targets: total as u64 - 1,
            target_bytes: 0,
        }
    }

    /// All (token, target) pairs of the units, in order, and the lengths of the sequences or segments.
    fn flat(units: &[Unit]) -> (Vec<i64>, Vec<i64>, Vec<Vec<usize>>) {
        let (mut ids, mut targets, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
        for unit in units {
            let pieces = match unit {
                Unit::Whole(p) => std::slice::from_ref(p),
                Unit::Long(p) => p,
            };
            for p in pieces {
                ids.extend(p.ids.to_vec::<i64>().unwrap());
                targets.extend(p.targets.as_ref().unwrap().to_vec::<i64>().unwrap());
                shapes.push(p.seqs.as_ref().map_or(p.ids.dims().to_vec(), |s| s.cu_seqlens().to_vec()));
            }
        }
        (ids, targets, shapes)
    }

    #[test]
    fn nothing_is_lost_and_shapes_are_as_asked() {
        let equal = units(&batch(&[4, 4, 4]), None).unwrap();
        assert_eq!(flat(&equal).2, [[3, 4]]);
        let b = batch(&[3, 10, 2, 2, 4, 1]);
        let (ids, targets, shapes) = flat(&units(&b, None).unwrap());
        assert_eq!(ids, (0..22).collect::<Vec<i64>>());
        assert_eq!(targets, b.labels);
        assert_eq!(shapes, [vec![0, 3, 13, 15, 17, 21, 22]]);
        let cut = units(&b, Some(4)).unwrap();
        let counted: u64 = cut
            .iter()
            .flat_map(|u| match u {
                Unit::Whole(p) => std::slice::from_ref(p),
                Unit::Long(p) => p,
            })
            .map(|p| p.counted)
            .sum();
        assert_eq!(counted, 21);
        let (mut ids, _, shapes) = flat(&cut);
        ids.sort_unstable();
        assert_eq!(ids, (0..22).collect::<Vec<i64>>());
        assert_eq!(
            shapes,
            [vec![1, 4], vec![1, 4], vec![1, 2], vec![1, 3], vec![0, 2, 4], vec![1, 4], vec![1, 1]]
        );
    }

    #[test]
    fn dense_rows_are_cut_together() {
        let cut = units(&batch(&[5, 5]), Some(2)).unwrap();
        let (ids, targets, shapes) = flat(&cut);
        assert_eq!(shapes, [[2, 2], [2, 2], [2, 1]]);
        assert_eq!(ids, [0, 1, 5, 6, 2, 3, 7, 8, 4, 9]);
        assert_eq!(targets, [1, 2, 6, 7, 3, 4, 8, 9, 5, IGNORE]);
    }
}
