//! `flashlin man`: manual pages.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use crate::args::Context;

/// Print the manual page, or write one page a command into a folder
#[derive(Debug, Args)]
pub struct Man {
    /// Folder for `flashlin.1`, `flashlin-train.1`, ...
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Man {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let mut root = crate::args::Args::command();
        root.build();
        let Some(dir) = self.out else {
            let mut page = Vec::new();
            clap_mangen::Man::new(root).render(&mut page)?;
            return ctx.out.text(String::from_utf8_lossy(&page));
        };
        flashlin::files::create_dir(&dir)?;
        write_pages(&dir, &root)
    }
}

/// A page for the command and each below it.
fn write_pages(dir: &std::path::Path, command: &clap::Command) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_string();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    flashlin::files::write_bytes(&dir.join(format!("{name}.1")), &page)?;
    let visible = |c: &&clap::Command| !c.is_hide_set() && c.get_name() != "help";
    command.get_subcommands().filter(visible).try_for_each(|c| write_pages(dir, c))
}
