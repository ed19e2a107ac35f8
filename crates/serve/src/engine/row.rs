//! A continuation in the making: it chooses its tokens, knows its text, and says when it ends.

use std::{collections::HashMap, sync::Arc};

use flashlin::{Result, generate::RowText, sample::Sampler, tokenizer::Tokenizer};

use super::{Event, Finish, Job, scores::score};

/// One choice of a job.
pub struct Row {
    /// The job that it belongs to.
    pub job: Arc<Job>,
    choice: usize,
    sampler: Sampler,
    text: RowText,
    counts: HashMap<u32, u32>,
    produced: usize,
    /// The token to read next.
    pub next: u32,
    /// Why it ended, once it has.
    pub finish: Option<Finish>,
}

impl Row {
    /// Choice `choice` of `job`, before its first token.
    ///
    /// # Errors
    /// Parameters that cannot be used.
    pub fn new(job: &Arc<Job>, choice: usize, tokenizer: &Tokenizer) -> Result<Row> {
        let mut sampler = Sampler::new(job.sampling.clone(), choice as u64)?;
        sampler.observe(&job.prompt);
        let text = RowText::new(tokenizer, &job.prompt, &job.stop)?;
        Ok(Row {
            job: job.clone(),
            choice,
            sampler,
            text,
            counts: HashMap::new(),
            produced: 0,
            next: 0,
            finish: None,
        })
    }

    /// Chooses the next token by `logits`, of which the first `choices` can be chosen, and reports it. False when nobody listens any more.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn choose(&mut self, logits: &[f32], choices: usize) -> Result<bool> {
        let job = self.job.clone();
        if job.max_tokens == 0 {
            return Ok(self.end(Finish::Length));
        }
        let id = match job.adjust.is_nothing() {
            true => self.sampler.sample(&logits[..choices])?,
            false => self.sampler.sample(&self.adjusted(&logits[..choices]))?,
        };
        if job.adjust.counts() {
            *self.counts.entry(id).or_default() += 1;
        }
        self.produced += 1;
        self.next = id;
        let (mut text, mut finish) = (String::new(), None);
        if job.eos.contains(&id) {
            finish = Some(Finish::Stop);
        } else {
            let (new, stop) = self.text.push(id)?;
            text = new;
            if stop.is_some() {
                finish = Some(Finish::Stop);
            } else if self.produced >= job.max_tokens {
                finish = Some(Finish::Length);
            }
        }
        // What was held back belongs to the text, unless a stop string was reached.
        if finish == Some(Finish::Length) || job.eos.contains(&id) {
            let (rest, stop) = self.text.finish()?;
            text += &rest;
            finish = if stop.is_some() { Some(Finish::Stop) } else { finish };
        }
        let score = job.logprobs.map(|top| score(logits, id, top));
        let heard = self.send(Event::Token { choice: self.choice, id, text, score });
        Ok(match finish {
            Some(finish) => self.end(finish),
            None => heard,
        })
    }

    fn adjusted(&self, logits: &[f32]) -> Vec<f32> {
        let mut out = logits.to_vec();
        for &(id, bias) in &self.job.adjust.bias {
            if let Some(x) = out.get_mut(id as usize) {
                *x += bias;
            }
        }
        let a = &self.job.adjust;
        for (&id, &n) in &self.counts {
            out[id as usize] -= (a.presence + a.frequency * f64::from(n)) as f32;
        }
        out
    }

    fn end(&mut self, finish: Finish) -> bool {
        self.finish = Some(finish);
        self.send(Event::Done { choice: self.choice, finish })
    }

    /// Reports; false when nobody listens any more.
    pub fn send(&self, event: Event) -> bool {
        self.job.events.send(event).is_ok()
    }
}
