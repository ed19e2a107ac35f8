//! The progress of an evaluation: a bar on a terminal, a line now and then elsewhere, nothing under `--quiet`. Always on stderr.

use std::time::{Duration, Instant};

use flashlin_eval::items::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    args::Context,
    progress::{Form, clock, say_on_stderr},
    table::thousands,
};

/// Time between two lines where there is no terminal.
const LINES: Duration = Duration::from_secs(10);

/// Draws an evaluation.
pub struct Bar {
    form: Form,
    what: &'static str,
    bar: ProgressBar,
    began: Instant,
    said: Instant,
}

impl Bar {
    /// A bar that counts `what` ("questions").
    pub fn new(ctx: &Context, what: &'static str) -> Bar {
        let form = Form::new(ctx.quiet);
        let bar = match form {
            Form::Bar => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            _ => ProgressBar::hidden(),
        };
        if form == Form::Bar {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        Bar { form, what, bar, began: Instant::now(), said: Instant::now() }
    }

    /// Shows where the evaluation is.
    pub fn show(&mut self, p: &Progress) {
        let rate = p.tokens as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
        let total = p.total.map_or(String::new(), |n| format!("/{n}"));
        let text = format!("{} tokens  {rate:.0} tokens/s", thousands(p.tokens));
        match self.form {
            Form::Bar => {
                if let Some(n) = p.total.filter(|&n| self.bar.length() != Some(n as u64)) {
                    self.bar.set_length(n as u64);
                    let style = ProgressStyle::with_template(
                        "{bar:24} {pos}/{len}  {msg}  {elapsed} elapsed, {eta} left",
                    );
                    self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                }
                self.bar.set_position(p.done as u64);
                self.bar.set_message(text);
            }
            Form::Lines if self.said.elapsed() >= LINES => {
                self.said = Instant::now();
                let elapsed = clock(self.began.elapsed().as_secs_f64());
                say_on_stderr(&format!("{}{total} {}  {text}  {elapsed}", p.done, self.what));
            }
            Form::Lines | Form::Nothing => {}
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
