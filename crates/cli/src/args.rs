//! The command line. Help, man pages, shell completions and `docs/cli.md` all come from these definitions.

use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::{
    commands,
    output::Out,
    overrides::{self, Override},
};

/// Linear-attention language models: train, generate, evaluate, verify.
#[derive(Debug, Parser)]
#[command(
    name = "flashlin",
    version,
    propagate_version = true,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(after_help = "Exit codes: 0 success, 1 failure while running, 2 wrong request.")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Debug, ClapArgs)]
pub struct Global {
    /// Print results as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Threads to compute with [default: all cores]; results do not depend on it
    #[arg(long, global = true, value_name = "N", help_heading = "Global options", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Say more on stderr (-v, -vv, -vvv)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub quiet: bool,
}

/// What all commands share once the global options took effect.
#[derive(Debug)]
pub struct Context {
    /// Where results go, and in which form.
    pub out: Out,
    /// No progress, no warnings.
    pub quiet: bool,
    /// Threads in use.
    pub threads: usize,
}

impl Global {
    /// Sets up logging and the thread pool.
    pub fn apply(&self) -> anyhow::Result<Context> {
        let level = match (self.quiet, self.verbose) {
            (true, _) => "error",
            (_, 0) => "warn",
            (_, 1) => "info",
            (_, 2) => "debug",
            _ => "trace",
        };
        let filter = tracing_subscriber::EnvFilter::try_from_env("FLASHLIN_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_target(false)
            .without_time()
            .init();
        let mut pool = rayon::ThreadPoolBuilder::new();
        if let Some(n) = self.threads {
            pool = pool.num_threads(usize::from(n));
        }
        pool.build_global()?;
        let threads = rayon::current_num_threads();
        Ok(Context { out: Out { json: self.json }, quiet: self.quiet, threads })
    }
}

/// The commands, in the order of the help.
#[derive(Debug, Subcommand)]
pub enum Command {
    Quickstart(commands::quickstart::Quickstart),
    Train(commands::train::Train),
    Generate(commands::generate::Generate),
    Eval(commands::eval::Eval),
    Serve(commands::serve::Serve),
    Models(commands::models::Models),
    Ops(commands::ops::Ops),
    Devices(commands::devices::Devices),
    Show(commands::show::Show),
    New(commands::new::New),
    Convert(commands::convert::Convert),
    Verify(commands::verify::Verify),
    VerifyOps(commands::verify_ops::VerifyOps),
    VerifyKernels(commands::verify_kernels::VerifyKernels),
    Bench(commands::bench::Bench),
    Completions(commands::completions::Completions),
    Man(commands::man::Man),
    #[command(hide = true)]
    Docs(commands::docs::Docs),
}

impl Command {
    /// Runs the command. `overrides` are for those that read a run's configuration.
    pub fn run(self, ctx: &Context, overrides: &[Override]) -> anyhow::Result<()> {
        if !matches!(self, Command::Quickstart(_) | Command::Train(_)) {
            overrides::refuse(overrides)?;
        }
        match self {
            Command::Quickstart(c) => c.run(ctx, overrides),
            Command::Train(c) => c.run(ctx, overrides),
            Command::Generate(c) => c.run(ctx),
            Command::Eval(c) => c.run(ctx),
            Command::Serve(c) => c.run(ctx),
            Command::Models(c) => c.run(ctx),
            Command::Ops(c) => c.run(ctx),
            Command::Devices(c) => c.run(ctx),
            Command::Show(c) => c.run(ctx),
            Command::New(c) => c.run(ctx),
            Command::Convert(c) => c.run(ctx),
            Command::Verify(c) => c.run(ctx),
            Command::VerifyOps(c) => c.run(ctx),
            Command::VerifyKernels(c) => c.run(ctx),
            Command::Bench(c) => c.run(ctx),
            Command::Completions(c) => c.run(ctx),
            Command::Man(c) => c.run(ctx),
            Command::Docs(c) => c.run(ctx),
        }
    }
}
