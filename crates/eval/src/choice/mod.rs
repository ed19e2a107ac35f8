//! Multiple choice: which continuation of a question a model finds most likely.
//!
//! The choices' log-likelihoods after `prompt + delimiter` are compared as they are (`acc`), divided by the choice's number of
//! characters (`acc_norm`, as `lm_eval` 0.4.13 computes it) and divided by its number of UTF-8 bytes (`acc_bytes`; the same as
//! `acc_norm` for ASCII). The first of equals wins.
//!
//! Policy: the prompts of an item depend on the data, the seed and the item alone, so items can be computed in any order.

mod docs;

use flashlin::{Mode, Model};
use flashlin_tensor::Philox;
use serde::{Deserialize, Serialize};

pub use docs::{Doc, Schema, read};

use crate::{
    Error, Result,
    items::{Collector, OnProgress},
    score::{Batching, Score, Scorer},
    store::Store,
    text::Encoder,
};

/// How examples are chosen from their pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shots {
    /// By the seed, others for each question.
    #[default]
    Random,
    /// The first ones of the pool.
    First,
}

/// How to evaluate.
#[derive(Debug, Clone)]
pub struct ChoiceOptions {
    /// Answered questions before each question.
    pub num_fewshot: usize,
    /// How they are chosen.
    pub shots: Shots,
    /// Seed of the choice of examples.
    pub seed: u64,
    /// What stands between a question and an answer.
    pub delimiter: String,
    /// Tokens that the model reads at most: the context is cut at its beginning.
    pub max_length: Option<usize>,
    /// Questions to answer: the first ones.
    pub limit: Option<usize>,
    /// How requests become passes; no result depends on it.
    pub batching: Batching,
    /// Form of the recurrences.
    pub mode: Mode,
}

impl Default for ChoiceOptions {
    fn default() -> Self {
        ChoiceOptions {
            num_fewshot: 0,
            shots: Shots::default(),
            seed: 1234,
            delimiter: " ".into(),
            max_length: None,
            limit: None,
            batching: Batching::default(),
            mode: Mode::default(),
        }
    }
}

/// What one question gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoiceRecord {
    /// Log-likelihood of each choice in nats.
    pub logprobs: Vec<f64>,
    /// Whether each choice is what greedy decoding would produce.
    pub greedy: Vec<bool>,
    /// The right choice.
    pub gold: usize,
    /// The most likely choice.
    pub pred: usize,
    /// The most likely choice by character.
    pub pred_norm: usize,
    /// The most likely choice by byte.
    pub pred_bytes: usize,
    /// Whether a context was cut to fit `max_length`.
    pub truncated: bool,
}

/// A share of questions with its standard error (None for a single question).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    /// Right ones in 0..=1.
    pub value: f64,
    /// Sample standard deviation over the root of the number of questions.
    pub stderr: Option<f64>,
}

impl Accuracy {
    /// Of single outcomes in 0..=1.
    pub fn of(values: impl ExactSizeIterator<Item = f64> + Clone) -> Accuracy {
        let n = values.len() as f64;
        let value = values.clone().sum::<f64>() / n;
        let squares: f64 = values.map(|v| (v - value).powi(2)).sum();
        Accuracy { value, stderr: (n > 1.0).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt()) }
    }
}

/// The result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoiceResult {
    /// Questions.
    pub items: usize,
    /// By log-likelihood.
    pub acc: Accuracy,
    /// By log-likelihood a character.
    pub acc_norm: Accuracy,
    /// By log-likelihood a byte.
    pub acc_bytes: Accuracy,
    /// Questions whose context was cut.
    pub truncated: usize,
}

impl ChoiceResult {
    fn of(records: &[ChoiceRecord]) -> ChoiceResult {
        let share = |pred: fn(&ChoiceRecord) -> usize| {
            Accuracy::of(records.iter().map(|r| f64::from(u8::from(pred(r) == r.gold))))
        };
        ChoiceResult {
            items: records.len(),
            acc: share(|r| r.pred),
            acc_norm: share(|r| r.pred_norm),
            acc_bytes: share(|r| r.pred_bytes),
            truncated: records.iter().filter(|r| r.truncated).count(),
        }
    }
}

