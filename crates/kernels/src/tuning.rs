//! Which configuration of a kernel is the fastest, as measured: the tables in `tuning/`.
//!
//! Policy: a table is data, one file an architecture, written from measurements. What a kernel *must* have (head dims, type, var-len) comes from the plan; the table orders
//! what is left (block of V, latency, warps, occupancy) by how full the GPU is. Nothing in it is keyed on T, and nothing is tuned at run
//! time. A kernel without a line takes its first configuration by name.

use std::{collections::BTreeMap, sync::OnceLock};

use serde::Deserialize;

use crate::{Arch, Bundle, Error, Kernel, Result};

/// Names a file with lines that go before the table of the binary: for measuring a configuration that is not the first choice.
pub const VARIABLE: &str = "FLASHLIN_TUNING";

/// The table of one architecture.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Lines by kernel; the first that applies and names a configuration of the bundle wins.
    #[serde(default)]
    kernel: BTreeMap<String, Vec<Line>>,
}

/// One preference.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Applies while there are fewer independent serial blocks (sequences x heads) than this share of the SMs; always where absent.
    below: Option<f64>,
    /// What the configuration must have: const generics, `w` (warps), `o` (occupancy).
    pick: BTreeMap<String, i64>,
}

impl Line {
    fn wants(&self, kernel: &Kernel) -> bool {
        self.pick.iter().all(|(name, value)| match name.as_str() {
            "w" => i64::from(kernel.warps) == *value,
            "o" => i64::from(kernel.occupancy) == *value,
            generic => kernel.generic(generic) == Some(*value),
        })
    }
}

impl Tuning {
    /// Reads a table.
    ///
    /// # Errors
    /// [`Error::Tuning`] for text that is none.
    pub fn parse(text: &str) -> Result<Tuning> {
        toml::from_str(text).map_err(|e| Error::Tuning(e.to_string()))
    }

    /// The table of an architecture; empty where nothing was measured.
    ///
    /// # Errors
    /// [`Error::Tuning`].
    pub fn of(arch: Arch) -> Result<&'static Tuning> {
        static SM_90: OnceLock<Tuning> = OnceLock::new();
        static NONE: OnceLock<Tuning> = OnceLock::new();
        let (slot, text) = match arch {
            Arch::Sm90 => (&SM_90, include_str!("../tuning/sm_90.toml")),
            _ => (&NONE, ""),
        };
        match slot.get() {
            Some(table) => Ok(table),
            None => {
                let table = Tuning::parse(text)?.after(own_lines()?);
                Ok(slot.get_or_init(|| table))
            }
        }
    }

    /// This table with another one's lines before its own.
    fn after(mut self, first: Tuning) -> Tuning {
        for (kernel, mut lines) in first.kernel {
            let rest = self.kernel.entry(kernel).or_default();
            lines.append(rest);
            *rest = lines;
        }
        self
    }

    /// The configuration of `kernel` with this type and these generics that serves a GPU filled to `fill` (independent serial blocks, as a share of the SMs).
    ///
    /// # Errors
    /// [`Error::NoKernel`] where the bundle has none.
    pub fn choose<'b>(
        &self,
        bundle: &'b Bundle,
        kernel: &str,
        dtype: &str,
        generics: &[(&str, i64)],
        fill: f64,
    ) -> Result<&'b Kernel> {
        let there = bundle.variants(kernel, dtype, generics);
        let lines = self.kernel.get(kernel).into_iter().flatten();
        for line in lines.filter(|l| l.below.is_none_or(|b| fill < b)) {
            if let Some(found) = there.iter().find(|k| line.wants(k)) {
                return Ok(found);
            }
        }
        // Names what is there where nothing is.
        bundle.find(kernel, dtype, generics)
    }

    /// Lines that name no configuration of the bundle, as (kernel, line number from 0): such a line is a mistake.
    pub fn dead_lines(&self, bundle: &Bundle) -> Vec<(String, usize)> {
        let serves =
            |kernel: &str, line: &Line| bundle.kernels().iter().any(|k| k.kernel == kernel && line.wants(k));
        self.kernel
            .iter()
            .flat_map(|(name, lines)| lines.iter().enumerate().map(move |(i, line)| (name, i, line)))
            .filter(|(name, _, line)| !serves(name, line))
            .map(|(name, i, _)| (name.clone(), i))
            .collect()
    }
}

