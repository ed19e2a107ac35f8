//! Metrics on disk: `metrics.jsonl` (one JSON object a line, `kind` says what it is) and TensorBoard event files.
//!
//! Policy: a resumed run drops the lines beyond the step it begins at, so the file reads like that of an uninterrupted run. A line
//! is one write, so a killed run leaves no half line but perhaps the last.

use std::{fs, io::Write, path::Path};

use flashlin::files;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    Error, Result,
    config::LogConfig,
    observer::{Start, Stats, StepMetrics, Validation},
    stats::Stat,
    tensorboard::EventWriter,
};

const JSONL_FILE: &str = "metrics.jsonl";
const TENSORBOARD_DIR: &str = "tensorboard";

/// Where metrics go.
pub(crate) struct Sink {
    jsonl: Option<(std::path::PathBuf, fs::File)>,
    events: Option<EventWriter>,
}

impl Sink {
    /// Opens what the configuration asks for; `step` is where the run begins.
    pub fn open(dir: &Path, config: &LogConfig, step: u64) -> Result<Sink> {
        let path = dir.join(JSONL_FILE);
        let jsonl = match config.jsonl {
            true => {
                keep_until(&path, step)?;
                let file = fs::File::options().create(true).append(true).open(&path);
                let file = file.map_err(Error::io(&path, "opening"))?;
                Some((path, file))
            }
            false => None,
        };
        let events =
            config.tensorboard.then(|| EventWriter::create(&dir.join(TENSORBOARD_DIR), step)).transpose()?;
        Ok(Sink { jsonl, events })
    }

    fn line(&mut self, kind: &str, what: &impl Serialize) -> Result<()> {
        let Some((path, file)) = &mut self.jsonl else { return Ok(()) };
        let mut object = Map::from_iter([("kind".to_string(), Value::from(kind))]);
        match serde_json::to_value(what) {
            Ok(Value::Object(fields)) => object.extend(fields),
            Ok(other) => drop(object.insert("value".into(), other)),
            Err(e) => return Err(Error::file(path, e.to_string())),
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        file.write_all(line.as_bytes()).map_err(Error::io(path, "writing"))
    }

    fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let values: Vec<(&str, f32)> = values.iter().map(|(tag, v)| (&tag[..], *v as f32)).collect();
        events.scalars(step, &values)
    }

    pub fn start(&mut self, start: &Start) -> Result<()> {
        self.line("start", start)
    }

    pub fn train(&mut self, m: &StepMetrics) -> Result<()> {
        self.line("train", m)?;
        let values = [
            ("train/loss", m.loss),
            ("train/lr", m.lr),
            ("train/grad_norm", m.grad_norm),
            ("train/skipped_steps", m.skipped_steps as f64),
            ("train/tokens", m.tokens as f64),
            ("train/tokens_per_second", m.tokens_per_second),
        ];
        self.scalars(m.step, &values.map(|(tag, v)| (tag.to_string(), v)))
    }

    pub fn validation(&mut self, v: &Validation) -> Result<()> {
        self.line("eval", v)?;
        let values = [("eval/loss", v.loss), ("eval/bits_per_byte", v.bits_per_byte)];
        self.scalars(v.step, &values.map(|(tag, v)| (tag.to_string(), v)))
    }

    pub fn stats(&mut self, s: &Stats) -> Result<()> {
        self.line("stats", s)?;
        let tags = |group: &str, stats: &[Stat]| -> Vec<(String, f64)> {
            let one = |s: &Stat| {
                let tag = |what: &str| format!("{group}/{what}/{}", s.name);
                let grad = s.grad_rms.map(|g| (tag("grad_rms"), g));
                [(tag("rms"), s.rms), (tag("max"), s.max)].into_iter().chain(grad)
            };
            stats.iter().flat_map(one).collect()
        };
        let values = [tags("weights", &s.weights), tags("activations", &s.activations)].concat();
        self.scalars(s.step, &values)
    }
}

/// Drops the lines of later steps (and a half-written last line) from an existing file.
fn keep_until(path: &Path, step: u64) -> Result<()> {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(path, "reading")(e)),
    };
    let stays = |line: &&str| {
        let value: Option<Value> = line.strip_suffix('\n').and_then(|l| serde_json::from_str(l).ok());
        value.and_then(|v| v.get("step")?.as_u64()).is_some_and(|s| s <= step)
    };
    let kept: String = text.split_inclusive('\n').filter(stays).collect();
    match kept == text {
        true => Ok(()),
        false => Ok(files::write_bytes(path, kept.as_bytes())?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(dir: &Path) -> Vec<Value> {
        let text = fs::read_to_string(dir.join(JSONL_FILE)).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    fn metrics(step: u64, loss: f64) -> StepMetrics {
        StepMetrics {
            step,
            steps: 9,
            loss,
            lr: 0.1,
            grad_norm: 1.0,
            clip: 1.0,
            skipped_steps: 0,
            tokens: 10 * step,
            tokens_per_second: 1.0,
            seconds: 1.0,
            eta: 1.0,
        }
    }

    #[test]
    fn a_resumed_file_reads_like_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { tensorboard: true, ..LogConfig::default() };
        let mut sink = Sink::open(dir.path(), &config, 0).unwrap();
        for step in 1..=5 {
            sink.train(&metrics(step, step as f64)).unwrap();
        }
        fs::File::options()
            .append(true)
            .open(dir.path().join(JSONL_FILE))
            .and_then(|mut f| f.write_all(b"{\"kind\":\"tr"))
            .unwrap();
        let mut sink = Sink::open(dir.path(), &config, 3).unwrap();
        sink.train(&metrics(4, f64::NAN)).unwrap();
        let seen = lines(dir.path());
        assert_eq!(seen.iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(
            (&seen[2]["loss"], &seen[3]["loss"], &seen[3]["kind"]),
            (&3.0.into(), &Value::Null, &"train".into())
        );
        assert_eq!(fs::read_dir(dir.path().join(TENSORBOARD_DIR)).unwrap().count(), 2);
    }

    #[test]
    fn nothing_is_written_that_was_not_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { jsonl: false, ..LogConfig::default() };
        Sink::open(dir.path(), &config, 0).unwrap().train(&metrics(1, 1.0)).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
