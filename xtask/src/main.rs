//! What a maintainer runs: `cargo xtask kernels` compiles the GPU kernels into bundles, `cargo xtask gpu` checks and times them on a GPU.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod check;
mod kernels;

#[derive(Parser)]
#[command(about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile the kernels of tiles/ into crates/kernels/bundle/
    Kernels(kernels::Args),
    /// Check kernels against float64 references on a GPU, then time them
    Gpu(check::Args),
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Kernels(args) => kernels::run(&args),
        Command::Gpu(args) => check::run(&args),
    }
}
