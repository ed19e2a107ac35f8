//! Asking a model: samples, greedy answers, scores, sums.
//!
//! Policy: the items are all samples of all tasks and lengths, in this order; an item is made when it is asked, so memory does not
//! depend on their number. A sample that does not fit its length is kept as skipped and counts nowhere, as in `lm_eval`.

use std::collections::BTreeMap;

use flashlin::{
    Mode, Model,
    generate::{GenerateOptions, generate},
};
use serde::{Deserialize, Serialize};

use super::{Found, Sample, Samples, Task, score};
use crate::{
    Error, Result,
    items::{OnProgress, Progress},
    store::Store,
    text::Encoder,
};

/// How to ask.
#[derive(Debug, Clone)]
pub struct RulerOptions {
    /// Samples that are answered at once; no result depends on it.
    pub batch: usize,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// Tokens of prompt and answer together: longer prompts lose their beginning.
    pub max_length: Option<usize>,
    /// Prompt tokens of one forward pass.
    pub pass_tokens: usize,
    /// Form of the recurrences.
    pub mode: Mode,
}

/// What one sample gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RulerRecord {
    /// Its task.
    pub task: Task,
    /// Tokens that were aimed at.
    pub max_length: usize,
    /// Its number.
    pub index: usize,
    /// Share of the expected answers; None for a sample that was skipped.
    pub score: Option<f64>,
    /// What the model said after the prompt.
    pub prediction: String,
    /// Why it was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Whether the prompt was cut.
    #[serde(default)]
    pub truncated: bool,
}

/// The mean of a task at a length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskScore {
    /// Task.
    pub task: Task,
    /// Tokens that were aimed at.
    pub max_length: usize,
    /// Mean share of expected answers in 0..=1; None where every sample was skipped.
    pub score: Option<f64>,
    /// Samples that count.
    pub samples: usize,
    /// Samples that did not fit.
    pub skipped: usize,
    /// Prompts that were cut.
    pub truncated: usize,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RulerResult {
    /// Each task at each length.
    pub tasks: Vec<TaskScore>,
    /// Mean over tasks, by length.
    pub mean: BTreeMap<usize, f64>,
}

impl RulerResult {
    fn of(records: &[RulerRecord]) -> RulerResult {
        let mut tasks: Vec<TaskScore> = Vec::new();
        for r in records {
            let at = tasks.iter().position(|t| t.task == r.task && t.max_length == r.max_length);
            let at = at.unwrap_or_else(|| {
                let (task, max_length) = (r.task, r.max_length);
                tasks.push(TaskScore { task, max_length, score: None, samples: 0, skipped: 0, truncated: 0 });
                tasks.len() - 1
            });
            let t = &mut tasks[at];
            t.truncated += usize::from(r.truncated);
            match r.score {
                Some(s) => (t.score, t.samples) = (Some(t.score.unwrap_or(0.0) + s), t.samples + 1),
                None => t.skipped += 1,
            }
        }
        let mut by_length: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for t in &mut tasks {
            t.score = t.score.map(|sum| sum / t.samples as f64);
            by_length.entry(t.max_length).or_default().extend(t.score);
        }
        let mean = |(n, v): (usize, Vec<f64>)| (n, v.iter().sum::<f64>() / v.len() as f64);
        RulerResult { tasks, mean: by_length.into_iter().filter(|(_, v)| !v.is_empty()).map(mean).collect() }
    }
}

impl Samples<'_> {
    /// Sample `id` below [`Samples::len`], or the record of one that does not fit.
    ///
    /// # Errors
    /// An `id` that does not exist; those of the tokenizer.
    pub fn get(&self, id: usize) -> Result<Result<Sample, RulerRecord>> {
        match self.find(id) {
            Some(Found::Sample(s)) => Ok(Ok(s.clone())),
            Some(Found::Made(generator, index)) => Ok(generator.sample(index)?.map_err(|why| RulerRecord {
                task: generator.task,
                max_length: generator.max_length,
                index,
                score: None,
                prediction: String::new(),
                skipped: Some(why),
                truncated: false,
            })),
            None => Err(Error::option("samples", format!("number {id} does not exist"))),
        }
    }
}

