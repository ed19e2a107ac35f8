//! The rounds of the engine's thread.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc},
    time::Instant,
};

use flashlin::{Logits, ModelState, tokenizer::Tokenizer};
use rayon::prelude::*;

use super::{
    EngineOptions, Event, Failure, Job, Score,
    batch::{Batch, Rows},
    prefix::PrefixCache,
    row::Row,
    scores::scores,
};
use crate::metrics::Metrics;

/// A job whose prompt is being read; its slots are reserved.
struct Reading {
    job: Job,
    slots: Vec<usize>,
    state: ModelState,
    /// Tokens read.
    done: usize,
    scores: Vec<Option<Score>>,
}

/// A slot.
enum Slot {
    Free,
    /// Of a job whose prompt is being read.
    Reserved,
    Busy(Box<Row>),
}

/// Everything that the thread owns.
pub struct Rounds {
    batch: Batch,
    tokenizer: Tokenizer,
    /// Ids that may be chosen: those that the tokenizer can decode.
    choices: usize,
    options: EngineOptions,
    metrics: Arc<Metrics>,
    inbox: mpsc::Receiver<Job>,
    waiting: VecDeque<Job>,
    reading: VecDeque<Reading>,
    slots: Vec<Slot>,
    prefix: PrefixCache,
}

impl Rounds {
    /// Nothing to do yet.
    pub fn new(
        batch: Batch,
        tokenizer: Tokenizer,
        options: EngineOptions,
        metrics: Arc<Metrics>,
        inbox: mpsc::Receiver<Job>,
    ) -> Rounds {
        let slots = (0..batch.slots()).map(|_| Slot::Free).collect();
        Rounds {
            choices: tokenizer.vocab_size(),
            prefix: PrefixCache::new(options.prefix_bytes),
            batch,
            tokenizer,
            options,
            metrics,
            inbox,
            waiting: VecDeque::new(),
            reading: VecDeque::new(),
            slots,
        }
    }

    /// Works until nobody can submit any more and everything is done.
    pub fn run(mut self) {
        loop {
            let idle = self.waiting.is_empty() && self.reading.is_empty() && self.busy() == 0;
            if idle {
                self.show();
                match self.inbox.recv() {
                    Ok(job) => self.waiting.push_back(job),
                    Err(_) => return,
                }
            }
            self.waiting.extend(self.inbox.try_iter());
            let begin = Instant::now();
            self.drop_abandoned();
            self.admit();
            let read = self.read_chunk();
            let stepped = self.step();
            self.show();
            if stepped > 0.0 {
                // What a step costs besides the call of the model; the reading of prompts is not part of it.
                self.metrics.decode_seconds.inc_by(stepped);
                self.metrics
                    .overhead_seconds
                    .inc_by((begin.elapsed().as_secs_f64() - stepped - read).max(0.0));
            }
        }
    }

    fn busy(&self) -> usize {
        self.slots.iter().filter(|s| matches!(s, Slot::Busy(_))).count()
    }

    fn show(&self) {
        let m = &self.metrics;
        m.active.set(self.busy() as i64);
        m.reading.set(self.reading.len() as i64);
        m.waiting.set(self.waiting.len() as i64);
        m.prefix_bytes.set(self.prefix.bytes() as i64);
        m.prefix_states.set(self.prefix.len() as i64);
    }

    /// Ends what nobody waits for, or what has taken too long.
    fn drop_abandoned(&mut self) {
        let now = Instant::now();
        let metrics = self.metrics.clone();
        let over = |job: &Job| {
            if job.events.is_closed() {
                metrics.cancelled.inc();
                return true;
            }
            let late = now >= job.deadline;
            if late {
                drop(job.events.send(Event::Failed(Failure::Timeout)));
            }
            late
        };
        self.waiting.retain(|job| !over(job));
        let (kept, gone): (VecDeque<Reading>, VecDeque<Reading>) =
            self.reading.drain(..).partition(|r| !over(&r.job));
        self.reading = kept;
        gone.into_iter().flat_map(|r| r.slots).for_each(|slot| self.free(slot));
        for slot in 0..self.slots.len() {
            if matches!(&self.slots[slot], Slot::Busy(row) if over(&row.job)) {
                self.free(slot);
            }
        }
    }

    fn free(&mut self, slot: usize) {
        self.slots[slot] = Slot::Free;
        if let Err(e) = self.batch.leave(slot) {
            tracing::error!("slot {slot}: {e}");
        }
    }

    /// Jobs enter in the order in which they came.
    fn admit(&mut self) {
        while let Some(job) = self.waiting.front() {
            let free: Vec<usize> =
                (0..self.slots.len()).filter(|&s| matches!(self.slots[s], Slot::Free)).collect();
            if free.len() < job.n {
                return;
            }
            let Some(job) = self.waiting.pop_front() else { return };
            match self.start(&job) {
                Ok((state, done)) => {
                    let slots = free[..job.n].to_vec();
                    slots.iter().for_each(|&s| self.slots[s] = Slot::Reserved);
                    self.reading.push_back(Reading { job, slots, state, done, scores: vec![None] });
                }
                Err(e) => fail(&job, &e),
            }
        }
    }

    /// The state that a job begins with, and the tokens that are in it.
    fn start(&mut self, job: &Job) -> flashlin::Result<(ModelState, usize)> {
        // Scores need the logits of the whole prompt.
        if self.options.prefix_bytes > 0 && !job.prompt_logprobs {
            if let Some((state, done)) = self.prefix.find(&job.prompt)? {
                self.metrics.prefix_hits.inc();
                self.metrics.tokens("cached").inc_by(done as u64);
                return Ok((state, done));
            }
            self.metrics.prefix_misses.inc();
        }
        Ok((self.batch.fresh()?, 0))
    }

