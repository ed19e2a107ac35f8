//! Synthetic tasks of token ids: multi-query associative recall (Zoology, arXiv:2312.04927) and copying.
//!
//! * `mqar`: `k1 v1 k2 v2 .. kN vN`, then some of the keys again, each once, among random tokens; after a key comes its value. Keys are
//!   from the lower half of the vocabulary, values from the upper one. The gaps before the repeated keys follow a power law, so most
//!   are asked for soon.
//! * `copy`: random tokens, a mark (id 0), the same tokens again.
//!
//! Policy: a sequence depends on options, seed and its number alone. Only the places where the answer is known are counted.

use flashlin::{ForwardOptions, Input, Logits, Mode, Model};
use flashlin_ops::loss::{LossOptions, Reduction, cross_entropy};
use flashlin_tensor::{Philox, Tensor, no_grad};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    items::{OnProgress, Progress},
    store::Store,
};

/// Label of places that do not count.
pub const IGNORE: i64 = -100;
/// Logits of one pass: 64 MiB of f32.
const LOGITS: usize = 1 << 24;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Recall {
    /// Multi-query associative recall.
    Mqar {
        /// Pairs of key and value, N.
        pairs: usize,
        /// Tokens of a sequence, at least 4 N.
        len: usize,
        /// Exponent a of the gaps' distribution p(g) ~ a g^(a - 1).
        power: f64,
    },
    /// Copying.
    Copy {
        /// Tokens to copy.
        len: usize,
    },
}

/// A sequence: what a model reads, and what is right after each token ([`IGNORE`]: it does not count).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// One label a token: the token that follows it.
    pub labels: Vec<i64>,
}

/// A task over a vocabulary.
#[derive(Debug, Clone, Copy)]
pub struct RecallTask {
    what: Recall,
    vocab: usize,
    seed: u64,
}

impl RecallTask {
    /// The task over ids `0..vocab`.
    ///
    /// # Errors
    /// Sizes that do not fit each other.
    pub fn new(what: Recall, vocab: usize, seed: u64) -> Result<RecallTask> {
        let half = vocab / 2;
        match what {
            Recall::Mqar { pairs, .. } if pairs == 0 || pairs >= half => Err(Error::option(
                "pairs",
                format!(
                    "is {pairs}, expected 1 to {} (below half of the vocabulary of {vocab})",
                    half.saturating_sub(1)
                ),
            )),
            Recall::Mqar { pairs, len, .. } if len < 4 * pairs => Err(Error::option(
                "length",
                format!("is {len}, expected at least {} (4 tokens a pair)", 4 * pairs),
            )),
            Recall::Mqar { power, .. } if !(power.is_finite() && power > 0.0) => {
                Err(Error::option("power", format!("is {power}, expected a number above 0")))
            }
            Recall::Copy { len: 0 } => Err(Error::option("length", "expected at least 1")),
            Recall::Copy { .. } if vocab < 3 => Err(Error::option("vocab", "expected at least 3 ids")),
            _ => Ok(RecallTask { what, vocab, seed }),
        }
    }

    /// Tokens of a sequence.
    pub fn tokens(&self) -> usize {
        match self.what {
            Recall::Mqar { len, .. } => len,
            Recall::Copy { len } => 2 * len,
        }
    }

    /// Sequence `index` of the part `part` ("train", "test": parts share no stream).
    pub fn sequence(&self, part: &str, index: u64) -> Sequence {
        let random = Philox::named(self.seed, &format!("{part}/{index}"));
        match self.what {
            Recall::Mqar { pairs, len, power } => self.mqar(pairs, len, power, random),
            Recall::Copy { len } => self.copy(len, random),
        }
    }

    fn copy(&self, len: usize, random: Philox) -> Sequence {
        let word = |i: u64| 1 + random.below(i, self.vocab as u64 - 1) as u32;
        let words: Vec<u32> = (0..len as u64).map(word).collect();
        let tokens = words.iter().copied().chain([0]).chain(words[..len - 1].iter().copied()).collect();
        let labels = std::iter::repeat_n(IGNORE, len).chain(words.iter().map(|&w| i64::from(w))).collect();
        Sequence { tokens, labels }
    }

