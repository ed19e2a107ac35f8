//! The `flashlin` binary: it reads the command line, calls the library crates, and prints.
//!
//! Policy: no logic lives here. One file a command (`commands/`); results go to stdout (as JSON under `--json`), everything else to
//! stderr; an error is one line that begins with `error:`, where useful followed by `hint:`; the exit code is 0 for success, 1 for a
//! failure while running, 2 for a wrong request.

mod args;
mod commands;
mod docs;
mod failure;
mod output;
mod overrides;
mod progress;
mod stop;
mod table;

use std::process::ExitCode;

use clap::Parser;

/// A decode step makes thousands of small, short-lived allocations; the system's allocator took 5 % of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    failure::exit_code(run())
}

fn run() -> anyhow::Result<()> {
    let (argv, overrides) = overrides::split(std::env::args_os())?;
    let args = args::Args::parse_from(argv);
    let ctx = args.global.apply()?;
    args.command.run(&ctx, &overrides)
}
