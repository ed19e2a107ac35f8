//! `flashlin ops`: the operators.

use clap::Args;
use flashlin_ops::{OPS, OpInfo};
use serde::Serialize;

use crate::{args::Context, table::Table};

/// List the operators: forms, dtypes, devices, gradients
#[derive(Debug, Args)]
pub struct Ops {
    /// Show only this family (`delta`, `decay`, `softmax`, ...)
    #[arg(long)]
    family: Option<String>,
}

/// One operator, for `--json`.
#[derive(Serialize)]
pub struct Row {
    name: &'static str,
    family: &'static str,
    summary: &'static str,
    source: &'static str,
    modes: Vec<String>,
    dtypes: Vec<String>,
    devices: &'static [&'static str],
    grads: &'static [&'static str],
}

impl Row {
    /// From the registry's entry.
    pub fn of(op: &OpInfo) -> Row {
        Row {
            name: op.name,
            family: op.family,
            summary: op.summary,
            source: op.source,
            modes: op.modes.iter().map(ToString::to_string).collect(),
            dtypes: op.dtypes.iter().map(ToString::to_string).collect(),
            devices: op.devices,
            grads: op.grads,
        }
    }
}

impl Ops {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let chosen = |op: &&&OpInfo| self.family.as_deref().is_none_or(|f| op.family == f);
        let rows: Vec<Row> = OPS.iter().filter(chosen).map(|op| Row::of(op)).collect();
        if rows.is_empty() {
            let mut families: Vec<_> = OPS.iter().map(|op| op.family).collect();
            families.dedup();
            let message = format!("--family: there is no `{}`", self.family.unwrap_or_default());
            return Err(crate::failure::Failure::usage(message)
                .hint(format!("families: {}", families.join(", ")))
                .into());
        }
        ctx.out.rows(&rows, |rows| {
            let mut table = Table::new(&["op", "family", "modes", "dtypes", "devices", "what"]);
            for r in rows {
                let (modes, dtypes, devices) = (r.modes.join(","), r.dtypes.join(","), r.devices.join(","));
                table.row([r.name, r.family, &modes, &dtypes, &devices, r.summary]);
            }
            table
        })
    }
}
