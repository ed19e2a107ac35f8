//! The bundles inside this binary.

use std::sync::OnceLock;

use crate::{Arch, Bundle, Error, Result, error::names};

/// (file stem, bytes) of every bundle that was there at build time, sorted.
static BUNDLES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/bundles.rs"));

/// Names of the architectures that this binary holds kernels for.
pub fn embedded_names() -> Vec<&'static str> {
    BUNDLES.iter().map(|(name, _)| *name).collect()
}

/// The embedded bundle of an architecture. It is opened on first use and then shared.
///
/// # Errors
/// [`Error::NoBundle`] that names what is there; [`Error::Corrupt`].
pub fn embedded(arch: Arch) -> Result<&'static Bundle> {
    static OPEN: [OnceLock<Bundle>; Arch::ALL.len()] = [const { OnceLock::new() }; Arch::ALL.len()];
    let slot = &OPEN[Arch::ALL.iter().position(|a| *a == arch).unwrap_or(0)];
    if let Some(bundle) = slot.get() {
        return Ok(bundle);
    }
    let (name, bytes) = BUNDLES
        .iter()
        .find(|(name, _)| *name == arch.name())
        .ok_or_else(|| Error::NoBundle { arch, there: names(&embedded_names()) })?;
    let bundle = Bundle::new(*name, *bytes)?;
    if bundle.arch() != arch {
        let why = format!("it is named for {arch} and holds {}", bundle.arch());
        return Err(Error::Corrupt { bundle: name.to_string(), why });
    }
    Ok(slot.get_or_init(|| bundle))
}

/// The embedded bundle that a GPU of this compute capability runs.
///
/// # Errors
/// [`Error::NoArch`], and those of [`embedded`].
pub fn embedded_for(major: u32, minor: u32) -> Result<&'static Bundle> {
    embedded(Arch::of_capability(major, minor)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_bundles_open_and_every_cubin_matches_its_hash() {
        for arch in Arch::ALL {
            match embedded(arch) {
                Ok(bundle) => {
                    for kernel in bundle.kernels() {
                        bundle.cubin_of_any_host(kernel).unwrap();
                    }
                    assert!(bundle.file_bytes() < 4 << 20, "{arch}: {} bytes", bundle.file_bytes());
                }
                Err(e @ Error::NoBundle { .. }) => {
                    assert!(!embedded_names().contains(&arch.name()));
                    assert!(e.to_string().contains(arch.name()));
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
}
