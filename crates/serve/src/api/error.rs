//! OpenAI's error objects.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::engine::Failure;

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which trying again makes sense.
    retry_after: Option<u64>,
}

impl ApiError {
    /// An error of this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A request that cannot be met; `param` is the field at fault.
    pub fn param(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// The same with another status.
    pub fn status(self, status: StatusCode) -> ApiError {
        ApiError { status, ..self }
    }

    /// The same with OpenAI's code.
    pub fn code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code), ..self }
    }

    /// The same with advice on when to try again.
    pub fn retry_after(self, seconds: u64) -> ApiError {
        ApiError { retry_after: Some(seconds), ..self }
    }

    /// The error object.
    pub fn object(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            404 if self.code.is_none() => "invalid_request_error",
            429 => "rate_limit_error",
            504 => "timeout_error",
            s if s >= 500 => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<flashlin::Error> for ApiError {
    fn from(e: flashlin::Error) -> Self {
        match e.kind() {
            flashlin::ErrorKind::Usage => ApiError::new(StatusCode::BAD_REQUEST, e.to_string()),
            _ => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
        }
    }
}

impl From<flashlin::tokenizer::TokenizerError> for ApiError {
    fn from(e: flashlin::tokenizer::TokenizerError) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, e.to_string())
    }
}

impl From<Failure> for ApiError {
    fn from(f: Failure) -> Self {
        match f {
            Failure::Timeout => {
                let message = "The request took longer than this server allows.";
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, message).code("timeout")
            }
            Failure::Internal(why) => {
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("The model failed: {why}"))
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.object().to_string();
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let mut response = (self.status, json, body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
