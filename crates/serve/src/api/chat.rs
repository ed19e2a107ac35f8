//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde_json::{Map, Value, json};

use super::{
    ApiError, App,
    fields::{Fields, wrong},
    generation::{Generation, MOST_TOP_LOGPROBS},
    heavy,
    reply::Reply,
    shape::Style,
};

type Result<T> = std::result::Result<T, ApiError>;

/// Messages of one request.
const MOST_MESSAGES: usize = 4096;

/// Answers a request.
pub async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response> {
    let mut f = app.fields(request).await?;
    let mut g = Generation::read(&mut f, &app)?;
    let (old, new) =
        (f.count("max_tokens", 1, usize::MAX)?, f.count("max_completion_tokens", 1, usize::MAX)?);
    let own = app.defaults.max_new_tokens.map(|m| m.min(app.options.max_tokens));
    g.max_tokens = new.or(old).or(own);
    let wanted = f.flag("logprobs")?;
    let top = f.count("top_logprobs", 0, MOST_TOP_LOGPROBS)?;
    if top.is_some() && !wanted {
        return Err(ApiError::param("top_logprobs", "'top_logprobs' needs 'logprobs': true."));
    }
    g.logprobs = wanted.then_some(top.unwrap_or(0));
    f.only("response_format", &[json!({"type": "text"})])?;
    f.only("tools", &[])?;
    f.only("tool_choice", &["none".into(), "auto".into()])?;
    f.only("functions", &[])?;
    f.only("parallel_tool_calls", &[true.into(), false.into()])?;
    f.only("modalities", &[json!(["text"])])?;
    f.only("store", &[false.into()])?;
    f.only("metadata", &[])?;
    let kwargs = match f.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong("chat_template_kwargs", &other, "an object")),
    };
    // True unless told otherwise: the answer is a new message.
    let prompt = f.take("add_generation_prompt") != Some(Value::Bool(false));
    let messages = read_messages(f.take("messages"))?;
    f.finish()?;
    let worker = app.clone();
    let ids = heavy(move || {
        let Some(template) = &worker.template else {
            let message = "This model has no chat template: use /v1/completions, or start the server with --chat-template.";
            return Err(ApiError::param("messages", message));
        };
        let text = template.render(&messages, prompt, kwargs)?;
        // The template writes special tokens itself.
        Ok(worker.tokenizer.encode(&text, false)?)
    })
    .await?;
    let reply = Reply::new(&app, Style::Chat, vec![(ids.clone(), None)], g.n, g.logprobs.is_some())?;
    let inbox = g.submit(&app, &[ids])?;
    match g.stream {
        true => Ok(reply.stream(inbox, g.usage)),
        false => reply.whole(inbox).await,
    }
}

/// Messages with a role and a text; texts in parts are joined.
fn read_messages(value: Option<Value>) -> Result<Vec<Value>> {
    let bad = |why: &str| ApiError::param("messages", format!("Invalid 'messages': {why}."));
    let Some(Value::Array(list)) = value else {
        return Err(bad("expected a list of objects with 'role' and 'content'"));
    };
    if list.is_empty() || list.len() > MOST_MESSAGES {
        return Err(bad(&format!("expected 1 to {MOST_MESSAGES} messages")));
    }
    let one = |(i, v): (usize, Value)| {
        let at =
            |what: &str| ApiError::param(format!("messages[{i}]"), format!("Invalid message {i}: {what}."));
        let Value::Object(map) = v else { return Err(at("expected an object")) };
        let mut f = Fields::of(map);
        let role = f.text("role")?.ok_or_else(|| at("'role' is missing"))?;
        if !["system", "developer", "user", "assistant"].contains(&role.as_str()) {
            return Err(at("'role' must be system, developer, user or assistant (tools are not supported)"));
        }
        let content = match f.take("content") {
            Some(Value::String(text)) => text,
            Some(Value::Array(parts)) => join(&parts)
                .ok_or_else(|| at("parts of 'content' must be {\"type\": \"text\", \"text\": ...}"))?,
            None if role == "assistant" => String::new(),
            _ => return Err(at("'content' must be a string or a list of text parts")),
        };
        let mut message = json!({"role": role, "content": content});
        if let Some(name) = f.text("name")? {
            message["name"] = name.into();
        }
        f.only("tool_calls", &[])?;
        f.only("refusal", &[])?;
        f.finish()?;
        Ok(message)
    };
    list.into_iter().enumerate().map(one).collect()
}

fn join(parts: &[Value]) -> Option<String> {
    let text = |p: &Value| (p["type"] == "text").then(|| p["text"].as_str().map(String::from))?;
    parts.iter().map(text).collect::<Option<Vec<_>>>().map(|t| t.concat())
}
