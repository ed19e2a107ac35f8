//! `flashlin eval`: how good a model is.

mod bar;
mod choice;
mod ppl;
mod recall;
mod ruler;
mod shared;

use clap::{Args, Subcommand};

use crate::args::Context;

/// Evaluate a model
#[derive(Debug, Args)]
pub struct Eval {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Ppl(ppl::Ppl),
    Choice(choice::Choice),
    Ruler(ruler::Ruler),
    Mqar(recall::Mqar),
    Copy(recall::Copy),
}

impl Eval {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        match self.what {
            What::Ppl(c) => c.run(ctx),
            What::Choice(c) => c.run(ctx),
            What::Ruler(c) => c.run(ctx),
            What::Mqar(c) => c.run(ctx),
            What::Copy(c) => c.run(ctx),
        }
    }
}
