//! `flashlin models`: the model families.

use clap::Args;
use flashlin::{Device, ModelFamily, REGISTRY};
use serde::Serialize;

use crate::{args::Context, table::Table};

/// List the model families: presets, modes, dtypes, devices
#[derive(Debug, Args)]
pub struct Models {
    /// Print this family's page: its formulas, options and limits
    family: Option<String>,
}

/// One family, for `--json` and the docs.
#[derive(Serialize)]
pub struct Row {
    pub model_type: &'static str,
    pub architecture: &'static str,
    pub summary: &'static str,
    pub paper: &'static str,
    pub presets: Vec<String>,
    pub modes: Vec<&'static str>,
    pub dtypes: Vec<&'static str>,
    pub devices: Vec<String>,
}

impl Row {
    /// From the registry's entry.
    pub fn of(family: &dyn ModelFamily) -> Row {
        Row {
            model_type: family.model_type(),
            architecture: family.architecture(),
            summary: family.summary(),
            paper: family.paper(),
            presets: family.presets().iter().map(|(name, _)| name.to_string()).collect(),
            modes: vec!["chunk", "recurrent"],
            dtypes: vec!["f32", "bf16", "f16", "f64"],
            devices: vec![Device::Cpu.to_string(), "cuda".into()],
        }
    }
}

impl Models {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        if let Some(name) = &self.family {
            let family = flashlin::find_family(name)?;
            return match ctx.out.json {
                true => ctx.out.value(&Row::of(family)),
                false => ctx.out.text(family.readme()),
            };
        }
        let rows: Vec<Row> = REGISTRY.iter().map(|f| Row::of(*f)).collect();
        ctx.out.rows(&rows, |rows| {
            let mut table = Table::new(&["model", "presets", "modes", "dtypes", "devices", "what"]);
            for r in rows {
                let join = |v: &[&str]| v.join(",");
                let (presets, devices) = (r.presets.join(","), r.devices.join(","));
                table.row([r.model_type, &presets, &join(&r.modes), &join(&r.dtypes), &devices, r.summary]);
            }
            table
        })
    }
}
