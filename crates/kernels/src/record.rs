//! Which unchecked cubins this machine has verified by itself.
//!
//! One small file a cubin and GPU, under `FLASHLIN_CACHE`, else `$XDG_CACHE_HOME/flashlin`, else `~/.cache/flashlin`. Where nothing can be written, the check runs once a
//! process.

use std::{env, fs, path::PathBuf};

use flashlin_cuda::Gpu;

use crate::{Error, Kernel, Loaded, Result, verify_kernel};

/// Trusts a kernel, or verifies it here and now.
///
/// # Errors
/// [`Error::Unverified`] where it fails or cannot be checked.
pub(crate) fn trust(loaded: &Loaded, gpu: Gpu) -> Result<()> {
    let kernel = loaded.kernel();
    if kernel.checked.is_some() || env::var("FLASHLIN_UNCHECKED_KERNELS").is_ok_and(|v| v == "1") {
        return Ok(());
    }
    let file = folder().map(|f| f.join(file_name(kernel, &gpu.properties().name)));
    if file.as_ref().is_some_and(|f| f.is_file()) {
        return Ok(());
    }
    let verdict = verify_kernel(loaded, gpu)?;
    if !verdict.passed() {
        return Err(Error::Unverified { kernel: kernel.name.clone(), why: verdict.failures.join("; ") });
    }
    if let Some(file) = file {
        let text = format!("{}\nerror {:e} in {} cases\n", kernel.name, verdict.error, verdict.cases);
        // A cache that cannot be written costs time later and nothing else.
        let _ = file.parent().map(fs::create_dir_all).transpose().and_then(|_| fs::write(&file, text));
    }
    Ok(())
}

fn folder() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("FLASHLIN_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("flashlin")))
        .or_else(|| set("HOME").map(|d| d.join(".cache/flashlin")))
        .map(|d| d.join("kernels"))
}

/// The GPU's name without what file names cannot hold, and the hash.
fn file_name(kernel: &Kernel, gpu: &str) -> String {
    let gpu: String = gpu.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{gpu}-{}.ok", kernel.cubin.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BundleWriter, Place};

    #[test]
    fn a_note_belongs_to_one_cubin_on_one_gpu() {
        let mut w = BundleWriter::new(crate::Arch::Sm90, "x86_64", "t");
        let kernel = Kernel {
            name: "k@f32_w4_o0".into(),
            entry: "k_entry".into(),
            family: "f".into(),
            kernel: "k".into(),
            dtype: "f32".into(),
            generics: Vec::new(),
            warps: 4,
            occupancy: 0,
            abi: Vec::new(),
            grid: "g".into(),
            registers: 0,
            shared_bytes: 0,
            spills: 0,
            cubin: Place::default(),
            source: String::new(),
            toolchain: String::new(),
            checked: None,
        };
        w.add(kernel, vec![1]).unwrap();
        let bundle = crate::Bundle::new("b", w.bytes().unwrap()).unwrap();
        let kernel = &bundle.kernels()[0];
        let name = file_name(kernel, "NVIDIA H200/x");
        assert_eq!(name, format!("NVIDIA-H200-x-{}.ok", kernel.cubin.sha256));
        assert_ne!(name, file_name(kernel, "NVIDIA H100"));
    }
}
