//! The loop: consume, choose, decode, stop.

use std::{collections::VecDeque, time::Instant};

use super::{Event, Finish, GenerateOptions, Generated, Session, Timings, text::RowText};
use crate::{Error, Model, Result, sample::Sampler, tokenizer::Tokenizer};

/// A run of generation: an iterator over [`Event`]s, each computed when asked for. Dropping it early is fine;
/// [`Generator::finish`] gives the session back.
pub struct Generator<'m> {
    model: &'m Model,
    /// Ids that may be chosen: those that the tokenizer can decode.
    choices: usize,
    options: GenerateOptions,
    session: Session,
    rows: Vec<RunRow>,
    events: VecDeque<Event>,
    timings: Timings,
    started: bool,
    failed: bool,
}

/// What a row is during a run.
struct RunRow {
    start: usize,
    sampler: Sampler,
    text: Option<RowText>,
    finish: Option<Finish>,
}

impl<'m> Generator<'m> {
    /// A run that continues `session`. Without a tokenizer there is no text (and no stop strings).
    ///
    /// # Errors
    /// Options that cannot be used, a tokenizer with more ids than the model has, a row without tokens.
    pub fn new(
        model: &'m Model,
        tokenizer: Option<&Tokenizer>,
        session: Session,
        options: GenerateOptions,
    ) -> Result<Generator<'m>> {
        session.check()?;
        let vocab = model.config().base().vocab_size;
        if let Some(t) = tokenizer {
            t.check_vocab(vocab)?;
        } else if !options.stop.is_empty() {
            return Err(Error::argument("stop", "strings need a tokenizer, and there is none"));
        }
        let choices = tokenizer.map_or(vocab, |t| t.vocab_size());
        let row = |row: &super::session::Row| -> Result<RunRow> {
            let mut sampler = Sampler::new(options.sampling.clone(), row.stream)?;
            sampler.observe(&row.tokens);
            sampler.skip_to(row.drawn);
            let text = tokenizer.map(|t| RowText::new(t, &row.tokens, &options.stop)).transpose()?;
            Ok(RunRow { start: row.tokens.len(), sampler, text, finish: None })
        };
        let rows = session.rows.iter().map(row).collect::<Result<Vec<_>>>()?;
        if let Some(i) = session.rows.iter().position(|r| r.tokens.is_empty()) {
            return Err(Error::argument(
                "prompt",
                format!("of row {i} is empty, expected at least one token"),
            ));
        }
        Ok(Generator {
            model,
            choices,
            options,
            session,
            rows,
            events: VecDeque::new(),
            timings: Timings::default(),
            started: false,
            failed: false,
        })
    }

    /// One step of all unfinished rows.
    fn step(&mut self) -> Result<()> {
        let active: Vec<usize> = (0..self.rows.len()).filter(|&i| self.rows[i].finish.is_none()).collect();
        let begin = Instant::now();
        let piece = self.options.prefill_tokens.max(1);
        let consumed = self.session.advance(self.model, &active, self.options.mode, piece)?;
        let first = !std::mem::replace(&mut self.started, true);
        let after = Instant::now();
        if first {
            self.timings.prefill_tokens = consumed;
            self.timings.prefill = after - begin;
        }
        for i in active {
            let event = self.choose(i)?;
            self.timings.new_tokens += usize::from(event.id.is_some());
            self.events.push_back(event);
        }
        self.timings.decode += if first { after.elapsed() } else { begin.elapsed() };
        Ok(())
    }

    /// The next token of a row.
    fn choose(&mut self, i: usize) -> Result<Event> {
        let (run, row) = (&mut self.rows[i], &mut self.session.rows[i]);
        let mut event = Event { row: i, id: None, text: String::new(), finish: None };
        if self.options.max_new_tokens == 0 {
            event.finish = Some(Finish::Length);
            run.finish = event.finish.clone();
            return Ok(event);
        }
        let logits = row.logits.as_deref().and_then(|l| l.get(..self.choices));
        let logits = logits
            .ok_or_else(|| Error::state(format!("row {i} has no logits for {} tokens", self.choices)))?;
        let id = run.sampler.sample(logits)?;
        row.tokens.push(id);
        row.logits = None;
        row.drawn = run.sampler.drawn();
        event.id = Some(id);
        let mut finish = None;
        if self.options.eos.contains(&id) {
            finish = Some(Finish::Eos(id));
        } else {
            if let Some(text) = &mut run.text {
                let (new, stop) = text.push(id)?;
                event.text = new;
                finish = stop.map(Finish::Stop);
            }
            if finish.is_none() && row.tokens.len() - run.start >= self.options.max_new_tokens {
                finish = Some(Finish::Length);
            }
        }
        // Text that was held back belongs to the row, unless a stop string was reached.
        if let (Some(text), Some(Finish::Length | Finish::Eos(_))) = (&mut run.text, &finish) {
            let (rest, stop) = text.finish()?;
            event.text += &rest;
            finish = stop.map(Finish::Stop).or(finish);
        }
        run.finish = finish.clone();
        event.finish = finish;
        Ok(event)
    }

    /// What the run took so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// The rows as they are now.
    pub fn results(&self) -> Vec<Generated> {
        let row = |(run, row): (&RunRow, &super::session::Row)| Generated {
            prompt_tokens: run.start,
            ids: row.tokens[run.start..].to_vec(),
            text: run.text.as_ref().map_or_else(String::new, |t| t.done.clone()),
            finish: run.finish.clone(),
        };
        self.rows.iter().zip(&self.session.rows).map(row).collect()
    }

    /// Ends the run: its results and the session to save or continue.
    pub fn finish(self) -> (Vec<Generated>, Session) {
        (self.results(), self.session)
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        let ready = self.events.is_empty() && !self.failed && self.rows.iter().any(|r| r.finish.is_none());
        if ready && let Err(e) = self.step() {
            self.failed = true;
            self.events.clear();
            return Some(Err(e));
        }
        self.events.pop_front().map(Ok)
    }
}

/// Generates for a batch of prompts in one call; `on_event` sees the text as it comes.
///
/// # Errors
/// Those of [`Session::new`], [`Generator::new`] and the model.
pub fn generate(
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    prompts: &[Vec<u32>],
    options: GenerateOptions,
    mut on_event: impl FnMut(&Event),
) -> Result<(Vec<Generated>, Timings)> {
    let mut run = Generator::new(model, tokenizer, Session::new(model, prompts)?, options)?;
    for event in &mut run {
        on_event(&event?);
    }
    let timings = run.timings();
    Ok((run.finish().0, timings))
}
