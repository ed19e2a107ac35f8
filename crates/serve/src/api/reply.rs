//! From the engine's events to OpenAI's answers: whole, or as a stream of chunks.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use flashlin::tokenizer::{TextStream, Tokenizer};
use futures_util::stream::unfold;
use serde_json::{Value, json};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};

use super::{
    ApiError, App,
    shape::{Shape, Style},
};
use crate::engine::{Event, Finish, Score};

/// A comment goes out when nothing else did for this long, so that nobody in between thinks the connection dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A token to report, with the place of its text in the choice's.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The token.
    pub id: u32,
    /// Its log-probability and the likeliest tokens; None for a first token.
    pub score: Option<Score>,
    /// Characters of the choice's text before it.
    pub offset: usize,
}

/// What a choice gained.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// New text.
    pub text: String,
    /// Tokens to report.
    pub entries: Vec<Entry>,
    /// Set at its end.
    pub finish: Option<Finish>,
}

/// A choice as far as it is known.
#[derive(Default)]
struct Choice {
    whole: Delta,
    chars: usize,
    echoed: bool,
}

/// A request's answer in the making.
pub struct Reply {
    app: Arc<App>,
    shape: Shape,
    /// Prompts and, where they are repeated, their texts.
    prompts: Vec<(Vec<u32>, Option<String>)>,
    n: usize,
    choices: Vec<Choice>,
    /// Whether log-probabilities were asked for.
    logprobs: bool,
    generated: usize,
    open: usize,
}

type Result<T> = std::result::Result<T, ApiError>;

impl Reply {
    /// An answer to `prompts` with `n` choices each.
    pub fn new(
        app: &Arc<App>,
        style: Style,
        prompts: Vec<(Vec<u32>, Option<String>)>,
        n: usize,
        logprobs: bool,
    ) -> Result<Reply> {
        let count = prompts.len() * n;
        Ok(Reply {
            shape: Shape::new(style, &app.name)?,
            app: app.clone(),
            choices: (0..count).map(|_| Choice::default()).collect(),
            prompts,
            n,
            logprobs,
            generated: 0,
            open: count,
        })
    }

    /// What an event adds: numbers of choices and their gains.
    fn apply(&mut self, event: Event) -> Result<Vec<(usize, Delta)>> {
        match event {
            Event::Prompt { first, scores } => {
                let (ids, text) = &self.prompts[first / self.n];
                let entries = if self.logprobs {
                    prompt_entries(&self.app.tokenizer, ids, scores)?
                } else {
                    Vec::new()
                };
                let text = text.clone().unwrap_or_default();
                let delta = Delta { text, entries, finish: None };
                Ok((first..first + self.n)
                    .map(|choice| {
                        self.choices[choice].echoed = true;
                        self.choices[choice].chars = delta.text.chars().count();
                        (choice, delta.clone())
                    })
                    .collect())
            }
            Event::Token { choice, id, text, score } => {
                let echo = self.echo(choice);
                self.generated += 1;
                let c = &mut self.choices[choice];
                let offset = c.chars;
                c.chars += text.chars().count();
                let entries = if score.is_some() { vec![Entry { id, score, offset }] } else { Vec::new() };
                Ok(vec![(choice, Delta { text: echo + &text, entries, finish: None })])
            }
            Event::Done { choice, finish } => {
                self.open -= 1;
                let text = self.echo(choice);
                Ok(vec![(choice, Delta { text, entries: Vec::new(), finish: Some(finish) })])
            }
            Event::Failed(why) => Err(why.into()),
        }
    }

    /// The prompt's text, if it is to be repeated and was not yet.
    fn echo(&mut self, choice: usize) -> String {
        let c = &mut self.choices[choice];
        if std::mem::replace(&mut c.echoed, true) {
            return String::new();
        }
        let text = self.prompts[choice / self.n].1.clone().unwrap_or_default();
        c.chars = text.chars().count();
        text
    }

