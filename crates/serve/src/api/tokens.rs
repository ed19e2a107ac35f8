//! The tokenizer over HTTP, as vLLM offers it: what lm-evaluation-harness asks for instead of loading one itself.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{ApiError, App, fields::wrong, heavy};

type Result<T> = std::result::Result<T, ApiError>;

/// `POST /tokenize`: a text's ids.
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response> {
    let mut f = app.fields(request).await?;
    app.check_model(f.text("model")?)?;
    let special = f.take("add_special_tokens") != Some(Value::Bool(false));
    let text = f.text("prompt")?;
    let text = text.ok_or_else(|| ApiError::param("prompt", "'prompt' is missing: expected a string."))?;
    f.finish()?;
    let worker = app.clone();
    let ids = heavy(move || Ok(worker.tokenizer.encode(&text, special)?)).await?;
    Ok(axum::Json(json!({"count": ids.len(), "max_model_len": app.context, "tokens": ids})).into_response())
}

/// `POST /detokenize`: a text for ids, special tokens written out.
pub async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response> {
    let mut f = app.fields(request).await?;
    app.check_model(f.text("model")?)?;
    let list = f.take("tokens").unwrap_or_default();
    f.finish()?;
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = list.as_array().and_then(|l| l.iter().map(id).collect());
    let ids = ids.ok_or_else(|| wrong("tokens", &list, "a list of token ids"))?;
    let text = heavy(move || Ok(app.tokenizer.decode(&ids, false)?)).await?;
    Ok(axum::Json(json!({"prompt": text})).into_response())
}

/// `GET /tokenizer_info`: what `tokenizer_config.json` says, special tokens as plain texts.
pub async fn info(State(app): State<Arc<App>>) -> Response {
    let mut info = app.tokenizer.config().cloned().unwrap_or_else(|| json!({}));
    let t = &app.tokenizer;
    let eos = t.eos().or(app.eos.first().copied());
    for (name, id) in
        [("bos_token", t.bos().or(app.defaults.bos)), ("eos_token", eos), ("pad_token", t.pad())]
    {
        info[name] = id.and_then(|id| t.inner().id_to_token(id)).into();
    }
    info["chat_template"] = app.template.as_ref().map(|t| t.source().to_string()).into();
    axum::Json(info).into_response()
}
