//! Which memories a token enters, and the loss that keeps them evenly used.

use flashlin_ops::{PackedSeqs, maps::softmax};
use flashlin_tensor::{DType, Device, Tensor, Var, cuda::kept};

use crate::{Error, Result};

/// Each row's `k` largest of `n` scores, largest first; of equal ones the first. The scores are read on the host: what is launched depends on them.
fn largest(scores: &Tensor, n: usize, k: usize) -> Result<Vec<Vec<usize>>> {
    let scores = scores.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
    let of = |row: &[f64]| {
        if row.iter().any(|x| x.is_nan()) {
            return Err(Error::state("the router's scores are not numbers"));
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        order.truncate(k);
        Ok(order)
    };
    scores.chunks(n.max(1)).map(of).collect()
}

/// 1 where a token has chosen a memory, else 0: `[tokens, n]`.
fn chosen(picks: &[Vec<usize>], n: usize, like: &Var) -> Result<Var> {
    let mut mask = vec![0f32; picks.len() * n];
    picks.iter().enumerate().flat_map(|(t, e)| e.iter().map(move |e| t * n + e)).for_each(|i| mask[i] = 1.0);
    let mask = Tensor::from_vec(mask, &[picks.len(), n])?.to_dtype(like.dtype())?;
    Ok(Var::constant(mask.to_device(&like.device())?))
}

/// The tokens of every memory as sequences of their own: row by row, memory by memory, in their order.
pub(super) struct Lists {
    /// A list for each row and memory, rows outside.
    pub seqs: PackedSeqs,
    /// Token of every entry.
    pub tokens: Tensor,
    /// Entry into `[tokens, memories]` of every entry.
    pub places: Tensor,
    /// For every memory, its tokens of all rows.
    pub by_memory: Vec<Tensor>,
    /// Where each entry stands when those are joined.
    pub joined: Tensor,
    /// Share of each memory in each token's output, `[tokens, memories]`, 0 where it was not chosen; in the router's compute type.
    pub shares: Var,
}

impl Lists {
    /// Of router logits `[tokens, n]`, of which each token takes the `k` largest.
    pub fn new(logits: &Var, rows: &PackedSeqs, k: usize) -> Result<Lists> {
        let n = logits.dim(1);
        let scores = softmax(&logits.to_dtype(logits.dtype().accumulator())?)?;
        let picks = largest(scores.tensor(), n, k)?;
        let kept_scores = scores.mul(&chosen(&picks, n, &scores)?)?;
        let shares = kept_scores.div(&kept_scores.sum(&[1], true)?)?;

        let (mut lens, mut entries) = (Vec::new(), Vec::new());
        for row in rows.ranges() {
            for e in 0..n {
                let before = entries.len();
                entries.extend(row.clone().filter(|&t| picks[t].contains(&e)).map(|t| (t, e)));
                lens.push(entries.len() - before);
            }
        }
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|&i| entries[i].1);
        let mut joined = vec![0i64; entries.len()];
        order.iter().enumerate().for_each(|(at, &i)| joined[i] = at as i64);
        let index = |values: Vec<i64>| -> Result<Tensor> {
            let len = values.len();
            Ok(kept(&Tensor::from_vec(values, &[len])?, &logits.device())?)
        };
        let of_memory = |e: usize| {
            index(order.iter().map(|&i| entries[i]).filter(|x| x.1 == e).map(|x| x.0 as i64).collect())
        };
        Ok(Lists {
            seqs: PackedSeqs::from_lens(&lens),
            tokens: index(entries.iter().map(|x| x.0 as i64).collect())?,
            places: index(entries.iter().map(|(t, e)| (t * n + e) as i64).collect())?,
            by_memory: (0..n).map(of_memory).collect::<Result<_>>()?,
            joined: index(joined)?,
            shares,
        })
    }
}

