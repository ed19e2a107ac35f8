//! From logits to a token.
//!
//! Policy: the filters are those of Hugging Face `generate`, in its order: repetition penalty, temperature, top-k, top-p, min-p.
//! Drawing is deterministic: each row has a Philox stream of its own and each token an index in it, so a row's tokens depend
//! neither on its neighbours nor on threads, and a run can be continued. Everything is computed in f64.

use std::collections::HashSet;

use flashlin_tensor::Philox;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How tokens are chosen. The default is greedy: the token with the largest logit, the lowest id among equals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Divides the logits; 0 means greedy.
    pub temperature: f64,
    /// Only tokens whose logit is among the k largest (all that equal the k-th); 0 is off.
    pub top_k: usize,
    /// Only the most likely tokens until their probabilities sum to this (the best always stays); 1 is off.
    pub top_p: f64,
    /// Only tokens at least this fraction as likely as the best; 0 is off.
    pub min_p: f64,
    /// Positive logits of tokens that occurred (prompt included) are divided by this, negative ones multiplied; 1 is off.
    pub repetition_penalty: f64,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Refuses values without a meaning.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the parameter.
    pub fn validate(&self) -> Result<()> {
        let bad = |name: &str, value: f64, expected: &str| {
            Err(Error::argument(name, format!("{value} cannot be used, expected {expected}")))
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", self.temperature, "a number >= 0 (0 is greedy)");
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return bad("top_p", self.top_p, "a probability in [0, 1]");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min_p", self.min_p, "a fraction in [0, 1]");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return bad("repetition_penalty", self.repetition_penalty, "a number > 0 (1 is off)");
        }
        Ok(())
    }

    /// True when nothing is random.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

/// Chooses the tokens of one row.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: Philox,
    row: u64,
    drawn: u64,
    seen: HashSet<u32>,
}

/// A token that is still possible: its scaled logit (0 for the best) and its id.
type Candidate = (f64, u32);

impl Sampler {
    /// A sampler for row `row` of a batch: rows draw from independent streams of the seed.
    ///
    /// # Errors
    /// As [`SamplingParams::validate`].
    pub fn new(params: SamplingParams, row: u64) -> Result<Sampler> {
        params.validate()?;
        let rng = Philox::new(params.seed, row);
        Ok(Sampler { params, rng, row, drawn: 0, seen: HashSet::new() })
    }

    /// Tells which tokens occurred (the prompt), for the repetition penalty. [`Sampler::sample`] adds what it returns itself.
    pub fn observe(&mut self, ids: &[u32]) {
        if self.params.repetition_penalty != 1.0 {
            self.seen.extend(ids);
        }
    }

    /// Number of tokens drawn so far: the position in the random stream.
    pub fn drawn(&self) -> u64 {
        self.drawn
    }

    /// Continues the random stream of an earlier sampler that had drawn this many tokens.
    pub fn skip_to(&mut self, drawn: u64) {
        self.drawn = drawn;
    }

    /// Chooses a token from the logits over the vocabulary. Logits of minus infinity are impossible tokens.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or plus infinity, or when no token is possible.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        if self.params.is_greedy() && self.params.repetition_penalty == 1.0 {
            // The usual case in one pass; what is wrong with other logits is told below.
            let (mut top, mut at, mut bad) = (f32::NEG_INFINITY, 0, false);
            for (id, &x) in logits.iter().enumerate() {
                bad |= x.is_nan() | (x == f32::INFINITY);
                if x > top {
                    (top, at) = (x, id as u32);
                }
            }
            if !bad && top > f32::NEG_INFINITY {
                self.drawn += 1;
                return Ok(at);
            }
        }
        self.check(logits)?;
        let mut scores: Vec<f64> = logits.iter().map(|&x| x as f64).collect();
        let penalty = self.params.repetition_penalty;
        for &id in &self.seen {
            if let Some(score) = scores.get_mut(id as usize) {
                *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
            }
        }
        let id = if self.params.is_greedy() { best(&scores).1 } else { self.draw(&scores) };
        self.drawn += 1;
        self.observe(&[id]);
        Ok(id)
    }

    fn check(&self, logits: &[f32]) -> Result<()> {
        let what = || format!("a logit of row {}", self.row);
        if let Some(i) = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY) {
            let problem = format!("token {i} has {}; the weights or the state are damaged", logits[i]);
            return Err(Error::NotFinite { what: what(), problem });
        }
        if logits.iter().all(|&x| x == f32::NEG_INFINITY) {
            let problem = format!("none of {} tokens is possible", logits.len());
            return Err(Error::NotFinite { what: what(), problem });
        }
        Ok(())
    }

    fn draw(&self, scores: &[f64]) -> u32 {
        let (top, _) = best(scores);
        let scaled = |x: f64| (x - top) / self.params.temperature;
        let mut left: Vec<Candidate> = scores
            .iter()
            .enumerate()
            .filter(|(_, x)| **x > f64::NEG_INFINITY)
            .map(|(id, &x)| (scaled(x), id as u32))
            .collect();
        if self.params.top_k > 0 && self.params.top_k < left.len() {
            keep_top_k(&mut left, self.params.top_k);
        }
        if self.params.top_p < 1.0 {
            keep_top_p(&mut left, self.params.top_p);
        }
        if self.params.min_p > 0.0 {
            // The best has the scaled logit 0, and softmax keeps ratios.
            left.retain(|(x, _)| x.exp() >= self.params.min_p);
        }
        let total: f64 = left.iter().map(|(x, _)| x.exp()).sum();
        let mut rest = self.rng.uniform(self.drawn) * total;
        for (x, id) in &left {
            rest -= x.exp();
            if rest < 0.0 {
                return *id;
            }
        }
        // Only rounding of the running difference leads here: the last possible token it is.
        left.iter().rev().find(|(x, _)| x.exp() > 0.0).map_or(best(scores).1, |(_, id)| *id)
    }
}