/// The table that [`VARIABLE`] names, which goes before the one of the binary; none where it names none.
fn own_lines() -> Result<Tuning> {
    let Some(path) = std::env::var_os(VARIABLE).filter(|p| !p.is_empty()) else {
        return Ok(Tuning::default());
    };
    let named = |e: String| Error::Tuning(format!("{VARIABLE}={}: {e}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| named(e.to_string()))?;
    Tuning::parse(&text).map_err(|e| named(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_lines_go_first() {
        let table = |bv: i64| Tuning::parse(&format!("[[kernel.k]]\npick = {{ BV = {bv} }}")).unwrap();
        let both = table(64).after(table(32)).after(Tuning::default());
        let picks: Vec<i64> = both.kernel["k"].iter().map(|l| l.pick["BV"]).collect();
        assert_eq!(picks, [32, 64]);
    }
    use crate::{BundleWriter, Place, embedded, kernel_name};

    fn bundle() -> Bundle {
        let mut w = BundleWriter::new(Arch::Sm90, "x86_64", "t");
        for (bv, warps) in [(32, 4), (64, 4), (64, 8)] {
            let generics = vec![("K".to_string(), 128), ("BV".to_string(), bv)];
            let kernel = Kernel {
                name: kernel_name("fwd", "bf16", &generics, warps, 2),
                entry: "fwd_entry".into(),
                family: "f".into(),
                kernel: "fwd".into(),
                dtype: "bf16".into(),
                generics,
                warps,
                occupancy: 2,
                abi: Vec::new(),
                grid: "serial".into(),
                registers: 0,
                shared_bytes: 0,
                spills: 0,
                cubin: Place::default(),
                source: String::new(),
                toolchain: String::new(),
                checked: None,
            };
            w.add(kernel, vec![bv as u8, warps as u8]).unwrap();
        }
        Bundle::new("t", w.bytes().unwrap()).unwrap()
    }

    #[test]
    fn the_first_line_that_applies_wins() {
        let table = Tuning::parse(
            "[[kernel.fwd]]\nbelow = 0.5\npick = { BV = 32 }\n[[kernel.fwd]]\npick = { BV = 16 }\n[[kernel.fwd]]\npick = { BV = 64, w = 8 }\n",
        )
        .unwrap();
        let bundle = bundle();
        let pick = |fill| table.choose(&bundle, "fwd", "bf16", &[("K", 128)], fill).map(|k| k.name.clone());
        assert_eq!(pick(0.2).unwrap(), "fwd@bf16_K128_BV32_w4_o2");
        assert_eq!(pick(0.5).unwrap(), "fwd@bf16_K128_BV64_w8_o2");
        // What the plan must have goes before what the table prefers.
        let must = table.choose(&bundle, "fwd", "bf16", &[("BV", 64)], 0.2).unwrap();
        assert_eq!(must.name, "fwd@bf16_K128_BV64_w8_o2");
        let text = table.choose(&bundle, "fwd", "f16", &[], 0.2).unwrap_err().to_string();
        assert!(text.contains("fwd@bf16_K128_BV32_w4_o2"), "{text}");
        assert_eq!(table.dead_lines(&bundle), [("fwd".to_string(), 1)]);
        assert_eq!(
            Tuning::default().choose(&bundle, "fwd", "bf16", &[], 9.0).unwrap().name,
            "fwd@bf16_K128_BV32_w4_o2"
        );
    }

    #[test]
    fn mistakes_in_a_table_are_named() {
        for text in
            ["[[kernel.fwd]]\nbelow = 1", "kernel = 3", "[[kernel.fwd]]\npick = { BV = 3 }\nabove = 1"]
        {
            assert!(matches!(Tuning::parse(text), Err(Error::Tuning(_))), "{text}");
        }
    }

    #[test]
    fn the_tables_name_kernels_that_are_there() {
        for arch in Arch::ALL {
            let table = Tuning::of(arch).unwrap();
            if let Ok(bundle) = embedded(arch) {
                assert_eq!(table.dead_lines(bundle), [], "{arch}");
            }
        }
    }
}