/// `n sum_e f_e p_e`: f_e counts how often memory e was chosen by a token of a layer, p_e is the mean of its softmax score; over the logits
/// `[layers and tokens, n]` of all layers.
pub(super) fn balance(logits: &Var, k: usize) -> Result<Var> {
    let n = logits.dim(1);
    let scores = softmax(&logits.to_dtype(logits.dtype().accumulator())?)?;
    let picks = largest(scores.tensor(), n, k)?;
    let often = chosen(&picks, n, &scores)?.mean(&[0], false)?;
    Ok(often.mul(&scores.mean(&[0], false)?)?.sum_all()?.affine(n as f64, 0.0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(values: &[f64], n: usize) -> Var {
        Var::leaf(Tensor::from_slice(values, &[values.len() / n, n]).unwrap())
    }

    #[test]
    fn lists_are_in_order_and_ties_take_the_first() {
        let x = logits(&[1.0, 1.0, 1.0, 0.0, 2.0, 1.0, 5.0, 0.0, 4.0], 3);
        let lists = Lists::new(&x, &PackedSeqs::from_lens(&[2, 0, 1]), 2).unwrap();
        // Token 0 takes memories 0 and 1, token 1 takes 1 and 2, token 2 (of row 2) takes 0 and 2.
        assert_eq!(lists.seqs.cu_seqlens(), [0, 1, 3, 4, 4, 4, 4, 5, 5, 6]);
        assert_eq!(lists.tokens.to_vec::<i64>().unwrap(), [0, 0, 1, 1, 2, 2]);
        assert_eq!(lists.places.to_vec::<i64>().unwrap(), [0, 1, 4, 5, 6, 8]);
        let by: Vec<Vec<i64>> = lists.by_memory.iter().map(|t| t.to_vec::<i64>().unwrap()).collect();
        assert_eq!(by, [vec![0, 2], vec![0, 1], vec![1, 2]]);
        let joined = lists.joined.to_vec::<i64>().unwrap();
        let all: Vec<i64> = by.concat();
        let tokens: Vec<i64> = joined.iter().map(|&j| all[j as usize]).collect();
        assert_eq!(tokens, lists.tokens.to_vec::<i64>().unwrap());
        let shares = lists.shares.tensor().to_f64_vec().unwrap();
        let e = 1f64.exp();
        let want = [0.5, 0.5, 0.0, 0.0, e / (e + 1.0), 1.0 / (e + 1.0), e / (e + 1.0), 0.0, 1.0 / (e + 1.0)];
        assert!(shares.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{shares:?}");
    }

    /// The formula with its one-hot vectors written out, and its slope by differences.
    #[test]
    fn the_balance_is_the_switch_loss() {
        let values = [0.3, -1.0, 0.7, 1.1, 0.2, -0.4, 0.0, 0.9, 0.8, -2.0, 0.5, 0.1];
        let (n, k) = (3, 2);
        let by_hand = |values: &[f64]| {
            let rows: Vec<Vec<f64>> = values
                .chunks(n)
                .map(|r| {
                    let total: f64 = r.iter().map(|x| x.exp()).sum();
                    r.iter().map(|x| x.exp() / total).collect()
                })
                .collect();
            let count = rows.len() as f64;
            let mut sum = 0.0;
            for slot in 0..k {
                for e in 0..n {
                    let rank = |r: &[f64]| (0..n).filter(|&o| r[o] > r[e]).count();
                    let hits = rows.iter().filter(|r| rank(r) == slot).count() as f64 / count;
                    sum += hits * rows.iter().map(|r| r[e]).sum::<f64>() / count;
                }
            }
            n as f64 * sum
        };
        let x = logits(&values, n);
        let loss = balance(&x, k).unwrap();
        assert!((loss.tensor().to_scalar().unwrap() - by_hand(&values)).abs() < 1e-12);
        let grads = loss.backward().unwrap().get(&x).unwrap().to_f64_vec().unwrap();
        for i in 0..values.len() {
            let moved = |by: f64| {
                let mut v = values;
                v[i] += by;
                by_hand(&v)
            };
            let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((grads[i] - slope).abs() < 1e-8, "{i}: {} {slope}", grads[i]);
        }
    }
}