/// Asks `model` all questions; `pool` holds the examples (None: the questions themselves, without the one that is asked). None while
/// other processes have some to do.
///
/// # Errors
/// A pool that is too small, a choice that is longer than `max_length`, those of model, tokenizer and store.
pub fn evaluate(
    model: &Model,
    encoder: &Encoder<'_>,
    docs: &[Doc],
    pool: Option<&[Doc]>,
    options: &ChoiceOptions,
    store: &mut Store,
    on_progress: OnProgress<'_>,
) -> Result<Option<ChoiceResult>> {
    encoder.tokenizer().check_vocab(model.config().base().vocab_size)?;
    let total = docs.len().min(options.limit.unwrap_or(usize::MAX));
    if total == 0 {
        return Err(Error::option("limit", "leaves no question"));
    }
    let prompts = Prompts { docs, pool, options };
    prompts.check()?;
    let scorer = Scorer::new(model, options.mode, options.batching);
    let mut collector = Collector::new(scorer, store, Some(total), record, on_progress);
    for (id, doc) in docs[..total].iter().enumerate() {
        if !collector.wants(id) {
            continue;
        }
        let prompt = prompts.prompt(id);
        let mut truncated = false;
        let mut requests = Vec::with_capacity(doc.choices.len());
        for choice in &doc.choices {
            let mut request = encoder.pair(&prompt, &format!("{}{choice}", options.delimiter))?;
            if let Some(max) = options.max_length {
                truncated |= request.truncate(max)?;
            }
            requests.push(request);
        }
        collector.push(id, (doc, truncated), requests)?;
    }
    collector.flush()?;
    Ok(store.finish(total)?.map(|records: Vec<ChoiceRecord>| ChoiceResult::of(&records)))
}

fn record((doc, truncated): (&Doc, bool), scores: Vec<Score>) -> Result<ChoiceRecord> {
    let logprobs: Vec<f64> = scores.iter().map(Score::sum).collect();
    let by = |size: fn(&str) -> usize| {
        let each = logprobs.iter().zip(&doc.choices).map(|(l, c)| l / size(c) as f64);
        first_max(each)
    };
    Ok(ChoiceRecord {
        greedy: scores.iter().map(|s| s.greedy).collect(),
        gold: doc.gold,
        pred: by(|_| 1),
        pred_norm: by(|c| c.chars().count()),
        pred_bytes: by(str::len),
        logprobs,
        truncated,
    })
}

/// Index of the largest, the first of equals.
fn first_max(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, v) in values.enumerate() {
        if v > best.1 {
            best = (i, v);
        }
    }
    best.0
}

/// Questions behind their examples.
struct Prompts<'a> {
    docs: &'a [Doc],
    pool: Option<&'a [Doc]>,
    options: &'a ChoiceOptions,
}

impl Prompts<'_> {
    fn check(&self) -> Result<()> {
        let n = self.options.num_fewshot;
        // From the questions themselves, one is missing; equal ones may be.
        let room = self.pool.map_or(self.docs.len().saturating_sub(1), <[Doc]>::len);
        if n > room {
            let problem = format!("is {n}, but there are {room} questions to take examples from");
            return Err(Error::option("num-fewshot", problem));
        }
        Ok(())
    }

    /// Examples and question: each example with its right answer and an empty line after it.
    fn prompt(&self, id: usize) -> String {
        let (delimiter, doc) = (&self.options.delimiter, &self.docs[id]);
        let shots = self.shots(id);
        let shot = |d: &&Doc| format!("{}{delimiter}{}\n\n", d.query, d.choices[d.gold]);
        shots.iter().map(shot).chain([doc.query.clone()]).collect()
    }

    fn shots(&self, id: usize) -> Vec<&Doc> {
        let (n, asked) = (self.options.num_fewshot, &self.docs[id]);
        let pool = self.pool.unwrap_or(self.docs);
        let allowed = |d: &&Doc| self.pool.is_some() || *d != asked;
        match self.options.shots {
            Shots::First => pool.iter().filter(allowed).take(n).collect(),
            Shots::Random => {
                let random = Philox::new(self.options.seed, id as u64);
                let mut order: Vec<usize> = (0..pool.len()).collect();
                let mut picked = Vec::with_capacity(n);
                // Fisher and Yates, as far as examples are needed.
                for i in 0..order.len() {
                    if picked.len() == n {
                        break;
                    }
                    let j = i + random.below(i as u64, (order.len() - i) as u64) as usize;
                    order.swap(i, j);
                    picked.extend(Some(&pool[order[i]]).filter(allowed));
                }
                picked
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
