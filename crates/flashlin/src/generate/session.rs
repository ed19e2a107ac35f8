//! What generation leaves behind and continues from: a model state with the tokens it stands for.

use flashlin_ops::Mode;
use flashlin_tensor::{DType, Device, Tensor, no_grad};

use super::RecordedStep;
use crate::{Error, ForwardOptions, Input, Logits, Model, ModelState, Result};

/// Sequences in the making: one row each. Tokens may be ahead of the state (a prompt not yet consumed, a token just chosen);
/// [`Session::advance`] lets the state catch up.
#[derive(Debug)]
pub struct Session {
    pub(super) state: ModelState,
    pub(super) rows: Vec<Row>,
    /// Set while a forward pass runs: an error in it leaves a state that is not fit for use.
    pub(super) broken: bool,
    /// Single tokens of all rows on a GPU.
    recorded: Recorded,
}

/// Whether steps are replayed.
#[derive(Debug, Default)]
enum Recorded {
    /// Not yet: the next step of all rows is recorded, if the model allows it.
    #[default]
    Not,
    Yes(Box<RecordedStep>),
    /// It cannot be.
    Never,
}

/// What one row is besides its state.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub tokens: Vec<u32>,
    /// Logits after the last token, where the state has consumed it.
    pub logits: Option<Vec<f32>>,
    /// Random numbers drawn, and the stream they come from.
    pub drawn: u64,
    pub stream: u64,
}

