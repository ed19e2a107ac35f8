//! `flashlin verify-ops`: the conformance suite of the operators, from the binary.

use clap::Args;
use flashlin_ops::conformance::{CHECKS, SequenceOp};
use serde::Serialize;

use crate::{
    args::Context,
    failure::{Failure, NotPassed},
    table::Table,
};

/// Check the sequence operators against their f64 references on this machine (the conformance suite)
#[derive(Debug, Args)]
pub struct VerifyOps {
    /// Families to check [default: all]
    families: Vec<String>,
    /// Where to compute
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Run only this check
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(CHECKS.iter().map(|(name, _)| *name)))]
    check: Option<String>,
}

/// What has a suite.
const SUITES: &[&dyn SequenceOp] = &[&flashlin_ops::decay::Conformance, &flashlin_ops::delta::Conformance];

/// Result of one check.
#[derive(Serialize)]
struct Row {
    family: &'static str,
    check: &'static str,
    comparisons: usize,
    failed: usize,
    /// The largest error as a share of its tolerance.
    worst: Option<f64>,
    failures: Vec<String>,
}

impl VerifyOps {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let device = super::parse_device(&self.device)?;
        let names: Vec<_> = SUITES.iter().map(|op| op.name()).collect();
        if let Some(name) = self.families.iter().find(|f| !names.contains(&f.as_str())) {
            let message = format!("there is no suite `{name}`");
            return Err(Failure::usage(message).hint(format!("suites: {}", names.join(", "))).into());
        }
        let mut rows = Vec::new();
        let chosen =
            |op: &&&dyn SequenceOp| self.families.is_empty() || self.families.iter().any(|f| f == op.name());
        for op in SUITES.iter().filter(chosen) {
            for (name, check) in
                CHECKS.iter().filter(|(name, _)| self.check.as_deref().is_none_or(|c| c == *name))
            {
                tracing::info!("{}: {name}", op.name());
                let report = check(*op, &device);
                let failures: Vec<String> = report.failures().map(ToString::to_string).collect();
                let worst = report.worst().filter(|f| f.tolerance > 0.0).map(|f| f.error / f.tolerance);
                let (comparisons, failed) = (report.findings.len(), failures.len());
                rows.push(Row { family: op.name(), check: name, comparisons, failed, worst, failures });
            }
        }
        // A check that compared nothing has shown nothing.
        let pass = rows.iter().all(|r| r.failed == 0 && r.comparisons > 0);
        ctx.out.rows(&rows, |rows| {
            let mut table =
                Table::new(&["family", "check", "comparisons", "failed", "worst error / tolerance"]);
            for r in rows {
                let worst = r.worst.map_or(String::new(), |w| format!("{w:.2}"));
                table.row([r.family, r.check, &r.comparisons.to_string(), &r.failed.to_string(), &worst]);
            }
            table
        })?;
        if !ctx.out.json {
            rows.iter().flat_map(|r| &r.failures).take(20).try_for_each(|f| ctx.out.line(f))?;
        }
        if pass { Ok(()) } else { Err(NotPassed.into()) }
    }
}
