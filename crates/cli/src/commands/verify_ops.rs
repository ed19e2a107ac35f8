//! `flashlin verify-ops`: the conformance suite of the operators, from the binary.

use std::collections::BTreeSet;

use clap::Args;
use flashlin_ops::{
    conformance::{ENTRIES, Entry, Report},
    find_op,
};
use flashlin_tensor::{Device, checks};
use serde::Serialize;

use crate::{
    args::Context,
    failure::{Failure, NotPassed},
    table::Table,
};

/// Check the operators against their f64 references on this machine (the conformance suite)
#[derive(Debug, Args)]
pub struct VerifyOps {
    /// Operators or families to check, as `flashlin ops` names them; on a GPU also `tensor` and `optimizer` [default: all]
    ops: Vec<String>,
    /// Where to compute
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Run only this check
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(check_names()))]
    check: Option<String>,
}

/// The names of all checks, each once.
fn check_names() -> BTreeSet<&'static str> {
    ENTRIES.iter().flat_map(Entry::checks).collect()
}

type RunChecks = fn(&Device) -> Vec<checks::Check>;

/// What a GPU is compared with the CPU in, besides the operators.
const BESIDE_CPU: [(&str, RunChecks); 2] =
    [("tensor", checks::run), ("optimizer", flashlin_train::optim::run_checks)];

/// Result of one check.
#[derive(Serialize)]
struct Row {
    suite: &'static str,
    /// Registry entries that the suite stands for.
    ops: &'static [&'static str],
    check: &'static str,
    comparisons: usize,
    failed: usize,
    /// The largest error as a share of its tolerance.
    worst: Option<f64>,
    failures: Vec<String>,
}

impl Row {
    fn new(entry: &Entry, check: &'static str, report: &Report) -> Self {
        let failures: Vec<String> = report.failures().map(ToString::to_string).collect();
        Row {
            suite: entry.name(),
            ops: entry.ops,
            check,
            comparisons: report.findings.len(),
            failed: failures.len(),
            worst: report.worst().filter(|f| f.tolerance > 0.0).map(|f| f.error / f.tolerance),
            failures,
        }
    }

    /// What a device computes beside the CPU.
    fn beside_cpu(suite: &'static str, all: &[checks::Check]) -> Self {
        let failures: Vec<String> = all.iter().filter(|c| !c.passed()).map(|c| format!("{c:?}")).collect();
        let worst = all.iter().filter_map(|c| Some(c.error.as_ref().ok()? / c.tolerance)).reduce(f64::max);
        Row {
            suite,
            ops: &[],
            check: "agrees_with_cpu",
            comparisons: all.len(),
            failed: failures.len(),
            worst,
            failures,
        }
    }

    /// A check that compared nothing has shown nothing.
    fn passed(&self) -> bool {
        self.failed == 0 && self.comparisons > 0
    }
}

impl VerifyOps {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let device: Device =
            self.device.parse().map_err(|e: flashlin_tensor::Error| Failure::usage(e.to_string()))?;
        let mut rows = Vec::new();
        for entry in self.chosen()? {
            let checks = entry.checks();
            let wanted = |name: &&&str| self.check.as_deref().is_none_or(|c| c == **name);
            for name in checks.iter().filter(wanted) {
                tracing::info!("{}: {name}", entry.name());
                let report = entry.run(name, &device).unwrap_or_default();
                rows.push(Row::new(entry, name, &report));
            }
        }
        for (name, run) in BESIDE_CPU {
            let wanted = self.ops.is_empty() || self.ops.iter().any(|o| o == name);
            if wanted && self.check.is_none() && device != Device::Cpu {
                tracing::info!("{name}: beside the CPU");
                rows.push(Row::beside_cpu(name, &run(&device)));
            }
        }
        ctx.out.rows(&rows, table)?;
        if !ctx.out.json {
            rows.iter().flat_map(|r| &r.failures).take(20).try_for_each(|f| ctx.out.line(f))?;
        }
        if !rows.is_empty() && rows.iter().all(Row::passed) { Ok(()) } else { Err(NotPassed.into()) }
    }

    /// The suites that are asked for.
    fn chosen(&self) -> anyhow::Result<Vec<&'static Entry>> {
        let beside = |name: &str| BESIDE_CPU.iter().any(|(n, _)| *n == name);
        let known = |name: &&String| !beside(name) && !ENTRIES.iter().any(|e| e.answers_to(name));
        if let Some(name) = self.ops.iter().find(known) {
            let names: Vec<_> = ENTRIES.iter().map(Entry::name).chain(BESIDE_CPU.map(|(n, _)| n)).collect();
            let message = match find_op(name) {
                Some(_) => format!("`{name}` has no conformance suite"),
                None => format!("there is no operator or family `{name}`"),
            };
            return Err(Failure::usage(message).hint(format!("suites: {}", names.join(", "))).into());
        }
        let wanted = |e: &&Entry| self.ops.is_empty() || self.ops.iter().any(|name| e.answers_to(name));
        Ok(ENTRIES.iter().filter(wanted).collect())
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table =
        Table::new(&["suite", "operators", "check", "comparisons", "failed", "worst error / tolerance"]);
    for r in rows {
        let worst = r.worst.map_or(String::new(), |w| format!("{w:.2}"));
        let (comparisons, failed) = (r.comparisons.to_string(), r.failed.to_string());
        table.row([r.suite, &r.ops.join(" "), r.check, &comparisons, &failed, &worst]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_passes_only_with_comparisons_and_without_failures() {
        let entry = &ENTRIES[0];
        let mut report = Report::default();
        assert!(!Row::new(entry, "check", &report).passed(), "nothing was compared");
        report.compare("case", "o", &[1.0, 2.0], &[1.0, 2.0], 1e-6);
        assert!(Row::new(entry, "check", &report).passed());
        report.compare("case", "d_q", &[1.01, 2.0], &[1.0, 2.0], 1e-6);
        let row = Row::new(entry, "check", &report);
        assert!(!row.passed() && row.failures[0].contains("d_q"), "{:?}", row.failures);
    }

    #[test]
    fn operators_and_families_choose_their_suites() {
        let chosen = |names: &[&str]| {
            let ops = names.iter().map(ToString::to_string).collect();
            let all = VerifyOps { ops, device: "cpu".into(), check: None }.chosen();
            all.map(|all| all.iter().map(|e| e.name()).collect::<Vec<_>>())
        };
        assert_eq!(chosen(&[]).unwrap().len(), ENTRIES.len());
        assert_eq!(chosen(&["gla"]).unwrap(), ["decay"]);
        let losses = ["rope", "cross_entropy", "linear_cross_entropy", "linear_kl_divergence"];
        assert_eq!(chosen(&["loss", "rope"]).unwrap(), losses);
        assert!(chosen(&["glaa"]).unwrap_err().to_string().contains("`glaa`"));
    }
}