impl Session {
    /// A session that begins with these prompts, one a row; nothing is computed yet.
    ///
    /// # Errors
    /// No prompts, an empty prompt, or a token that the model does not have.
    pub fn new(model: &Model, prompts: &[Vec<u32>]) -> Result<Session> {
        if prompts.is_empty() {
            return Err(Error::argument("prompts", "are none, expected at least one"));
        }
        let rows = (0..prompts.len() as u64).map(|stream| Row { stream, ..Row::default() }).collect();
        let mut session = Session::of(model.new_state(prompts.len())?, rows);
        for (row, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(Error::argument(
                    "prompt",
                    format!("of row {row} is empty, expected at least one token"),
                ));
            }
            session.append(model, row, prompt)?;
        }
        Ok(session)
    }

    pub(super) fn of(state: ModelState, rows: Vec<Row>) -> Session {
        Session { state, rows, broken: false, recorded: Recorded::Not }
    }

    /// Adds tokens to a row (the next turn of a conversation).
    ///
    /// # Errors
    /// An unknown row, or a token that the model does not have.
    pub fn append(&mut self, model: &Model, row: usize, ids: &[u32]) -> Result<()> {
        let vocab = model.config().base().vocab_size;
        let rows = self.rows.len();
        let Some(r) = self.rows.get_mut(row) else {
            return Err(Error::argument("row", format!("is {row}, but the session has {rows}")));
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            let problem = format!("holds token {id}, but the model's vocabulary has {vocab} (row {row})");
            return Err(Error::argument("prompt", problem));
        }
        if !ids.is_empty() {
            r.tokens.extend_from_slice(ids);
            r.logits = None;
        }
        Ok(())
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// All tokens of a row; none for an unknown one.
    pub fn tokens(&self, row: usize) -> &[u32] {
        self.rows.get(row).map_or(&[], |r| &r.tokens)
    }

    /// Tokens of a row that the state has consumed.
    pub fn consumed(&self, row: usize) -> usize {
        self.state.seen().get(row).copied().unwrap_or(0)
    }

    /// Logits after a row's last token, once the state has consumed it: see [`Session::advance`].
    pub fn logits(&self, row: usize) -> Option<&[f32]> {
        self.rows.get(row)?.logits.as_deref()
    }

    /// The model's state.
    pub fn state(&self) -> &ModelState {
        &self.state
    }

    /// Gives a row another random stream (by default the row's index), as to repeat one row of a batch alone.
    ///
    /// # Errors
    /// An unknown row.
    pub fn set_stream(&mut self, row: usize, stream: u64) -> Result<()> {
        let rows = self.rows.len();
        let problem = || Error::argument("row", format!("is {row}, but the session has {rows}"));
        self.rows.get_mut(row).ok_or_else(problem)?.stream = stream;
        Ok(())
    }

    /// An independent copy.
    ///
    /// # Errors
    /// When memory is short.
    pub fn fork(&self) -> Result<Session> {
        self.check()?;
        Ok(Session::of(self.state.fork()?, self.rows.clone()))
    }

    /// A session of some of the rows, in the given order. A row may repeat (several continuations of one prompt): each gets the
    /// random stream of its new place.
    ///
    /// # Errors
    /// An unknown row.
    pub fn select(&self, rows: &[usize]) -> Result<Session> {
        self.check()?;
        if let Some(row) = rows.iter().find(|&&r| r >= self.rows.len()) {
            return Err(Error::argument("row", format!("is {row}, but the session has {}", self.rows.len())));
        }
        let place = |(i, &r): (usize, &usize)| Row { stream: i as u64, ..self.rows[r].clone() };
        let picked = rows.iter().enumerate().map(place).collect();
        Ok(Session::of(self.state.select(rows)?, picked))
    }

    /// Consumes what the state has not seen of the rows in `active`, `piece` tokens at most in one pass, so that each of them has
    /// logits. Returns the number of tokens.
    ///
    /// # Errors
    /// Those of the model; the session cannot be used after one.
    pub fn advance(&mut self, model: &Model, active: &[usize], mode: Mode, piece: usize) -> Result<usize> {
        self.check()?;
        let mut consumed = 0;
        loop {
            let waiting: Vec<usize> =
                (0..self.rows.len())
                    .map(|r| {
                        if active.contains(&r) { self.rows[r].tokens.len() - self.state.seen()[r] } else { 0 }
                    })
                    .collect();
            let busy = waiting.iter().filter(|n| **n > 0).count();
            if busy == 0 {
                return Ok(consumed);
            }
            let share = (piece / busy).max(1);
            let take: Vec<usize> = waiting.iter().map(|&n| n.min(share)).collect();
            let done: Vec<bool> = waiting.iter().zip(&take).map(|(n, t)| *n > 0 && n == t).collect();
            self.pass(model, &take, &done, mode)?;
            consumed += take.iter().sum::<usize>();
        }
    }

    /// One forward pass over the next `take[r]` tokens of each row; rows in `done` get their logits.
    fn pass(&mut self, model: &Model, take: &[usize], done: &[bool], mode: Mode) -> Result<()> {
        if mode != Mode::Chunk && take.iter().all(|n| *n == 1) && done.iter().all(|d| *d) {
            let next = |(row, &seen): (&Row, &usize)| row.tokens[seen];
            let ids: Vec<u32> = self.rows.iter().zip(self.state.seen()).map(next).collect();
            if let Some(logits) = self.replay(model, &ids)? {
                return self.keep_logits(&logits, done);
            }
        } else if let Recorded::Yes(_) = self.recorded {
            // The pass below may move the state.
            self.recorded = Recorded::Not;
        }
        let pieces: Vec<&[u32]> = (take.iter().zip(&self.rows).zip(self.state.seen()))
            .map(|((&n, row), &seen)| &row.tokens[seen..seen + n])
            .collect();
        // Equal lengths go as a dense batch; otherwise the rows are packed, and idle ones are empty.
        let input = if take.iter().all(|n| *n == take[0]) {
            let ids: Vec<i64> = pieces.concat().into_iter().map(i64::from).collect();
            Input::ids(Tensor::from_vec(ids, &[take.len(), take[0]])?)
        } else {
            Input::packed(&pieces)?
        };
        let wanted = if done.contains(&true) { Logits::Last(1) } else { Logits::None };
        let options = ForwardOptions { mode, logits: wanted, ..ForwardOptions::default() };
        self.broken = true;
        let out = no_grad(|| model.forward(&input, Some(&mut self.state), &options))?;
        self.broken = false;
        match out.logits {
            Some(logits) => self.keep_logits(logits.tensor(), done),
            None => Ok(()),
        }
    }

    /// A step of all rows as it was recorded; None where there is no recording of it.
    fn replay(&mut self, model: &Model, ids: &[u32]) -> Result<Option<Tensor>> {
        if matches!(self.recorded, Recorded::Not) {
            self.recorded = match RecordedStep::serves(model) {
                false => Recorded::Never,
                true => match RecordedStep::new(model, &self.state) {
                    Ok((step, state)) => {
                        self.state = state;
                        Recorded::Yes(Box::new(step))
                    }
                    Err(e) => {
                        tracing::warn!("steps are launched one by one: {e}");
                        Recorded::Never
                    }
                },
            };
        }
        let Recorded::Yes(step) = &self.recorded else { return Ok(None) };
        self.broken = true;
        let logits = step.run(model, &mut self.state, ids)?.clone();
        self.broken = false;
        Ok(Some(logits))
    }

    /// Logits `[rows, 1, V]` to the rows in `done`. These last rows alone leave the device.
    fn keep_logits(&mut self, logits: &Tensor, done: &[bool]) -> Result<()> {
        let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
        let vocab = logits.dim(2);
        for ((row, values), done) in
            self.rows.iter_mut().zip(logits.as_slice::<f32>()?.chunks_exact(vocab)).zip(done)
        {
            if *done {
                row.logits = Some(values.to_vec());
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.broken {
            false => Ok(()),
            true => {
                Err(Error::state("is not fit for use after an error in a forward pass; load or begin again"))
            }
        }
    }
}
