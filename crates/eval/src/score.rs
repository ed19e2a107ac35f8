//! Log-likelihoods of continuations: how probable a model finds tokens after a context.
//!
//! Policy: requests of any lengths are packed into passes, never padded, and a request sees nothing of its neighbours: its
//! log-likelihood does not depend on the batch it is in. Whether a request is long, and then goes alone and in pieces with a
//! carried state, is decided by its own length. Logits exist for continuations alone. Losses are f32 for each token, sums f64.

use flashlin::{ForwardOptions, Input, Logits, Mode, Model, ModelState, PackedSeqs};
use flashlin_ops::loss::{LossOptions, Reduction, cross_entropy};
use flashlin_tensor::{Tensor, Var, no_grad};

use crate::{Error, Result};

/// Label of positions that do not count.
const IGNORE: i64 = -100;
/// Logits that one pass may hold: 64 MiB of f32.
const LOGITS: usize = 1 << 24;

/// What is asked: the probability of `continuation` after `context`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Token ids that are given, at least one.
    pub context: Vec<u32>,
    /// Token ids to be predicted.
    pub continuation: Vec<u32>,
}

impl Request {
    /// Tokens that the model reads: the last one is only predicted.
    pub(crate) fn reads(&self) -> usize {
        (self.context.len() + self.continuation.len()).saturating_sub(1)
    }

    /// Keeps the last tokens of the context so that the model reads `max_length` at most. True if something was cut.
    ///
    /// # Errors
    /// A continuation that alone is longer.
    pub fn truncate(&mut self, max_length: usize) -> Result<bool> {
        if self.continuation.len() > max_length {
            let problem =
                format!("is {max_length}, but a continuation has {} tokens", self.continuation.len());
            return Err(Error::option("max-length", problem));
        }
        let over = self.reads().saturating_sub(max_length);
        self.context.drain(..over);
        Ok(over > 0)
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Natural logarithm of the probability of each token of the continuation.
    pub tokens: Vec<f32>,
    /// Whether each token of the continuation is the most likely one in its place.
    pub greedy: bool,
}

impl Score {
    /// Natural logarithm of the probability of the continuation; 0 for an empty one.
    pub fn sum(&self) -> f64 {
        self.tokens.iter().map(|&x| f64::from(x)).sum()
    }
}

/// How requests become passes.
#[derive(Debug, Clone, Copy)]
pub struct Batching {
    /// Requests in one pass; None: as many as `tokens` allows.
    pub requests: Option<usize>,
    /// Tokens of one pass; a request that reads more goes alone, in pieces of this many.
    pub tokens: usize,
}

impl Default for Batching {
    fn default() -> Self {
        Batching { requests: None, tokens: 4096 }
    }
}

/// Answers requests.
#[derive(Clone, Copy)]
pub struct Scorer<'a> {
    model: &'a Model,
    mode: Mode,
    batching: Batching,
}

impl<'a> Scorer<'a> {
    /// A scorer of `model`; [`Mode::Auto`] is [`Mode::Chunk`] here.
    pub fn new(model: &'a Model, mode: Mode, batching: Batching) -> Scorer<'a> {
        // `Auto` would choose by the longest request of a pass, so by a request's neighbours.
        let mode = if mode == Mode::Auto { Mode::Chunk } else { mode };
        Scorer { model, mode, batching }
    }

    /// The model.
    pub fn model(&self) -> &'a Model {
        self.model
    }

    /// Answers all requests, in their order.
    ///
    /// # Errors
    /// An empty context, tokens that the model does not have, memory, and [`Error::NotFinite`].
    pub fn score(&self, requests: &[Request]) -> Result<Vec<Score>> {
        self.score_with(requests, &mut |_| {})
    }