    /// Reads about a chunk of tokens of prompts, each prompt in calls of its own; returns the seconds.
    fn read_chunk(&mut self) -> f64 {
        let begin = Instant::now();
        let mut left = self.options.chunk;
        while left > 0
            && let Some(mut r) = self.reading.pop_front()
        {
            let from = r.done;
            match self.read_piece(&mut r) {
                Err(e) => {
                    fail(&r.job, &e);
                    r.slots.iter().for_each(|&slot| self.free(slot));
                }
                Ok(None) => {
                    left = left.saturating_sub(r.done - from);
                    self.reading.push_back(r);
                }
                Ok(Some(logits)) => {
                    left = left.saturating_sub(r.done - from);
                    self.begin(r, &logits);
                }
            }
        }
        begin.elapsed().as_secs_f64()
    }

    /// The next piece of a prompt: up to the end of the chunk that it is in. Logits after the last.
    fn read_piece(&mut self, r: &mut Reading) -> flashlin::Result<Option<Rows>> {
        let chunk = self.options.chunk;
        let end = ((r.done / chunk + 1) * chunk).min(r.job.prompt.len());
        let last = end == r.job.prompt.len();
        let logits = match (r.job.prompt_logprobs, last) {
            (true, _) => Logits::All,
            (false, true) => Logits::Last(1),
            (false, false) => Logits::None,
        };
        let rows = self.batch.read(&mut r.state, &r.job.prompt[r.done..end], logits)?;
        self.metrics.calls("prompt").inc();
        self.metrics.tokens("prompt").inc_by((end - r.done) as u64);
        if let (true, Some(rows)) = (r.job.prompt_logprobs, &rows) {
            // What stands after each token; after the last one of the prompt nothing does yet.
            let known = &r.job.prompt[r.done + 1..(end + 1).min(r.job.prompt.len())];
            let all = scores(rows.all()?, rows.vocab(), known, r.job.logprobs.unwrap_or(0));
            r.scores.extend(all.into_iter().map(Some));
        }
        r.done = end;
        if self.prefix.wants(&r.job.prompt, end, chunk) && !r.job.prompt_logprobs {
            let gone = self.prefix.insert(&r.job.prompt[..end], r.state.fork()?);
            self.metrics.prefix_evictions.inc_by(gone as u64);
        }
        Ok(if last { rows } else { None })
    }

    /// The prompt is read: first tokens, and into the slots.
    fn begin(&mut self, r: Reading, logits: &Rows) {
        let Reading { job, slots, state, scores, .. } = r;
        if job.prompt_logprobs {
            drop(job.events.send(Event::Prompt { first: job.first, scores }));
        }
        self.metrics.first_token.observe(job.since.elapsed().as_secs_f64());
        let job = Arc::new(job);
        for (i, slot) in slots.into_iter().enumerate() {
            let begun = Row::new(&job, job.first + i, &self.tokenizer).and_then(|mut row| {
                // Several rows of logits where the prompt's were asked for: the last one counts.
                let rows = logits.all()?.len() / logits.vocab();
                let heard = row.choose(logits.row(rows - 1)?, self.choices)?;
                self.metrics.tokens("generated").inc_by(u64::from(job.max_tokens > 0));
                if heard && row.finish.is_none() {
                    self.batch.enter(slot, &state)?;
                    return Ok(Some(row));
                }
                Ok(None)
            });
            match begun {
                Ok(Some(row)) => self.slots[slot] = Slot::Busy(Box::new(row)),
                Ok(None) => self.free(slot),
                Err(e) => {
                    fail(&job, &e);
                    self.free(slot);
                }
            }
        }
    }

    /// One call of the model for all sequences in slots; returns its seconds, 0 where there are none.
    fn step(&mut self) -> f64 {
        let mut rows: Vec<(usize, &mut Row)> = Vec::new();
        for (i, slot) in self.slots.iter_mut().enumerate() {
            if let Slot::Busy(row) = slot {
                rows.push((i, row));
            }
        }
        if rows.is_empty() {
            return 0.0;
        }
        let next: Vec<(usize, u32)> = rows.iter().map(|(slot, row)| (*slot, row.next)).collect();
        let begin = Instant::now();
        let logits = self.batch.step(&next);
        let seconds = begin.elapsed().as_secs_f64();
        self.metrics.calls("decode").inc();
        self.metrics.step_rows.observe(next.len() as f64);
        let gone: Vec<usize> = match logits {
            Err(e) => {
                rows.iter().for_each(|(_, row)| fail(&row.job, &e));
                next.iter().map(|(slot, _)| *slot).collect()
            }
            Ok(logits) => {
                self.metrics.tokens("generated").inc_by(next.len() as u64);
                let choices = self.choices;
                let one = |(i, (slot, row)): (usize, (usize, &mut Row))| {
                    let heard = logits.row(i).and_then(|l| row.choose(l, choices)).unwrap_or_else(|e| {
                        fail(&row.job, &e);
                        false
                    });
                    (!heard || row.finish.is_some()).then_some(slot)
                };
                rows.into_par_iter().enumerate().filter_map(one).collect()
            }
        };
        gone.into_iter().for_each(|slot| self.free(slot));
        seconds
    }
}

fn fail(job: &Job, e: &flashlin::Error) {
    tracing::error!("a request failed: {e}");
    drop(job.events.send(Event::Failed(Failure::Internal(e.to_string()))));
}
