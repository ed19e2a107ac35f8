//! Reading a request's JSON object field by field.
//!
//! Policy: every field is read with its type and range, and the error names it; what is left over at the end is refused, so that no option is
//! passed over in silence. `null` is absence, as OpenAI has it.

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::ApiError;

/// The fields that have not been read yet.
pub struct Fields {
    map: Map<String, Value>,
}

type Result<T> = std::result::Result<T, ApiError>;

impl Fields {
    /// Of a request's body.
    pub fn parse(body: &[u8]) -> Result<Fields> {
        let bad = |why: String| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                format!("We could not parse the JSON body of your request: {why}"),
            )
        };
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields { map }),
            Ok(_) => Err(bad("expected an object".into())),
            Err(e) => Err(bad(e.to_string())),
        }
    }

    /// Of a field that is an object itself.
    pub fn of(map: Map<String, Value>) -> Fields {
        Fields { map }
    }

    /// Takes a field; None where it is absent or null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|v| !v.is_null())
    }

    /// A number from `least` to `most`.
    pub fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f64>> {
        let Some(v) = self.take(name) else { return Ok(None) };
        match v.as_f64().filter(|x| (least..=most).contains(x)) {
            Some(x) => Ok(Some(x)),
            None => Err(wrong(name, &v, &format!("a number from {least} to {most}"))),
        }
    }

    /// An integer from `least` to `most`.
    pub fn integer(&mut self, name: &str, least: i64, most: i64) -> Result<Option<i64>> {
        let Some(v) = self.take(name) else { return Ok(None) };
        // Python clients send 16.0 now and then.
        let whole = v.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15).map(|x| x as i64);
        match v.as_i64().or(whole).filter(|n| (least..=most).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(wrong(name, &v, &format!("an integer from {least} to {most}"))),
        }
    }

    /// As [`Fields::integer`], for a count.
    pub fn count(&mut self, name: &str, least: usize, most: usize) -> Result<Option<usize>> {
        Ok(self.integer(name, least as i64, most.min(i64::MAX as usize) as i64)?.map(|n| n as usize))
    }

    /// True or false; false where absent.
    pub fn flag(&mut self, name: &str) -> Result<bool> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(on)) => Ok(on),
            Some(v) => Err(wrong(name, &v, "true or false")),
        }
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(wrong(name, &v, "a string")),
        }
    }

    /// A field that is understood in one form only: absent, empty or one of `neutral`.
    pub fn only(&mut self, name: &str, neutral: &[Value]) -> Result<()> {
        let Some(v) = self.take(name) else { return Ok(()) };
        let empty = match &v {
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            Value::String(s) => s.is_empty(),
            _ => false,
        };
        if empty || neutral.contains(&v) {
            return Ok(());
        }
        let allowed: Vec<String> = neutral.iter().map(Value::to_string).collect();
        let allowed = if allowed.is_empty() {
            "leave it out".into()
        } else {
            format!("supported: {}", allowed.join(", "))
        };
        Err(ApiError::param(name, format!("'{name}' is not supported by this server ({allowed}).")))
    }

    /// Refuses what was not read.
    pub fn finish(self) -> Result<()> {
        match self.map.into_iter().find(|(_, v)| !v.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(64).collect();
                Err(ApiError::param(
                    shown.clone(),
                    format!("Unrecognized request argument supplied: {shown}"),
                ))
            }
        }
    }
}

/// An error about a field's value, which is shown where it is short.
pub fn wrong(name: &str, value: &Value, expected: &str) -> ApiError {
    let shown = value.to_string();
    let shown = if shown.len() <= 80 { format!(" {shown}") } else { String::new() };
    ApiError::param(name, format!("Invalid value{shown} for '{name}': expected {expected}."))
}
