//! Questions with choices, from jsonl files of the forms that are common.
//!
//! | schema | fields | prompt |
//! |---|---|---|
//! | `arc` | `question`, `choices.text`, `choices.label`, `answerKey` | `Question: ..\nAnswer:` |
//! | `hellaswag` | `ctx_a`, `ctx_b`, `activity_label`, `endings`, `label` | the context, cleaned as WikiHow needs it |
//! | `piqa` | `goal`, `sol1`, `sol2`, `label` | `Question: ..\nAnswer:` |
//! | `plain` | `query`, `choices` (texts), `gold` (an index) | the query as it is |
//!
//! The prompts are those of `lm_eval`'s tasks `arc_easy`, `arc_challenge`, `hellaswag` and `piqa`.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::LazyLock,
};

use regex::Regex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Error, Result, text::is_blank};

/// A question: which of `choices` best follows `query`?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doc {
    /// The text before a choice, without the blank between them.
    pub query: String,
    /// At least one text, none of them empty.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub gold: usize,
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Schema {
    Arc,
    Hellaswag,
    Piqa,
    Plain,
}

/// Fields that a schema is recognised by, in the order in which they are looked for.
const FIELDS: [(Schema, &[&str]); 4] = [
    (Schema::Arc, &["question", "choices", "answerKey"]),
    (Schema::Hellaswag, &["ctx_a", "ctx_b", "activity_label", "endings", "label"]),
    (Schema::Piqa, &["goal", "sol1", "sol2", "label"]),
    (Schema::Plain, &["query", "choices", "gold"]),
];

impl Schema {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Schema::Arc => "arc",
            Schema::Hellaswag => "hellaswag",
            Schema::Piqa => "piqa",
            Schema::Plain => "plain",
        }
    }

    fn of(line: &Value) -> Option<Schema> {
        FIELDS.iter().find(|(_, fields)| fields.iter().all(|f| line.get(f).is_some())).map(|(s, _)| *s)
    }
}

impl FromStr for Schema {
    type Err = String;

    fn from_str(name: &str) -> Result<Schema, String> {
        let found = FIELDS.iter().map(|(s, _)| *s).find(|s| s.name() == name);
        found.ok_or_else(|| "expected arc, hellaswag, piqa or plain".into())
    }
}

/// Reads a jsonl file. Without a schema its first line decides which it is; returns it.
///
/// # Errors
/// A file that cannot be read, and lines that are not of the schema: the line and the field are named.
pub fn read(path: &Path, schema: Option<Schema>) -> Result<(Vec<Doc>, Schema)> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "reading"))?;
    let (mut docs, mut schema) = (Vec::new(), schema);
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let bad = |problem: String| Error::Line { path: PathBuf::from(path), line: i + 1, problem };
        let value: Value = serde_json::from_str(line).map_err(|e| bad(format!("malformed JSON: {e}")))?;
        let form = match schema.or_else(|| Schema::of(&value)) {
            Some(form) => *schema.insert(form),
            None => return Err(bad(unknown())),
        };
        docs.push(doc(form, value).map_err(bad)?);
    }
    match schema {
        Some(schema) if !docs.is_empty() => Ok((docs, schema)),
        _ => Err(Error::file(path, "holds no line of JSON")),
    }
}

fn unknown() -> String {
    let form = |(s, fields): &(Schema, &[&str])| format!("{} ({})", s.name(), fields.join(", "));
    format!("is of no known schema; known: {}", FIELDS.iter().map(form).collect::<Vec<_>>().join("; "))
}

