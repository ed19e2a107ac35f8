//! Log-probabilities from logits.
//!
//! Policy: in f64, over the model's whole vocabulary, by one function for prompts and new tokens, so that the best token's number is the
//! same wherever it appears (clients compare them for equality).

use rayon::prelude::*;

use super::Score;

/// The score of token `id` where the logits are `logits`, with the `top` likeliest tokens (of equals the lower id first).
pub fn score(logits: &[f32], id: u32, top: usize) -> Score {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let log_sum = f64::from(max) + sum.ln();
    let logprob = |id: u32| f64::from(logits[id as usize]) - log_sum;
    Score {
        id,
        logprob: logprob(id),
        top: best(logits, top).into_iter().map(|id| (id, logprob(id))).collect(),
    }
}

/// Scores of rows of logits `[ids.len(), vocab]`, row i for token `ids[i]`.
pub fn scores(logits: &[f32], vocab: usize, ids: &[u32], top: usize) -> Vec<Score> {
    logits.par_chunks_exact(vocab).zip(ids).map(|(row, &id)| score(row, id, top)).collect()
}

/// The `n` largest logits' tokens, best first.
fn best(logits: &[f32], n: usize) -> Vec<u32> {
    let before = |a: &u32, b: &u32| {
        let (x, y) = (logits[*a as usize], logits[*b as usize]);
        y.total_cmp(&x).then(a.cmp(b))
    };
    let mut found: Vec<u32> = Vec::with_capacity(n + 1);
    if n == 0 {
        return found;
    }
    for id in 0..logits.len() as u32 {
        if found.len() == n && found.last().is_some_and(|last| logits[id as usize] <= logits[*last as usize])
        {
            continue;
        }
        let at = found.partition_point(|x| before(x, &id).is_lt());
        found.insert(at, id);
        found.truncate(n);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_sum_to_one_and_the_best_come_first() {
        let logits = [1.0f32, 3.0, -2.0, 3.0, 0.5];
        let s = score(&logits, 2, 5);
        assert_eq!(s.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0, 4, 2]);
        let sum: f64 = s.top.iter().map(|t| t.1.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert_eq!(s.logprob, s.top[4].1);
        assert_eq!(score(&logits, 1, 1).top, [(1, score(&logits, 1, 0).logprob)]);
        // Far from zero, and impossible tokens.
        let far = score(&[1e4, f32::NEG_INFINITY], 1, 2);
        assert_eq!(far.top[0].1, 0.0);
        assert_eq!(far.logprob, f64::NEG_INFINITY);
        assert_eq!(scores(&[0.0, 1.0, 1.0, 0.0], 2, &[1, 1], 0)[1].logprob, score(&[1.0, 0.0], 1, 0).logprob);
    }
}
