//! JSON as Python writes it: bare `Infinity` and `NaN`, or `{"__float__": "Infinity"}`, stand for floats that
//! JSON lacks.

use serde_json::Value;

/// Parses JSON, accepting Python's bare `Infinity`, `-Infinity` and `NaN` (as `{"__float__": ..}`).
///
/// # Errors
/// Syntax errors with line and column.
pub fn parse_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(text).or_else(|first| {
        let marked = mark_floats(text);
        if marked == text { Err(first) } else { serde_json::from_str(&marked) }
    })
}

/// Wraps bare non-finite literals outside strings.
fn mark_floats(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        if in_string {
            let n = if c == '\\' {
                c.len_utf8() + rest[1..].chars().next().map_or(0, char::len_utf8)
            } else {
                c.len_utf8()
            };
            in_string = c != '"';
            out.push_str(&rest[..n]);
            rest = &rest[n..];
            continue;
        }
        let literal = ["-Infinity", "Infinity", "NaN"].into_iter().find(|l| rest.starts_with(l));
        if let Some(l) = literal {
            out.push_str(&format!("{{\"__float__\": \"{l}\"}}"));
            rest = &rest[l.len()..];
        } else {
            in_string = c == '"';
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// Replaces `{"__float__": ".."}` by a number; infinities become the largest finite value, which bounds the same.
pub(super) fn plain_floats(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().map(plain_floats).collect()),
        Value::Object(map) => match (map.len(), map.get("__float__").and_then(Value::as_str)) {
            (1, Some("Infinity" | "inf")) => f64::MAX.into(),
            (1, Some("-Infinity" | "-inf")) => f64::MIN.into(),
            (1, Some(text)) => {
                text.parse::<f64>().ok().filter(|x| x.is_finite()).map_or(Value::Null, Value::from)
            }
            _ => Value::Object(map.iter().map(|(k, v)| (k.clone(), plain_floats(v))).collect()),
        },
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_floats_are_understood() {
        let v: Value =
            parse_json(r#"{"a": [0.0, Infinity], "b": "Infinity \" NaN", "c": -Infinity}"#).unwrap();
        assert_eq!(v["b"], "Infinity \" NaN");
        assert_eq!(plain_floats(&v["a"]), serde_json::json!([0.0, f64::MAX]));
        assert_eq!(plain_floats(&v["c"]), serde_json::json!(f64::MIN));
        assert_eq!(plain_floats(&v["a"][1]), plain_floats(&serde_json::json!({"__float__": "Infinity"})));
        assert!(parse_json::<Value>("{\"a\": Infinit}").is_err());
        assert!(parse_json::<Value>("{\"a\\").is_err());
    }
}