    fn usage(&self) -> Value {
        let prompt: usize = self.prompts.iter().map(|(ids, _)| ids.len()).sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": self.generated,
            "total_tokens": prompt + self.generated,
        })
    }

    /// Waits for everything: one object.
    pub async fn whole(mut self, mut inbox: UnboundedReceiver<Event>) -> Result<Response> {
        while self.open > 0 {
            let event = inbox.recv().await.ok_or_else(stopped)?;
            for (choice, delta) in self.apply(event)? {
                let whole = &mut self.choices[choice].whole;
                whole.text += &delta.text;
                whole.entries.extend(delta.entries);
                whole.finish = delta.finish.or(whole.finish);
            }
        }
        let logprobs = self.logprobs;
        let choice = |(i, c): (usize, &Choice)| self.shape.choice(&self.app.tokenizer, i, &c.whole, logprobs);
        let choices: Vec<Value> = self.choices.iter().enumerate().map(choice).collect();
        let body = self.shape.whole(choices, self.usage());
        let json = [(header::CONTENT_TYPE, "application/json")];
        Ok((json, body.to_string()).into_response())
    }

    /// Answers as it comes: server-sent events, the last of which is `[DONE]`.
    pub fn stream(self, inbox: UnboundedReceiver<Event>, usage: bool) -> Response {
        let state = Stream { reply: self, inbox, usage, begun: false, ended: false };
        let body = Body::from_stream(unfold(state, |mut s| async {
            let bytes = s.next().await?;
            Some((Ok::<_, std::convert::Infallible>(bytes), s))
        }));
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        (headers, body).into_response()
    }
}

struct Stream {
    reply: Reply,
    inbox: UnboundedReceiver<Event>,
    usage: bool,
    begun: bool,
    ended: bool,
}

impl Stream {
    /// The next piece of the body: all that is there. None at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = String::new();
        if !std::mem::replace(&mut self.begun, true) {
            let n = self.reply.choices.len();
            self.reply.shape.opening(n, self.usage).iter().for_each(|chunk| write(&mut out, chunk));
            if !out.is_empty() {
                return Some(out.into());
            }
        }
        while out.is_empty() {
            let Ok(event) = timeout(KEEP_ALIVE, self.inbox.recv()).await else {
                return Some(Bytes::from_static(b": still working\n\n"));
            };
            self.take(event.ok_or_else(stopped), &mut out);
            while !self.ended
                && let Ok(event) = self.inbox.try_recv()
            {
                self.take(Ok(event), &mut out);
            }
        }
        Some(out.into())
    }

    fn take(&mut self, event: Result<Event>, out: &mut String) {
        let deltas = match event.and_then(|e| self.reply.apply(e)) {
            Ok(deltas) => deltas,
            Err(e) => {
                // The status has been sent: the error is the last event.
                write(out, &e.object());
                self.ended = true;
                return;
            }
        };
        for (choice, delta) in deltas {
            if delta.text.is_empty() && delta.entries.is_empty() && delta.finish.is_none() {
                continue;
            }
            let r = &self.reply;
            write(out, &r.shape.chunk(&r.app.tokenizer, choice, &delta, r.logprobs, self.usage));
        }
        if self.reply.open == 0 {
            if self.usage {
                write(out, &self.reply.shape.last(self.reply.usage()));
            }
            out.push_str("data: [DONE]\n\n");
            self.ended = true;
        }
    }
}

fn write(out: &mut String, chunk: &Value) {
    out.push_str("data: ");
    out.push_str(&chunk.to_string());
    out.push_str("\n\n");
}

fn stopped() -> ApiError {
    ApiError::new(
        axum::http::StatusCode::INTERNAL_SERVER_ERROR,
        "The engine stopped before the answer was complete.",
    )
}

/// The tokens of a repeated prompt with their places in its text.
fn prompt_entries(tokenizer: &Tokenizer, ids: &[u32], scores: Vec<Option<Score>>) -> Result<Vec<Entry>> {
    let mut text: TextStream = tokenizer.stream(false);
    let mut offset = 0;
    let mut entries = Vec::with_capacity(ids.len());
    for (&id, score) in ids.iter().zip(scores) {
        entries.push(Entry { id, score, offset });
        // An id beyond the tokenizer's (a padded vocabulary) has no text.
        if (id as usize) < tokenizer.vocab_size() {
            offset += text.push(id)?.chars().count();
        }
    }
    Ok(entries)
}
