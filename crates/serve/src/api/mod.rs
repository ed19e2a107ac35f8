//! The HTTP side: paths, what all of them check, and what they share.
//!
//! Policy: a body is read within a size and a time before anything looks into it; every error is OpenAI's error object; nothing in a request names
//! a file.

mod chat;
mod completions;
mod error;
mod fields;
mod generation;
mod reply;
mod shape;
mod tokens;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
pub use error::ApiError;
use fields::Fields;
use flashlin::{generate::GenerationConfig, tokenizer::Tokenizer};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;

use crate::{auth::Key, engine::Engine, metrics::Metrics, template::ChatTemplate};

/// What requests may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tokens that a choice may have.
    pub max_tokens: usize,
    /// Time from a request's acceptance to its end.
    pub timeout: Duration,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Time in which a body must have arrived.
    pub body_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_tokens: 4096,
            timeout: Duration::from_secs(600),
            body_bytes: 8 << 20,
            body_timeout: Duration::from_secs(30),
        }
    }
}

/// What all handlers share.
pub struct App {
    /// The engine.
    pub engine: Engine,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// The model's name for clients.
    pub name: String,
    /// Tokens of prompt and continuation together.
    pub context: usize,
    /// The model's vocabulary, which may be larger than the tokenizer's.
    pub vocab: usize,
    /// What the model's folder says of generation.
    pub defaults: GenerationConfig,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// How a conversation becomes a prompt.
    pub template: Option<ChatTemplate>,
    /// What requests may use.
    pub options: Limits,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What clients must know, if anything.
    pub key: Option<Key>,
    /// When the server began, in seconds of Unix time.
    pub created: u64,
    /// Set when the server is about to end: it finishes what it has.
    pub draining: AtomicBool,
}

type Result<T> = std::result::Result<T, ApiError>;

impl App {
    /// Refuses the name of another model.
    fn check_model(&self, name: Option<String>) -> Result<()> {
        match name {
            Some(name) if name != self.name => {
                let shown: String = name.chars().take(100).collect();
                let message = format!("The model `{shown}` does not exist; this server has `{}`.", self.name);
                Err(ApiError::param("model", message).status(StatusCode::NOT_FOUND).code("model_not_found"))
            }
            _ => Ok(()),
        }
    }

    /// Seconds after which a full queue may have room.
    fn wait(&self) -> u64 {
        let waiting = self.metrics.waiting.get().max(0) as u64;
        (1 + waiting / self.engine.options().slots as u64).min(60)
    }

    /// Reads a request's body as a JSON object.
    async fn fields(&self, request: Request) -> Result<Fields> {
        check_json(request.headers())?;
        let limit = self.options.body_bytes;
        let body = Limited::new(request.into_body(), limit).collect();
        let body = tokio::time::timeout(self.options.body_timeout, body).await.map_err(|_| {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "The request's body did not arrive in time.")
        })?;
        let body: Bytes = match body {
            Ok(body) => body.to_bytes(),
            Err(e) if e.is::<LengthLimitError>() => {
                let message =
                    format!("The request's body is larger than this server's limit of {limit} bytes.");
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            Err(e) => {
                return Err(ApiError::new(
                    StatusCode::BAD_REQUEST,
                    format!("The request's body broke off: {e}"),
                ));
            }
        };
        Fields::parse(&body)
    }
}

/// Other types than JSON are refused: a web page of somebody else's can send plain text without asking, but not JSON.
fn check_json(headers: &HeaderMap) -> Result<()> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "application/json" => Ok(()),
        _ => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The request needs the header 'Content-Type: application/json'.",
        )),
    }
}

/// Runs work that takes longer than a task may hold its thread: tokenizing a large text.
async fn heavy<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("reading the prompt failed: {e}")))
    })
}

/// All paths.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions::handle))
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::info))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

/// Before every handler: who asks, and whether the server still takes requests. After it: counting.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = known(request.uri().path());
    let allowed = path == "/health" || app.key.as_ref().is_none_or(|key| key.opens(request.headers()));
    let response = if !allowed {
        let message = "Incorrect or missing API key: send it as 'Authorization: Bearer KEY'.";
        ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key").into_response()
    } else if app.draining.load(Ordering::SeqCst) && request.method() == Method::POST {
        let message = "The server is shutting down.";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(5).into_response()
    } else {
        next.run(request).await
    };
    app.metrics.answered(path, response.status().as_u16());
    response
}

/// The path as one of ours, for counting.
fn known(path: &str) -> &'static str {
    let ours = [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/tokenizer_info",
        "/metrics",
        "/health",
    ];
    match ours.into_iter().find(|p| *p == path) {
        Some(path) => path,
        None if path.starts_with("/v1/models/") => "/v1/models",
        None => "other",
    }
}

async fn unknown(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(StatusCode::NOT_FOUND, format!("Unknown request URL: {method} {path}.")).code("unknown_url")
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not what {path} takes."))
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let draining = app.draining.load(Ordering::SeqCst);
    let (status, word) =
        if draining { (StatusCode::SERVICE_UNAVAILABLE, "draining") } else { (StatusCode::OK, "ok") };
    (status, axum::Json(json!({"status": word}))).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.text()).into_response()
}

fn card(app: &App) -> serde_json::Value {
    json!({
        "id": app.name, "object": "model", "created": app.created, "owned_by": "flashlin",
        "max_model_len": app.context,
    })
}

async fn models(State(app): State<Arc<App>>) -> Response {
    axum::Json(json!({"object": "list", "data": [card(&app)]})).into_response()
}

async fn model(
    State(app): State<Arc<App>>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Response> {
    app.check_model(Some(name))?;
    Ok(axum::Json(card(&app)).into_response())
}