    fn mqar(&self, pairs: usize, len: usize, power: f64, random: Philox) -> Sequence {
        let mut next = 0..;
        let mut draw = || next.next().unwrap_or(0);
        let half = self.vocab / 2;
        // Keys 1..half, values half..vocab, all different.
        let keys = pick(pairs, half - 1, |n| random.below(draw(), n as u64) as usize);
        let values = pick(pairs, self.vocab - half, |n| random.below(draw(), n as u64) as usize);
        let (keys, values) = (keys.iter().map(|k| k + 1), values.iter().map(|v| v + half));
        let kv: Vec<(usize, usize)> = keys.zip(values).collect();
        let mut tokens: Vec<u32> = kv.iter().flat_map(|&(k, v)| [k as u32, v as u32]).collect();
        tokens.extend((tokens.len()..len).map(|_| random.below(draw(), self.vocab as u64) as u32));
        let mut labels = vec![IGNORE; len];
        // Different gaps, drawn by weight: the smallest of exponential times.
        let places = (len - 2 * pairs) / 2;
        let time = |g: usize, u: f64| -(1.0 - u).ln() / (power * ((g + 1) as f64).powf(power - 1.0));
        let mut times: Vec<(f64, usize)> =
            (0..places).map(|g| (time(g, random.uniform(draw())), g)).collect();
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (&(k, v), (_, gap)) in kv.iter().zip(times) {
            let at = 2 * pairs + 2 * gap;
            tokens[at] = k as u32;
            labels[at] = v as i64;
        }
        Sequence { tokens, labels }
    }
}

/// `k` different numbers below `n`.
fn pick(k: usize, n: usize, mut below: impl FnMut(usize) -> usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    for i in 0..k {
        all.swap(i, i + below(n - i));
    }
    all.truncate(k);
    all
}

/// What one sequence gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RecallRecord {
    /// Places that count.
    pub places: u64,
    /// Places where the most likely token is the right one.
    pub right: u64,
    /// Negative log-probability of the right tokens in nats.
    pub nats: f64,
}

/// The result.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RecallResult {
    /// Sequences.
    pub sequences: usize,
    /// Places that count.
    pub places: u64,
    /// Share of places with the right token.
    pub accuracy: f64,
    /// Share of sequences with all places right.
    pub exact: f64,
    /// Mean nats a place.
    pub loss: f64,
}

impl RecallResult {
    fn of(records: &[RecallRecord]) -> RecallResult {
        let sum = |f: fn(&RecallRecord) -> u64| records.iter().map(f).sum::<u64>();
        let places = sum(|r| r.places);
        RecallResult {
            sequences: records.len(),
            places,
            accuracy: sum(|r| r.right) as f64 / places as f64,
            exact: sum(|r| u64::from(r.right == r.places)) as f64 / records.len() as f64,
            loss: records.iter().map(|r| r.nats).sum::<f64>() / places as f64,
        }
    }
}

/// Asks `model` the first `sequences` test sequences, `batch` at a time (no result depends on it). None while other processes have
/// some to do.
///
/// # Errors
/// A vocabulary that the model does not have; those of model and store.
pub fn evaluate(
    model: &Model,
    task: &RecallTask,
    sequences: usize,
    batch: Option<usize>,
    mode: Mode,
    store: &mut Store,
    on_progress: OnProgress<'_>,
) -> Result<Option<RecallResult>> {
    let vocab = model.config().base().vocab_size;
    if task.vocab > vocab {
        return Err(Error::option("vocab", format!("is {}, but the model has {vocab} ids", task.vocab)));
    }
    let fits = LOGITS / vocab / task.tokens();
    let batch = batch.unwrap_or(usize::MAX).min(fits).clamp(1, 64);
    let wanted: Vec<usize> = (0..sequences).filter(|&id| store.wants(id)).collect();
    let mut progress = Progress { done: store.done(), total: Some(sequences), tokens: 0 };
    on_progress(&progress);
    for ids in wanted.chunks(batch) {
        let items: Vec<Sequence> = ids.iter().map(|&id| task.sequence("test", id as u64)).collect();
        let records = answers(model, &items, mode)?;
        store.put(ids.iter().copied().zip(records))?;
        progress.done += ids.len();
        progress.tokens += (ids.len() * task.tokens()) as u64;
        on_progress(&progress);
    }
    Ok(store.finish(sequences)?.map(|records: Vec<RecallRecord>| RecallResult::of(&records)))
}