/// The largest score and its id, the lowest among equals.
fn best(scores: &[f64]) -> (f64, u32) {
    let mut top = (f64::NEG_INFINITY, 0);
    for (id, &x) in scores.iter().enumerate() {
        if x > top.0 {
            top = (x, id as u32);
        }
    }
    top
}

/// Best first, the lower id among equals.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the k best and all that equal the k-th, in order of their ids.
fn keep_top_k(left: &mut Vec<Candidate>, k: usize) {
    let mut sorted = left.clone();
    let (_, kth, _) = sorted.select_nth_unstable_by(k - 1, order);
    let limit = kth.0;
    left.retain(|(x, _)| *x >= limit);
}

/// Keeps a token where the better ones together have a probability below p.
fn keep_top_p(left: &mut Vec<Candidate>, p: f64) {
    // Summed before reordering, so that the sum does not depend on how many were sorted.
    let wanted = p * left.iter().map(|(x, _)| x.exp()).sum::<f64>();
    let mut sorted = 0;
    let (mut mass, mut keep) = (0.0, 0);
    // Mostly a few tokens suffice, so the vocabulary is sorted piece by piece.
    let mut piece = 64;
    while keep < left.len() && (keep == 0 || mass < wanted) {
        if keep == sorted {
            let end = (sorted + piece).min(left.len());
            let tail = &mut left[sorted..];
            if end - sorted < tail.len() {
                tail.select_nth_unstable_by(end - sorted, order);
            }
            left[sorted..end].sort_unstable_by(order);
            sorted = end;
            piece *= 4;
        }
        mass += left[keep].0.exp();
        keep += 1;
    }
    left.truncate(keep);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(params: SamplingParams) -> Sampler {
        Sampler::new(params, 0).unwrap()
    }

    fn frequencies(params: SamplingParams, logits: &[f32], n: usize) -> Vec<f64> {
        let mut s = sampler(params);
        let mut counts = vec![0; logits.len()];
        for _ in 0..n {
            counts[s.sample(logits).unwrap() as usize] += 1;
        }
        counts.into_iter().map(|c| c as f64 / n as f64).collect()
    }

    fn warm() -> SamplingParams {
        SamplingParams { temperature: 1.0, seed: 7, ..Default::default() }
    }

    /// ln of 0.5, 0.25, 0.15, 0.1 in another order, shifted.
    fn four() -> Vec<f32> {
        [0.25f32, 0.5, 0.1, 0.15].map(|p| p.ln() + 3.0).to_vec()
    }

    fn close(got: &[f64], want: &[f64]) {
        for (g, w) in got.iter().zip(want) {
            let sd = (w * (1.0 - w) / 40_000.0).sqrt();
            assert!((g - w).abs() <= 4.5 * sd, "{got:?} {want:?}");
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        let mut s = sampler(SamplingParams::default());
        assert_eq!(s.sample(&[0.0, 2.0, 2.0, 1.0]).unwrap(), 1);
        assert_eq!(s.sample(&[f32::NEG_INFINITY, -5.0]).unwrap(), 1);
        assert_eq!(s.sample(&[-1.0]).unwrap(), 0);
    }

    #[test]
    fn draws_follow_the_distribution() {
        close(&frequencies(warm(), &four(), 40_000), &[0.25, 0.5, 0.1, 0.15]);
        let half = SamplingParams { temperature: 0.5, ..warm() };
        let squares = [0.0625, 0.25, 0.01, 0.0225];
        let total: f64 = squares.iter().sum();
        close(&frequencies(half, &four(), 40_000), &squares.map(|x| x / total));
        let cold = SamplingParams { temperature: 1e-12, ..warm() };
        assert_eq!(frequencies(cold, &four(), 100), [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn top_k_keeps_ties_and_may_exceed_the_vocabulary() {
        let k = |top_k| SamplingParams { top_k, ..warm() };
        close(&frequencies(k(2), &four(), 40_000), &[1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        close(&frequencies(k(1), &four(), 100), &[0.0, 1.0, 0.0, 0.0]);
        close(&frequencies(k(1000), &four(), 40_000), &[0.25, 0.5, 0.1, 0.15]);
        close(&frequencies(k(2), &[1.0, 0.0, 1.0, 1.0], 40_000), &[1.0 / 3.0, 0.0, 1.0 / 3.0, 1.0 / 3.0]);
    }

    #[test]
    fn top_p_keeps_the_token_that_reaches_it_and_always_the_best() {
        let p = |top_p| SamplingParams { top_p, ..warm() };
        close(&frequencies(p(0.0), &four(), 100), &[0.0, 1.0, 0.0, 0.0]);
        close(&frequencies(p(0.49), &four(), 100), &[0.0, 1.0, 0.0, 0.0]);
        close(&frequencies(p(0.6), &four(), 40_000), &[1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        close(&frequencies(p(0.8), &four(), 40_000), &[0.25 / 0.9, 0.5 / 0.9, 0.0, 0.15 / 0.9]);
        close(&frequencies(p(1.0), &four(), 40_000), &[0.25, 0.5, 0.1, 0.15]);
        // Piecewise sorting gives what sorting everything gives.
        let rng = Philox::new(3, 0);
        let all: Vec<Candidate> = (0..5000).map(|i| (-rng.uniform(i) * 4.0, i as u32)).collect();
        for p in [0.01, 0.3, 0.9, 0.9999] {
            let mut whole = all.clone();
            whole.sort_unstable_by(order);
            let wanted = p * all.iter().map(|c| c.0.exp()).sum::<f64>();
            let (mut mass, mut n) = (0.0, 0);
            while mass < wanted {
                mass += whole[n].0.exp();
                n += 1;
            }
            let mut pieces = all.clone();
            keep_top_p(&mut pieces, p);
            assert_eq!(pieces, whole[..n]);
        }
    }

    #[test]
    fn min_p_compares_with_the_best() {
        let m = |min_p| SamplingParams { min_p, ..warm() };
        close(&frequencies(m(0.25), &four(), 40_000), &[0.25 / 0.9, 0.5 / 0.9, 0.0, 0.15 / 0.9]);
        close(&frequencies(m(1.0), &four(), 100), &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn filters_combine_in_order() {
        // After top-k 3 the rest sums to 0.9, of which 0.5 + 0.25 is 0.83: top-p sees the renormalised probabilities.
        let both = SamplingParams { top_k: 3, top_p: 0.8, ..warm() };
        close(&frequencies(both, &four(), 40_000), &[1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        // The temperature comes before top-p: at a high one more tokens are needed.
        let hot = SamplingParams { temperature: 100.0, top_p: 0.6, ..warm() };
        assert_eq!(frequencies(hot, &four(), 2000).iter().filter(|x| **x > 0.0).count(), 3);
    }

    #[test]
    fn the_repetition_penalty_divides_positive_and_multiplies_negative_logits() {
        let params = SamplingParams { repetition_penalty: 2.0, ..Default::default() };
        let mut s = sampler(params.clone());
        s.observe(&[0, 0, 9]);
        assert_eq!(s.sample(&[3.0, 2.0, 1.0]).unwrap(), 1);
        // 1 has now occurred as well: 1.5, 1.0, 1.2.
        assert_eq!(s.sample(&[3.0, 2.0, 1.2]).unwrap(), 0);
        let mut s = sampler(params);
        s.observe(&[0]);
        assert_eq!(s.sample(&[-1.0, -1.5]).unwrap(), 1);
    }

    #[test]
    fn rows_are_independent_and_runs_repeat_and_continue() {
        let logits = vec![0.0; 1000];
        let run = |row, n: usize| -> Vec<u32> {
            let mut s = Sampler::new(warm(), row).unwrap();
            (0..n).map(|_| s.sample(&logits).unwrap()).collect()
        };
        assert_eq!(run(0, 20), run(0, 20));
        assert_ne!(run(0, 20), run(1, 20));
        let mut s = Sampler::new(warm(), 0).unwrap();
        s.skip_to(12);
        assert_eq!(s.sample(&logits).unwrap(), run(0, 20)[12]);
        assert_eq!(s.drawn(), 13);
    }

    #[test]
    fn bad_logits_and_parameters_are_errors() {
        for params in [SamplingParams::default(), warm()] {
            let mut s = sampler(params);
            for logits in [&[1.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2], &[]] {
                let e = s.sample(logits).unwrap_err();
                assert!(matches!(e, Error::NotFinite { .. }) && e.to_string().contains("row 0"), "{e}");
            }
        }
        type Change = fn(&mut SamplingParams);
        let bad: [(&str, Change); 7] = [
            ("temperature", |p| p.temperature = -1.0),
            ("temperature", |p| p.temperature = f64::NAN),
            ("top_p", |p| p.top_p = 1.5),
            ("top_p", |p| p.top_p = -0.1),
            ("min_p", |p| p.min_p = 2.0),
            ("repetition_penalty", |p| p.repetition_penalty = 0.0),
            ("repetition_penalty", |p| p.repetition_penalty = f64::INFINITY),
        ];
        for (name, change) in bad {
            let mut p = warm();
            change(&mut p);
            let e = Sampler::new(p, 0).unwrap_err();
            assert!(e.to_string().starts_with(name) && e.kind() == crate::ErrorKind::Usage, "{e}");
        }
    }
}
