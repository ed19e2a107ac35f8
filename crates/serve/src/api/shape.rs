//! The JSON of answers: completions and chat, whole and in chunks.

use std::time::{SystemTime, UNIX_EPOCH};

use flashlin::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::{
    ApiError,
    reply::{Delta, Entry},
};

/// JSON has no minus infinity; this is OpenAI's stand-in.
const IMPOSSIBLE: f64 = -9999.0;

/// Which endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `/v1/completions`
    Completion,
    /// `/v1/chat/completions`
    Chat,
}

/// What all parts of an answer have in common.
pub struct Shape {
    style: Style,
    id: String,
    created: u64,
    model: String,
}

impl Shape {
    /// With an id of its own.
    pub fn new(style: Style, model: &str) -> Result<Shape, ApiError> {
        let mut bytes = [0; 12];
        getrandom::fill(&mut bytes).map_err(|e| {
            ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, format!("no random numbers: {e}"))
        })?;
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let prefix = if style == Style::Chat { "chatcmpl" } else { "cmpl" };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Ok(Shape { style, id: format!("{prefix}-{hex}"), created, model: model.into() })
    }

    fn envelope(&self, chunk: bool, choices: Vec<Value>) -> Value {
        let object = match (self.style, chunk) {
            (Style::Completion, _) => "text_completion",
            (Style::Chat, false) => "chat.completion",
            (Style::Chat, true) => "chat.completion.chunk",
        };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    /// The whole answer.
    pub fn whole(&self, choices: Vec<Value>, usage: Value) -> Value {
        let mut all = self.envelope(false, choices);
        all["usage"] = usage;
        all
    }

    /// A choice of the whole answer.
    pub fn choice(&self, tokenizer: &Tokenizer, index: usize, all: &Delta, logprobs: bool) -> Value {
        let logprobs = if logprobs { self.logprobs(tokenizer, &all.entries) } else { Value::Null };
        let finish = all.finish.map(|f| f.name());
        match self.style {
            Style::Completion => {
                json!({"index": index, "text": all.text, "logprobs": logprobs, "finish_reason": finish})
            }
            Style::Chat => {
                let message = json!({"role": "assistant", "content": all.text, "refusal": null});
                json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
            }
        }
    }

    /// Chunks before the first token: in chat, who speaks.
    pub fn opening(&self, choices: usize, usage: bool) -> Vec<Value> {
        let one = |index| {
            let delta = json!({"role": "assistant", "content": ""});
            json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null})
        };
        match self.style {
            Style::Completion => Vec::new(),
            Style::Chat => (0..choices).map(|i| self.part(one(i), usage)).collect(),
        }
    }

    /// What a choice gained.
    pub fn chunk(
        &self,
        tokenizer: &Tokenizer,
        index: usize,
        d: &Delta,
        logprobs: bool,
        usage: bool,
    ) -> Value {
        let reported = logprobs && !d.entries.is_empty();
        let logprobs = if reported { self.logprobs(tokenizer, &d.entries) } else { Value::Null };
        let finish = d.finish.map(|f| f.name());
        let choice = match self.style {
            Style::Completion => {
                json!({"index": index, "text": d.text, "logprobs": logprobs, "finish_reason": finish})
            }
            Style::Chat => {
                let mut delta = Map::new();
                if !d.text.is_empty() || d.finish.is_none() {
                    delta.insert("content".into(), d.text.as_str().into());
                }
                json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish})
            }
        };
        self.part(choice, usage)
    }

    fn part(&self, choice: Value, usage: bool) -> Value {
        let mut chunk = self.envelope(true, vec![choice]);
        if usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The chunk that says what was used.
    pub fn last(&self, usage: Value) -> Value {
        let mut chunk = self.envelope(true, Vec::new());
        chunk["usage"] = usage;
        chunk
    }

    fn logprobs(&self, tokenizer: &Tokenizer, entries: &[Entry]) -> Value {
        match self.style {
            Style::Completion => completion_logprobs(tokenizer, entries),
            Style::Chat => {
                let content: Vec<Value> = entries.iter().map(|e| chat_entry(tokenizer, e)).collect();
                json!({"content": content, "refusal": null})
            }
        }
    }
}

fn finite(logprob: f64) -> f64 {
    logprob.max(IMPOSSIBLE)
}

fn completion_logprobs(tokenizer: &Tokenizer, entries: &[Entry]) -> Value {
    let (mut tokens, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for e in entries {
        tokens.push(Value::from(token_text(tokenizer, e.id)));
        offsets.push(e.offset);
        match &e.score {
            None => {
                values.push(Value::Null);
                tops.push(Value::Null);
            }
            Some(s) => {
                values.push(finite(s.logprob).into());
                let mut top = Map::new();
                // The token itself belongs to them, however unlikely; of two tokens with one text the likelier stands.
                for &(id, logprob) in s.top.iter().chain([&(s.id, s.logprob)]) {
                    top.entry(token_text(tokenizer, id)).or_insert(finite(logprob).into());
                }
                tops.push(top.into());
            }
        }
    }
    json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets})
}

fn chat_entry(tokenizer: &Tokenizer, e: &Entry) -> Value {
    let one = |id: u32, logprob: f64| {
        let bytes = tokenizer.token_bytes(id);
        json!({"token": token_text(tokenizer, id), "logprob": finite(logprob), "bytes": bytes})
    };
    let logprob = e.score.as_ref().map_or(0.0, |s| s.logprob);
    let mut entry = one(e.id, logprob);
    let top = e.score.iter().flat_map(|s| &s.top).map(|&(id, logprob)| one(id, logprob));
    entry["top_logprobs"] = top.collect();
    entry
}

/// A token as text; `bytes:\xe2\x80` where it is no whole character, `token_id:7` where it has no text at all: different tokens rarely share one.
fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id);
    match std::str::from_utf8(bytes) {
        Ok("") => format!("token_id:{id}"),
        Ok(text) => text.into(),
        Err(_) => bytes.iter().fold("bytes:".into(), |text, b| format!("{text}\\x{b:02x}")),
    }
}
