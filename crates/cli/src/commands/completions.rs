//! `flashlin completions`: scripts for shells.

use clap::{Args, CommandFactory};

use crate::args::Context;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completions {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::args::Args::command(), "flashlin", &mut script);
        ctx.out.text(String::from_utf8_lossy(&script))
    }
}
