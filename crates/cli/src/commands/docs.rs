//! `flashlin docs`: writes the generated reference pages, or checks that they are fresh (CI does).

use std::path::PathBuf;

use clap::Args;

use crate::{args::Context, docs, failure::Failure};

/// Write the generated reference pages
#[derive(Debug, Args)]
pub struct Docs {
    /// The docs folder
    #[arg(long, value_name = "DIR", default_value = "docs")]
    out: PathBuf,
    /// Write nothing; fail when a page differs from what would be written
    #[arg(long)]
    check: bool,
}

impl Docs {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let mut stale = Vec::new();
        for (name, text) in docs::pages() {
            let path = self.out.join(name);
            let old = std::fs::read_to_string(&path).unwrap_or_default();
            if old == text {
                continue;
            }
            if self.check {
                stale.push(path.display().to_string());
            } else {
                flashlin::files::write_bytes(&path, text.as_bytes())?;
                ctx.out.line(path.display().to_string())?;
            }
        }
        if stale.is_empty() {
            return Ok(());
        }
        Err(Failure::runtime(format!("stale: {}", stale.join(", "))).hint("run `cargo run -- docs`").into())
    }
}
