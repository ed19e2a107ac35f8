//! One JSON object a line, its text in one field.

use std::path::PathBuf;

use serde_json::Value;

use super::files::{Cursor, Piece, Reader, field_names, quoted};
use super::lines::Lines;
use crate::{Error, Result};

pub(super) struct Jsonl {
    pub path: PathBuf,
    pub lines: Lines,
    /// The field asked for; `None`: the first usual one that is there.
    pub field: Option<String>,
}

impl Reader for Jsonl {
    fn next(&mut self) -> Result<Option<Piece>> {
        while let Some((line, number)) = self.lines.next()? {
            if line.trim().is_empty() {
                continue;
            }
            return match text_of(line, self.field.as_deref()) {
                Ok(text) => Ok(Some(Piece::document(text))),
                Err(problem) => Err(Error::Record { path: self.path.clone(), line: number, problem }),
            };
        }
        Ok(None)
    }

    fn cursor(&self) -> Cursor {
        Cursor { offset: self.lines.offset, line: self.lines.line }
    }
}

fn text_of(line: &str, field: Option<&str>) -> std::result::Result<String, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("malformed JSON: {e}"))?;
    let Value::Object(mut object) = value else {
        return Err("expected a JSON object".into());
    };
    let asked = field_names(field);
    let Some(name) = asked.iter().find(|f| object.contains_key(**f)) else {
        let names: Vec<&str> = object.keys().map(String::as_str).take(20).collect();
        return Err(format!("no field {} (the object has: {})", quoted(&asked), names.join(", ")));
    };
    match object.remove(*name) {
        Some(Value::String(text)) => Ok(text),
        // A missing text is an empty document.
        Some(Value::Null) | None => Ok(String::new()),
        Some(_) => Err(format!("field \"{name}\" is not a string")),
    }
}
