//! The progress of a training run: a bar on a terminal, plain lines elsewhere, nothing under `--quiet`. Always on stderr.

use std::{io::IsTerminal, time::Duration};

use flashlin_train::{
    Observer,
    checkpoint::Checkpoint,
    observer::{Start, StepMetrics, Validation},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::table::thousands;

/// Draws a run.
pub struct Progress {
    bar: ProgressBar,
    form: Form,
    /// Held-out bits a byte, once known.
    held_out: String,
}

/// How progress is shown.
#[derive(Clone, Copy, PartialEq)]
pub enum Form {
    /// On a terminal.
    Bar,
    /// Where stderr is a file or a pipe.
    Lines,
    /// Under `--quiet`.
    Nothing,
}

impl Form {
    /// What suits stderr.
    pub fn new(quiet: bool) -> Form {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Form::Nothing,
            (_, true) => Form::Bar,
            _ => Form::Lines,
        }
    }
}

/// A line on stderr, which may be closed: then there is nobody to tell.
pub fn say_on_stderr(text: &str) {
    drop(std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes()));
}

impl Progress {
    /// A bar that appears when the run starts.
    pub fn new(quiet: bool) -> Progress {
        Progress { bar: ProgressBar::hidden(), form: Form::new(quiet), held_out: String::new() }
    }

    /// A line above the bar.
    pub fn say(&self, text: impl AsRef<str>) {
        match self.form {
            Form::Bar if !self.bar.is_hidden() => self.bar.println(text.as_ref()),
            Form::Nothing => {}
            _ => say_on_stderr(text.as_ref()),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn started(&mut self, start: &Start) {
        let step =
            if start.step > 0 { format!(", continuing from step {}", start.step) } else { String::new() };
        self.say(format!(
            "training {} parameters for {} steps of {} tokens in {}{step}",
            thousands(start.parameters),
            start.steps,
            thousands(start.tokens_per_step),
            start.dir.display(),
        ));
        if self.form == Form::Bar {
            self.bar = ProgressBar::with_draw_target(Some(start.steps), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}  {elapsed} elapsed");
            self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.enable_steady_tick(Duration::from_millis(500));
            self.bar.set_position(start.step);
        }
    }

    fn stepped(&mut self, step: u64, _steps: u64) {
        self.bar.set_position(step);
    }

    fn logged(&mut self, m: &StepMetrics) {
        let left = clock(m.eta);
        let text =
            format!("loss {:.3}  {:.0} tokens/s  {left} left{}", m.loss, m.tokens_per_second, self.held_out);
        match self.form {
            Form::Bar => self.bar.set_message(text),
            Form::Lines => self.say(format!("step {}/{}  {text}", m.step, m.steps)),
            Form::Nothing => {}
        }
    }

    fn validated(&mut self, v: &Validation) {
        self.held_out = format!("  held out {:.3} bits/byte", v.bits_per_byte);
        self.say(format!("step {}: held out {:.3} bits/byte (loss {:.3})", v.step, v.bits_per_byte, v.loss));
    }

    fn saved(&mut self, checkpoint: &Checkpoint) {
        tracing::info!("saved {}", checkpoint.dir.display());
    }
}

/// Seconds as `1:05`.
pub fn clock(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".into();
    }
    let s = seconds.round() as u64;
    if s >= 3600 {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    } else {
        format!("{}:{:02}", s / 60, s % 60)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn clocks() {
        assert_eq!(super::clock(65.2), "1:05");
        assert_eq!(super::clock(3661.0), "1:01:01");
        assert_eq!(super::clock(f64::NAN), "?");
    }
}