    /// As [`Scorer::score`]; `on_pass` hears the tokens of each pass.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    pub fn score_with(&self, requests: &[Request], on_pass: &mut dyn FnMut(usize)) -> Result<Vec<Score>> {
        if let Some(i) = requests.iter().position(|r| r.context.is_empty()) {
            let empty = flashlin::Error::argument("context", format!("of request {i} is empty"));
            return Err(empty.into());
        }
        let mut scores = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let n = self.fitting(rest);
            match &rest[..n] {
                [one] if self.is_long(one) => scores.push(self.long(one, on_pass)?),
                several => {
                    scores.extend(self.packed(several)?);
                    on_pass(several.iter().map(Request::reads).sum());
                }
            }
            rest = &rest[n..];
        }
        Ok(scores)
    }

    /// Tokens of one pass.
    pub fn pass_tokens(&self) -> usize {
        self.batching.tokens.max(1)
    }

    /// Tokens whose logits one pass may hold.
    fn rows(&self) -> usize {
        (LOGITS / self.model.config().base().vocab_size.max(1)).max(1)
    }

    fn is_long(&self, r: &Request) -> bool {
        r.reads() > self.pass_tokens() || r.continuation.len() > self.rows()
    }

    /// How many of the first requests make the next pass: at least one.
    fn fitting(&self, requests: &[Request]) -> usize {
        let (mut tokens, mut longest) = (0, 0);
        let most = self.batching.requests.unwrap_or(usize::MAX).max(1).min(requests.len());
        for (i, r) in requests[..most].iter().enumerate() {
            tokens += r.reads();
            longest = longest.max(r.continuation.len());
            let rows = tokens.min(longest * (i + 1));
            if tokens > self.pass_tokens() || rows > self.rows() || self.is_long(r) {
                return i.max(1);
            }
        }
        most
    }

    /// Short requests in one pass.
    fn packed(&self, requests: &[Request]) -> Result<Vec<Score>> {
        let lens: Vec<usize> = requests.iter().map(Request::reads).collect();
        let ids: Vec<u32> = requests
            .iter()
            .flat_map(|r| r.context.iter().chain(&r.continuation).take(r.reads()))
            .copied()
            .collect();
        let n = requests.iter().map(|r| r.continuation.len()).max().unwrap_or(0);
        if n == 0 {
            return Ok(requests.iter().map(|_| Score::of(&[])).collect());
        }
        // Logits of everything, or of the last n tokens of each request: whatever is less.
        let whole = ids.len() <= requests.len() * n;
        let width = |len: usize| if whole { len } else { n };
        let mut targets = Vec::new();
        for (r, &len) in requests.iter().zip(&lens) {
            targets.resize(targets.len() + width(len) - r.continuation.len(), IGNORE);
            targets.extend(r.continuation.iter().map(|&id| i64::from(id)));
        }
        let logits = if whole { Logits::All } else { Logits::Last(n) };
        let places = self.pass(&ids, Some(PackedSeqs::from_lens(&lens)), None, logits, targets)?;
        let mut at = 0;
        let score = |(r, &len): (&Request, &usize)| {
            at += width(len);
            Score::of(&places[at - r.continuation.len()..at])
        };
        Ok(requests.iter().zip(&lens).map(score).collect())
    }

    /// A long request alone, in pieces.
    fn long(&self, r: &Request, on_pass: &mut dyn FnMut(usize)) -> Result<Score> {
        let ids: Vec<u32> = r.context.iter().chain(&r.continuation).copied().collect();
        let mut state = self.model.new_state(1)?;
        let mut places = Vec::new();
        // Predictions begin with a piece of their own, so that none holds logits that nobody wants.
        let (first, end) = (r.context.len() - 1, r.reads());
        let mut at = 0;
        while at < end {
            let context = at < first;
            let to = match context {
                true => first.min(at + self.pass_tokens()),
                false => end.min(at + self.pass_tokens().min(self.rows())),
            };
            let (logits, targets) = match context {
                true => (Logits::None, Vec::new()),
                false => (Logits::All, ids[at + 1..=to].iter().map(|&id| i64::from(id)).collect()),
            };
            places.extend(self.pass(&ids[at..to], None, Some(&mut state), logits, targets)?);
            on_pass(to - at);
            at = to;
        }
        Ok(Score::of(&places))
    }

    /// One forward pass: what became of `targets`, one for each row of logits that it asks for.
    fn pass(
        &self,
        ids: &[u32],
        seqs: Option<PackedSeqs>,
        state: Option<&mut ModelState>,
        logits: Logits,
        targets: Vec<i64>,
    ) -> Result<Vec<Place>> {
        let input = Input { seqs, ..Input::row(ids)? };
        let options = ForwardOptions { mode: self.mode, logits, ..ForwardOptions::default() };
        no_grad(|| match self.model.forward(&input, state, &options)?.logits {
            Some(logits) => places(&logits, targets),
            None => Ok(Vec::new()),
        })
    }
}

/// What became of one predicted token.
#[derive(Clone, Copy)]
struct Place {
    logprob: f32,
    greedy: bool,
}

impl Score {
    fn of(places: &[Place]) -> Score {
        Score { tokens: places.iter().map(|p| p.logprob).collect(), greedy: places.iter().all(|p| p.greedy) }
    }
}

/// Log-probabilities of `targets` under `logits` `[.., V]`.
fn places(logits: &Var, targets: Vec<i64>) -> Result<Vec<Place>> {
    let each = LossOptions { reduction: Reduction::None, ..LossOptions::default() };
    let vocab = logits.dims().last().copied().unwrap_or(1);
    let n = targets.len();
    let logits = logits.reshape(&[n, vocab])?;
    let best = logits.tensor().argmax()?.to_vec::<i64>()?;
    let losses = cross_entropy(&logits, &Tensor::from_vec(targets.clone(), &[n])?, &each)?.loss;
    let losses = losses.tensor().to_dtype(flashlin::DType::F32)?.to_vec::<f32>()?;
    let place = |((loss, best), target): ((f32, i64), i64)| match (target, loss.is_finite()) {
        (IGNORE, _) => Ok(Place { logprob: 0.0, greedy: true }),
        (_, true) => Ok(Place { logprob: -loss, greedy: best == target }),
        _ => Err(Error::NotFinite { what: "a log-likelihood".into() }),
    };
    losses.into_iter().zip(best).zip(targets).map(place).collect()
}
