//! The table `tiles/jobs.toml`: which configurations of which kernels ship.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use flashlin_kernels::{Arch, Arg, kernel_name};
use serde::Deserialize;

use super::source::Sources;

/// One cubin to make.
#[derive(Clone, Debug)]
pub struct Job {
    /// As in the bundle.
    pub name: String,
    /// Folder of the source.
    pub family: String,
    /// Entry.
    pub kernel: String,
    /// Dtype of the main arrays.
    pub dtype: String,
    /// Const generics in the source's order.
    pub generics: Vec<(String, i64)>,
    /// What the front end is given, in order: types, then consts.
    pub arguments: Vec<String>,
    /// Hint; 0 is none.
    pub warps: u32,
    /// Hint; 0 is none.
    pub occupancy: u32,
    /// Launch arguments.
    pub abi: Vec<Arg>,
    /// Name of the grid rule.
    pub grid: String,
    /// Hash of the source.
    pub source: String,
    /// The source asks for loads without TMA.
    pub no_tma: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    job: Vec<Row>,
}

/// Every combination of `dtypes`, the lists in `generics` and `hints` is a job.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    kernel: String,
    grid: String,
    dtypes: Vec<String>,
    #[serde(default)]
    generics: BTreeMap<String, Vec<i64>>,
    /// (warps, occupancy)
    hints: Vec<(u32, u32)>,
    /// All where absent.
    arch: Option<Vec<String>>,
}

/// The jobs of an architecture.
pub fn jobs(sources: &Sources, arch: Arch) -> Result<Vec<Job>> {
    let table: Table = toml::from_str(&sources.jobs).context("jobs.toml")?;
    let mut out = Vec::new();
    for row in &table.job {
        if row.arch.as_ref().is_some_and(|a| !a.iter().any(|a| a == arch.name())) {
            continue;
        }
        let entry =
            sources.entries.get(&row.kernel).ok_or_else(|| anyhow!("jobs.toml: no kernel {}", row.kernel))?;
        if let Some(extra) = row.generics.keys().find(|k| !entry.consts.contains(k)) {
            bail!("jobs.toml: {} has no generic {extra}", row.kernel);
        }
        let mut sets: Vec<Vec<(String, i64)>> = vec![Vec::new()];
        for name in &entry.consts {
            let values =
                row.generics.get(name).ok_or_else(|| anyhow!("jobs.toml: {} lacks {name}", row.kernel))?;
            sets = sets
                .iter()
                .flat_map(|set| values.iter().map(|v| [set.clone(), vec![(name.clone(), *v)]].concat()))
                .collect();
        }
        for dtype in &row.dtypes {
            for generics in &sets {
                for &(warps, occupancy) in &row.hints {
                    let mut arguments = type_arguments(&entry.types, dtype)?;
                    arguments.extend(generics.iter().map(|(_, v)| v.to_string()));
                    out.push(Job {
                        name: kernel_name(&row.kernel, dtype, generics, warps, occupancy),
                        family: entry.family.clone(),
                        kernel: row.kernel.clone(),
                        dtype: dtype.clone(),
                        generics: generics.clone(),
                        arguments,
                        warps,
                        occupancy,
                        abi: entry.abi.clone(),
                        grid: row.grid.clone(),
                        source: entry.source.clone(),
                        no_tma: entry.no_tma,
                    });
                }
            }
        }
    }
    Ok(out)
}

/// `E` is the dtype of the main arrays, `F` that of the products in triangular solves. A dtype `f32-bf16` is `E` before the dash and `O` after it.
fn type_arguments(types: &[String], dtype: &str) -> Result<Vec<String>> {
    let (main, other) = dtype.split_once('-').unwrap_or((dtype, dtype));
    types
        .iter()
        .map(|t| match (t.as_str(), main) {
            ("E", _) => Ok(main.to_string()),
            ("O", _) => Ok(other.to_string()),
            ("F", "f32") => Ok("tf32".to_string()),
            ("F", _) => Ok("f16".to_string()),
            _ => bail!("type parameter {t}: E, F and O are known"),
        })
        .collect()
}
