//! Results on stdout, as text or as JSON.
//!
//! Policy: nothing prints with `println!`, which panics when the reader has gone; a closed pipe is an ordinary `io::Error` here and
//! ends the program quietly (see `failure`).

use std::io::Write;

use serde::Serialize;

use crate::table::Table;

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    /// JSON instead of text.
    pub json: bool,
}

impl Out {
    /// Writes text as it is and flushes, so that a stream arrives piece by piece.
    pub fn text(&self, text: impl AsRef<str>) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_ref().as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// Writes a line.
    pub fn line(&self, text: impl AsRef<str>) -> anyhow::Result<()> {
        self.text(format!("{}\n", text.as_ref()))
    }

    /// Writes a value as JSON: indented, one value.
    pub fn value(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(serde_json::to_string_pretty(value)?)
    }

    /// Writes a value as one line of JSON: for streams of records.
    pub fn record(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(serde_json::to_string(value)?)
    }

    /// Writes rows as JSON or as a table.
    pub fn rows<T: Serialize>(&self, rows: &[T], table: impl FnOnce(&[T]) -> Table) -> anyhow::Result<()> {
        if self.json { self.value(&rows) } else { self.text(table(rows).to_string()) }
    }
}