#[derive(Deserialize)]
struct ArcChoices {
    text: Vec<String>,
    label: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arc {
    question: String,
    choices: ArcChoices,
    answer_key: String,
}

#[derive(Deserialize)]
struct Hellaswag {
    ctx_a: String,
    ctx_b: String,
    activity_label: String,
    endings: Vec<String>,
    label: Index,
}

#[derive(Deserialize)]
struct Piqa {
    goal: String,
    sol1: String,
    sol2: String,
    label: Index,
}

#[derive(Deserialize)]
struct Plain {
    query: String,
    choices: Vec<String>,
    gold: Index,
}

/// An index as a number or as its digits.
#[derive(Deserialize)]
#[serde(untagged)]
enum Index {
    Number(usize),
    Digits(String),
}

impl Index {
    fn get(&self) -> Result<usize, String> {
        match self {
            Index::Number(n) => Ok(*n),
            Index::Digits(s) => {
                s.parse().map_err(|_| format!("the label is `{s}`, expected a number from 0"))
            }
        }
    }
}

fn doc(schema: Schema, line: Value) -> Result<Doc, String> {
    fn fields<T: DeserializeOwned>(schema: Schema, line: Value) -> Result<T, String> {
        serde_json::from_value(line).map_err(|e| format!("schema {}: {e}", schema.name()))
    }
    let doc = match schema {
        Schema::Arc => {
            let d: Arc = fields(schema, line)?;
            let at = d.choices.label.iter().position(|l| *l == d.answer_key);
            let gold = at.ok_or_else(|| format!("answerKey `{}` is none of the labels", d.answer_key))?;
            Doc { query: format!("Question: {}\nAnswer:", d.question), choices: d.choices.text, gold }
        }
        Schema::Hellaswag => {
            let d: Hellaswag = fields(schema, line)?;
            let query = clean(&format!("{}: {} {}", d.activity_label, d.ctx_a, capitalize(&d.ctx_b)));
            Doc { query, choices: d.endings.iter().map(|e| clean(e)).collect(), gold: d.label.get()? }
        }
        Schema::Piqa => {
            let d: Piqa = fields(schema, line)?;
            let query = format!("Question: {}\nAnswer:", d.goal);
            Doc { query, choices: vec![d.sol1, d.sol2], gold: d.label.get()? }
        }
        Schema::Plain => {
            let d: Plain = fields(schema, line)?;
            Doc { query: d.query, choices: d.choices, gold: d.gold.get()? }
        }
    };
    if doc.gold >= doc.choices.len() {
        return Err(format!("the right choice is number {} of {} (from 0)", doc.gold, doc.choices.len()));
    }
    match doc.choices.iter().position(String::is_empty) {
        Some(i) => Err(format!("choice {i} is empty")),
        None => Ok(doc),
    }
}

/// Python's `str.capitalize`: the first letter large, the others small.
fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    // Of a letter that becomes several (ß), one is large.
    let mut large = first.to_uppercase();
    let head: String = large.next().into_iter().chain(large.flat_map(char::to_lowercase)).collect();
    head + &chars.as_str().to_lowercase()
}

/// A text of HellaSwag without the marks that WikiHow left in it.
fn clean(text: &str) -> String {
    static MARKS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\[.*?\]").ok());
    let text = text.trim_matches(is_blank).replace(" [title]", ". ");
    let text = match &*MARKS {
        Some(marks) => marks.replace_all(&text, "").into_owned(),
        None => text,
    };
    text.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_lines(lines: &[Value], schema: Option<Schema>) -> Result<(Vec<Doc>, Schema)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = lines.iter().map(|l| format!("{l}\n\n")).collect();
        std::fs::write(file.path(), text).unwrap();
        read(file.path(), schema)
    }

    #[test]
    fn schemas_are_detected_and_read() {
        let arc = json!({"id": "x", "question": "Why?", "answerKey": "2", "choices": {"text": ["a", "b"], "label": ["1", "2"]}});
        let (docs, schema) = read_lines(&[arc], None).unwrap();
        assert_eq!(schema, Schema::Arc);
        assert_eq!(
            docs,
            [Doc { query: "Question: Why?\nAnswer:".into(), choices: vec!["a".into(), "b".into()], gold: 1 }]
        );
        let swag = json!({
            "ctx_a": "A man  sits.", "ctx_b": "he READS", "activity_label": "Reading", "label": "0",
            "endings": [" [title] Open it. [substeps] Now. ", "sleeps."],
        });
        let (docs, schema) = read_lines(&[swag], None).unwrap();
        assert_eq!((schema, docs[0].query.as_str()), (Schema::Hellaswag, "Reading: A man sits. He reads"));
        assert_eq!(docs[0].choices, [" Open it. Now.", "sleeps."]);
        let piqa = json!({"goal": "g", "sol1": "x", "sol2": "y", "label": 1});
        assert_eq!(read_lines(&[piqa], None).unwrap().0[0].gold, 1);
        let plain = json!({"query": "q", "choices": ["x"], "gold": 0});
        assert_eq!(read_lines(&[plain], Some(Schema::Plain)).unwrap().0[0].query, "q");
    }

    #[test]
    fn damage_is_named() {
        let plain = |choices: Value, gold: Value| json!({"query": "q", "choices": choices, "gold": gold});
        for (lines, needle) in [
            (vec![], "holds no line"),
            (vec![json!({"a": 1})], "known: arc (question, choices, answerKey)"),
            (vec![json!([1])], "no known schema"),
            (vec![plain(json!(["x"]), json!(1))], "number 1 of 1"),
            (vec![plain(json!([]), json!(0))], "number 0 of 0"),
            (vec![plain(json!(["x", ""]), json!(0))], "choice 1 is empty"),
            (vec![plain(json!(["x"]), json!("zero"))], "`zero`"),
            (vec![plain(json!(["x"]), json!(0)), json!({"query": 1})], "line 3: schema plain"),
        ] {
            let e = read_lines(&lines, None).unwrap_err().to_string();
            assert!(e.contains(needle), "{e}");
        }
    }

    #[test]
    fn capitals() {
        assert_eq!(capitalize("éCOLE Ünd"), "École ünd");
        assert_eq!(capitalize("ßA"), "Ssa");
        assert_eq!(capitalize(""), "");
    }
}
