//! What a cubin's machine code must not do.

use flashlin_kernels::Arch;

use super::assemble::Facts;

/// An error where hardware checks what ships; elsewhere a warning.
pub fn is_error(arch: Arch) -> bool {
    arch == Arch::Sm90
}

/// Complaints about a cubin; empty where it is fine. `no_tma`: its source asks for loads without TMA (whose helper warps take registers).
pub fn lint(facts: &Facts, no_tma: bool) -> Vec<String> {
    let mut out = Vec::new();
    if facts.spills > 0 {
        out.push(format!("{} instructions spill registers", facts.spills));
    }
    if facts.wgmma > 8 && facts.arrivals * 2 > facts.wgmma {
        out.push(format!("{} of {} matrix products wait for the one before", facts.arrivals, facts.wgmma));
    }
    if facts.wgmma > 0 && facts.tma_loads == 0 && !no_tma {
        out.push("tiles are loaded without TMA".into());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_complaint_is_made() {
        let good = Facts { wgmma: 32, arrivals: 5, tma_loads: 8, ..Facts::default() };
        assert!(lint(&good, false).is_empty());
        assert_eq!(lint(&Facts { spills: 3, ..good.clone() }, false).len(), 1);
        assert_eq!(lint(&Facts { arrivals: 32, ..good.clone() }, false).len(), 1);
        assert_eq!(lint(&Facts { tma_loads: 0, ..good }, false).len(), 1);
    }
}
