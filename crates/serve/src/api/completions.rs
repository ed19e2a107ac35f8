//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use flashlin::generate::encode_prompt;
use serde_json::Value;

use super::{
    ApiError, App,
    fields::wrong,
    generation::{Generation, MOST_TOP_LOGPROBS},
    heavy,
    reply::Reply,
    shape::Style,
};

/// Prompts of one request: texts and token ids.
const MOST_PROMPTS: usize = 4096;

type Result<T> = std::result::Result<T, ApiError>;

/// Answers a request.
pub async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response> {
    let mut f = app.fields(request).await?;
    let mut g = Generation::read(&mut f, &app)?;
    g.max_tokens = Some(f.count("max_tokens", 0, usize::MAX)?.unwrap_or(16));
    g.logprobs = f.count("logprobs", 0, MOST_TOP_LOGPROBS)?;
    g.echo = f.flag("echo")?;
    f.only("suffix", &[])?;
    f.only("best_of", &[Value::from(1), Value::from(g.n)])?;
    let special = f.take("add_special_tokens") != Some(Value::Bool(false));
    let prompts = read_prompts(f.take("prompt"))?;
    f.finish()?;
    let (worker, echo) = (app.clone(), g.echo);
    let prompts = heavy(move || {
        prompts.into_iter().map(|p| encode(&worker, p, special, echo)).collect::<Result<Vec<_>>>()
    })
    .await?;
    let ids: Vec<Vec<u32>> = prompts.iter().map(|(ids, _)| ids.clone()).collect();
    let reply = Reply::new(&app, Style::Completion, prompts, g.n, g.logprobs.is_some())?;
    let inbox = g.submit(&app, &ids)?;
    match g.stream {
        true => Ok(reply.stream(inbox, g.usage)),
        false => reply.whole(inbox).await,
    }
}

/// A prompt as it came.
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

fn encode(app: &App, prompt: Prompt, special: bool, echo: bool) -> Result<(Vec<u32>, Option<String>)> {
    let tokenizer = &app.tokenizer;
    match prompt {
        Prompt::Text(text) => {
            let ids = match special || text.is_empty() {
                true => encode_prompt(tokenizer, &text, &app.defaults)?,
                false => tokenizer.encode(&text, false)?,
            };
            Ok((ids, echo.then_some(text)))
        }
        Prompt::Ids(ids) => {
            let known = |id: &&u32| (**id as usize) < tokenizer.vocab_size();
            let texts: Vec<u32> = ids.iter().filter(known).copied().collect();
            let text = if echo { Some(tokenizer.decode(&texts, false)?) } else { None };
            Ok((ids, text))
        }
    }
}

/// A text, a list of texts, a list of token ids, or a list of such lists.
fn read_prompts(value: Option<Value>) -> Result<Vec<Prompt>> {
    let expected = "a string, a list of strings, a list of token ids, or a list of such lists, none empty";
    let Some(value) = value else {
        return Err(ApiError::param("prompt", format!("'prompt' is missing: expected {expected}.")));
    };
    let bad = || wrong("prompt", &value, expected);
    let ids = |list: &[Value]| -> Option<Prompt> {
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        Some(Prompt::Ids(list.iter().map(id).collect::<Option<_>>()?)).filter(|_| !list.is_empty())
    };
    let list = match &value {
        Value::String(text) => return Ok(vec![Prompt::Text(text.clone())]),
        Value::Array(list) if !list.is_empty() => list,
        _ => return Err(bad()),
    };
    if list[0].is_number() {
        return Ok(vec![ids(list).ok_or_else(bad)?]);
    }
    if list.len() > MOST_PROMPTS {
        return Err(ApiError::param("prompt", format!("A request may have at most {MOST_PROMPTS} prompts.")));
    }
    let one = |v: &Value| match v {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        Value::Array(list) => ids(list),
        _ => None,
    };
    list.iter().map(one).collect::<Option<Vec<_>>>().ok_or_else(bad)
}