fn answers(model: &Model, items: &[Sequence], mode: Mode) -> Result<Vec<RecallRecord>> {
    let len = items.first().map_or(0, |s| s.tokens.len());
    let ids: Vec<i64> = items.iter().flat_map(|s| &s.tokens).map(|&id| i64::from(id)).collect();
    let labels: Vec<i64> = items.iter().flat_map(|s| &s.labels).copied().collect();
    let input = Input::ids(Tensor::from_vec(ids, &[items.len(), len])?);
    let options = ForwardOptions { mode, logits: Logits::All, ..ForwardOptions::default() };
    let each = LossOptions { reduction: Reduction::None, ..LossOptions::default() };
    let (best, losses) = no_grad(|| -> Result<_> {
        let logits = model.forward(&input, None, &options)?.logits;
        let logits = logits.ok_or_else(|| flashlin::Error::argument("logits", "were not returned"))?;
        let targets = Tensor::from_vec(labels.clone(), &[items.len(), len])?;
        let losses = cross_entropy(&logits, &targets, &each)?.loss;
        Ok((logits.tensor().argmax()?.to_vec::<i64>()?, losses.tensor().to_f64_vec()?))
    })?;
    let record = |row: usize| {
        let places = (row * len..(row + 1) * len).filter(|&i| labels[i] != IGNORE);
        let mut r = RecallRecord { places: 0, right: 0, nats: 0.0 };
        for i in places {
            r.places += 1;
            r.right += u64::from(best[i] == labels[i]);
            r.nats += losses[i];
        }
        match r.nats.is_finite() {
            true => Ok(r),
            false => Err(Error::NotFinite { what: "a sequence".into() }),
        }
    };
    (0..items.len()).map(record).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{store::Shard, testing};

    const MQAR: Recall = Recall::Mqar { pairs: 8, len: 64, power: 0.01 };

    #[test]
    fn every_question_has_its_answer_before_it() {
        let task = RecallTask::new(MQAR, 100, 5).unwrap();
        let mut gaps = Vec::new();
        for index in 0..50 {
            let s = task.sequence("test", index);
            assert_eq!((s.tokens.len(), s.labels.len()), (64, 64));
            assert!(s.tokens.iter().all(|&t| t < 100));
            let known: HashMap<u32, u32> = s.tokens[..16].chunks(2).map(|kv| (kv[0], kv[1])).collect();
            assert_eq!(known.len(), 8);
            assert!(known.iter().all(|(&k, &v)| (1..50).contains(&k) && (50..100).contains(&v)));
            let asked: Vec<usize> = (0..64).filter(|&i| s.labels[i] != IGNORE).collect();
            assert!(asked.len() == 8 && asked.iter().all(|&i| i >= 16 && i % 2 == 0));
            assert!(asked.iter().all(|&i| i64::from(known[&s.tokens[i]]) == s.labels[i]));
            gaps.extend(asked.iter().map(|i| (i - 16) / 2));
        }
        // Near gaps are drawn more often than far ones.
        let near = gaps.iter().filter(|g| **g < 6).count();
        assert!(near * 2 > gaps.len(), "{near} of {}", gaps.len());
        assert_ne!(task.sequence("test", 0), task.sequence("train", 0));
        assert_eq!(task.sequence("test", 3), task.sequence("test", 3));
    }

    #[test]
    fn copies_are_copies() {
        let task = RecallTask::new(Recall::Copy { len: 5 }, 7, 5).unwrap();
        let s = task.sequence("test", 1);
        assert_eq!((s.tokens.len(), s.tokens[5]), (10, 0));
        let said: Vec<i64> = s.tokens[..5].iter().map(|&t| i64::from(t)).collect();
        assert_eq!((&s.labels[5..], &s.tokens[6..]), (&said[..], &s.tokens[..4]));
        assert!(
            s.labels[..5].iter().all(|&l| l == IGNORE) && s.tokens[..5].iter().all(|&t| (1..7).contains(&t))
        );
    }

    #[test]
    fn a_model_that_knows_nothing_guesses_and_no_batch_changes_it() {
        let model = testing::model("gla");
        let task = RecallTask::new(MQAR, 259, 5).unwrap();
        let run = |batch| {
            let mut store = Store::open(None, Shard::default(), Default::default()).unwrap();
            evaluate(&model, &task, 40, Some(batch), Mode::Chunk, &mut store, &mut |_| {}).unwrap().unwrap()
        };
        let (one, many) = (run(1), run(16));
        assert_eq!((one.places, one.sequences), (320, 40));
        assert!(one.accuracy < 0.1 && one.loss > 4.0, "{one:?}");
        assert!(one.right_as(&many), "{one:?} {many:?}");
    }

    impl RecallResult {
        fn right_as(&self, other: &RecallResult) -> bool {
            self.accuracy == other.accuracy && (self.loss - other.loss).abs() < 1e-5 * self.loss
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let error = |what, vocab| RecallTask::new(what, vocab, 1).unwrap_err().to_string();
        assert!(error(MQAR, 16).starts_with("pairs: is 8, expected 1 to 7"));
        assert!(error(Recall::Mqar { pairs: 8, len: 31, power: 0.01 }, 100).starts_with("length: is 31"));
        assert!(error(Recall::Mqar { pairs: 8, len: 64, power: 0.0 }, 100).starts_with("power"));
        assert!(error(Recall::Copy { len: 0 }, 100).starts_with("length"));
    }
}