/// Asks `model` the first samples of each generator (as many as stand beside it), or given samples. None while other processes
/// have some to do.
///
/// # Errors
/// A `max_length` without room for an answer; those of model, tokenizer and store.
pub fn evaluate(
    model: &Model,
    encoder: &Encoder<'_>,
    samples: Samples<'_>,
    options: &RulerOptions,
    store: &mut Store,
    on_progress: OnProgress<'_>,
) -> Result<Option<RulerResult>> {
    encoder.tokenizer().check_vocab(model.config().base().vocab_size)?;
    let total = samples.len();
    let mut progress = Progress { done: store.done(), total: Some(total), tokens: 0 };
    on_progress(&progress);
    let wanted: Vec<usize> = (0..total).filter(|&id| store.wants(id)).collect();
    // One task at a time in a batch: its answers have one length.
    let mut batch: Vec<(usize, Sample)> = Vec::new();
    let mut ask = |batch: &mut Vec<(usize, Sample)>, store: &mut Store| -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (records, tokens) = answers(model, encoder, batch, options)?;
        batch.clear();
        progress.done += records.len();
        progress.tokens += tokens;
        store.put(records)?;
        on_progress(&progress);
        Ok(())
    };
    for id in wanted {
        match samples.get(id)? {
            Err(skipped) => store.put([(id, skipped)])?,
            Ok(made) => {
                if batch.first().is_some_and(|(_, first)| first.task != made.task) {
                    ask(&mut batch, store)?;
                }
                batch.push((id, made));
            }
        }
        if batch.len() >= options.batch.max(1) {
            ask(&mut batch, store)?;
        }
    }
    ask(&mut batch, store)?;
    Ok(store.finish(total)?.map(|records: Vec<RulerRecord>| RulerResult::of(&records)))
}

fn answers(
    model: &Model,
    encoder: &Encoder<'_>,
    batch: &[(usize, Sample)],
    options: &RulerOptions,
) -> Result<(Vec<(usize, RulerRecord)>, u64)> {
    let max_new_tokens = batch.first().map_or(0, |(_, s)| s.task.answer_tokens());
    let mut prompts = Vec::with_capacity(batch.len());
    let mut cut = Vec::with_capacity(batch.len());
    for (_, sample) in batch {
        let mut ids = encoder.text(&sample.prompt())?;
        let room = options.max_length.unwrap_or(usize::MAX).saturating_sub(max_new_tokens);
        if room == 0 {
            let problem = format!("has no room for an answer of {max_new_tokens} tokens and a prompt");
            return Err(Error::option("max-length", problem));
        }
        let over = ids.len().saturating_sub(room);
        ids.drain(..over);
        cut.push(over > 0);
        prompts.push(ids);
    }
    let generation = GenerateOptions {
        max_new_tokens,
        eos: options.eos.clone(),
        mode: options.mode,
        prefill_tokens: options.pass_tokens,
        ..GenerateOptions::default()
    };
    let (rows, timings) = generate(model, Some(encoder.tokenizer()), &prompts, generation, |_| {})?;
    let record = |(((id, s), row), truncated): (((&usize, &Sample), _), bool)| {
        let row: flashlin::generate::Generated = row;
        (*id, answered(s, row.text, truncated))
    };
    let pairs = batch.iter().map(|(id, s)| (id, s));
    let records = pairs.zip(rows).zip(cut).map(record).collect();
    Ok((records, (timings.prefill_tokens + timings.new_tokens) as u64))
}

fn answered(sample: &Sample, prediction: String, truncated: bool) -> RulerRecord {
    RulerRecord {
        task: sample.task,
        max_length: sample.max_length,
        index: sample.index,
        score: Some(score(&prediction, &sample.outputs)),
        prediction,
        skipped: None,
        truncated,
    }
}

/// Scores answers that another program gave, one for each sample, in order.
///
/// # Errors
/// Another number of answers than samples.
pub fn score_answers(
    samples: Samples<'_>,
    answers: Vec<String>,
    store: &mut Store,
) -> Result<Option<RulerResult>> {
    let total = samples.len();
    if answers.len() != total {
        return Err(Error::option("answers", format!("has {} lines for {total} samples", answers.len())));
    }
    for (id, answer) in answers.into_iter().enumerate().filter(|(id, _)| store.wants(*id)).collect::<Vec<_>>()
    {
        let record = samples.get(id)?.map_or_else(|skipped| skipped, |s| answered(&s, answer, false));
        store.put([(id, record)])?;
    }
    Ok(store.finish(total)?.map(|records: Vec<RulerRecord>| RulerResult::of(&records)))
}
