//! `flashlin verify`: checks golden directories.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use flashlin::{
    Mode,
    verify::{Report, verify_dir},
};
use serde_json::json;

use crate::{
    args::Context,
    failure::{Failure, NotPassed},
    table::Table,
};

/// Check models against what a reference computed from them (golden directories); exit code 0 only when all pass
#[derive(Debug, Args)]
pub struct Verify {
    /// Golden directories: a model with golden.json and golden.safetensors
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    #[command(flatten)]
    device: super::DeviceArgs,
    /// Form of the recurrences
    #[arg(long, value_enum, default_value = "both")]
    mode: Modes,
    /// Print only what fails, and a line a directory
    #[arg(long)]
    brief: bool,
}

/// Which forms to check.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Modes {
    Chunk,
    Recurrent,
    Both,
}

impl Modes {
    fn list(self) -> &'static [Mode] {
        match self {
            Modes::Chunk => &[Mode::Chunk],
            Modes::Recurrent => &[Mode::Recurrent],
            Modes::Both => &[Mode::Chunk, Mode::Recurrent],
        }
    }
}

impl Verify {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let device = self.device.open()?;
        for dir in &self.dirs {
            if !dir.is_dir() {
                return Err(Failure::usage(format!("{}: not a folder", dir.display())).into());
            }
        }
        let mut reports = Vec::new();
        for dir in &self.dirs {
            let report = verify_dir(dir, self.mode.list(), &device);
            if !ctx.out.json {
                ctx.out.text(self.text(&report))?;
            }
            reports.push(report);
        }
        let failed = reports.iter().filter(|r| !r.pass).count();
        if ctx.out.json {
            ctx.out.value(&json!({"pass": failed == 0, "reports": reports}))?;
        } else {
            let all = reports.len();
            ctx.out.line(format!("{} of {all} directories pass", all - failed))?;
        }
        if failed == 0 { Ok(()) } else { Err(NotPassed.into()) }
    }

    fn text(&self, report: &Report) -> String {
        let verdict = |pass| if pass { "pass" } else { "FAIL" };
        let mut table = Table::new(&["key", "mode", "tag", "error", "tolerance", "", "note"]);
        for l in report.lines.iter().filter(|l| !self.brief || !l.pass) {
            let number = |x: Option<f64>| x.map_or_else(|| "-".into(), |x| format!("{x:.1e}"));
            let note = l.note.clone().unwrap_or_default();
            let cells =
                [&l.key, &l.mode, &l.tag, &number(l.error), &number(l.tolerance), verdict(l.pass), &note];
            table.row(cells.map(str::to_string));
        }
        let body =
            if report.lines.iter().all(|l| self.brief && l.pass) { String::new() } else { table.to_string() };
        let (model, lines) = (report.model_type.as_deref().unwrap_or("?"), report.lines.len());
        format!("{}: {model}, {lines} checks: {}\n{body}", report.dir, verdict(report.pass))
    }
}
