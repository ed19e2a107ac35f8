//! Where cuBLASLt is.
//!
//! Policy: looked for in the folders of `FLASHLIN_CUDA_LIBS`, then where the system's loader looks, then in CUDA toolkits and in the folders that pip fills.
//! Version 13 needs a driver of CUDA 13 and is preferred there. Everything tried is remembered for the error.

use std::{
    env,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde::Serialize;

use super::api::Api;
use crate::{DriverInfo, Error, Result, driver};

/// The variable that names folders (or files) to look in first.
const VARIABLE: &str = "FLASHLIN_CUDA_LIBS";

/// Which library serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlasInfo {
    /// The file, or the bare name where the system's loader found it.
    pub path: String,
    /// Its version, e.g. 130002.
    pub version: usize,
}

/// Where to look, in order.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// File names, best first.
    pub names: Vec<String>,
    /// Folders or files that come before the system's.
    pub first: Vec<PathBuf>,
    /// True where the system's loader is asked.
    pub system: bool,
    /// Folders that come after.
    pub then: Vec<PathBuf>,
}

impl Search {
    /// What the environment says, for a driver that supports this CUDA version (1000 x major + 10 x minor).
    pub fn from_env(driver_version: i32) -> Search {
        let majors: &[i32] = if driver_version >= 13000 { &[13, 12] } else { &[12] };
        let names = majors.iter().map(|n| format!("libcublasLt.so.{n}")).collect();
        let list = |name: &str| {
            env::var_os(name).map(|v| env::split_paths(&v).collect::<Vec<_>>()).unwrap_or_default()
        };
        let mut then = Vec::new();
        for home in ["CUDA_HOME", "CUDA_PATH"].into_iter().flat_map(list) {
            then.extend(["lib64", "lib"].map(|d| home.join(d)));
        }
        then.extend(matching(Path::new("/usr/local"), "cuda").into_iter().map(|d| d.join("lib64")));
        for prefix in python_prefixes(&list("PATH")) {
            for python in matching(&prefix.join("lib"), "python3") {
                for packages in ["site-packages", "dist-packages"] {
                    let nvidia = python.join(packages).join("nvidia");
                    then.extend(["cu13/lib", "cu12/lib", "cublas/lib"].map(|d| nvidia.join(d)));
                }
            }
            then.push(prefix.join("lib"));
        }
        let mut seen = std::collections::BTreeSet::new();
        then.retain(|d| d.is_dir() && seen.insert(d.clone()));
        Search { names, first: list(VARIABLE), system: true, then }
    }

    /// Every path to try, in order; a bare name goes to the system's loader.
    fn candidates(&self) -> Vec<PathBuf> {
        let mut out = Vec::new();
        let folder = |out: &mut Vec<PathBuf>, at: &PathBuf| {
            if at.is_file() {
                return out.push(at.clone());
            }
            out.extend(self.names.iter().map(|n| at.join(n)).filter(|p| p.is_file()));
        };
        self.first.iter().for_each(|at| folder(&mut out, at));
        if self.system {
            out.extend(self.names.iter().map(PathBuf::from));
        }
        self.then.iter().for_each(|at| folder(&mut out, at));
        out
    }
}

/// Folders that hold Python's `lib`: active environments, and every `python3` that the path shows.
fn python_prefixes(path: &[PathBuf]) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from).collect();
    out.extend(
        path.iter().filter(|d| d.join("python3").exists()).filter_map(|d| d.parent().map(Path::to_path_buf)),
    );
    out.extend(env::var_os("HOME").map(|h| PathBuf::from(h).join(".local")));
    out.extend(["/usr", "/usr/local"].map(PathBuf::from));
    out
}

/// Subfolders whose names begin with `stem`, newest first.
fn matching(folder: &Path, stem: &str) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(stem))
        .map(|e| e.path())
        .collect();
    out.sort();
    out.reverse();
    out
}

/// Opens the first library that serves. Needs no device.
///
/// # Errors
/// [`Error::NoLibrary`] with everything that was tried.
pub fn find_blas(search: &Search) -> Result<BlasInfo> {
    open(search).map(|(_, info)| info)
}

/// The library that products on a GPU use: found once, then kept.
///
/// # Errors
/// No driver; [`Error::NoLibrary`].
pub fn blas_library() -> Result<BlasInfo> {
    found().map(|(_, info)| info.clone())
}

pub(super) fn loaded() -> Result<&'static Api> {
    found().map(|(api, _)| api)
}

fn found() -> Result<&'static (Api, BlasInfo)> {
    static FOUND: OnceLock<(Api, BlasInfo)> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let DriverInfo { version, .. } = driver()?;
    let opened = open(&Search::from_env(version))?;
    Ok(FOUND.get_or_init(|| opened))
}

fn open(search: &Search) -> Result<(Api, BlasInfo)> {
    let mut tried = Vec::new();
    for path in search.candidates() {
        match open_one(&path) {
            Ok(opened) => return Ok(opened),
            Err(why) => {
                // The loader's text begins with the path where it has something to say about a file.
                let path = path.display().to_string();
                tried.push(if why.contains(&path) { why } else { format!("{path} ({why})") });
            }
        }
    }
    let mut text = tried.join("; ");
    let set = env::var_os(VARIABLE).is_some();
    let more = if set { "" } else { "FLASHLIN_CUDA_LIBS (not set), " };
    if text.is_empty() {
        text = "nothing of that name".into();
    }
    Err(Error::NoLibrary {
        library: "cuBLASLt",
        tried: format!("{more}the system's libraries, CUDA toolkits, Python's packages: {text}"),
    })
}

fn open_one(path: &Path) -> Result<(Api, BlasInfo), String> {
    // SAFETY: loads a library named like cuBLASLt; its initialisers are the vendor's.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
    // SAFETY: the names searched for are those of versions 12 and 13; a library without the symbols is refused.
    let api = unsafe { Api::new(library) }?;
    // SAFETY: the call takes nothing and needs no device.
    let version = unsafe { (api.version)() };
    Ok((api, BlasInfo { path: path.display().to_string(), version }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_names_what_was_tried() {
        let dir = tempfile::tempdir().unwrap();
        let names = vec!["libcublasLt.so.13".to_string(), "libcublasLt.so.12".to_string()];
        let nowhere = Search { names: names.clone(), first: vec![dir.path().into()], ..Search::default() };
        let text = find_blas(&nowhere).unwrap_err().to_string();
        assert!(text.contains("cuBLASLt was not found") && text.contains("FLASHLIN_CUDA_LIBS"), "{text}");
        // A file that is no library.
        std::fs::write(dir.path().join("libcublasLt.so.12"), "not a library").unwrap();
        let text = find_blas(&nowhere).unwrap_err().to_string();
        assert!(text.contains("libcublasLt.so.12"), "{text}");
    }

    #[test]
    fn folders_files_and_versions_are_tried_in_order() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for n in [12, 13] {
            std::fs::write(a.path().join(format!("libcublasLt.so.{n}")), "x").unwrap();
        }
        let file = b.path().join("mine.so");
        std::fs::write(&file, "x").unwrap();
        let search = Search {
            names: Search::from_env(13000).names,
            first: vec![file.clone()],
            system: true,
            then: vec![a.path().into(), b.path().join("missing")],
        };
        let got = search.candidates();
        let want = [
            file,
            "libcublasLt.so.13".into(),
            "libcublasLt.so.12".into(),
            a.path().join("libcublasLt.so.13"),
            a.path().join("libcublasLt.so.12"),
        ];
        assert_eq!(got, want);
        assert_eq!(Search::from_env(12080).names, ["libcublasLt.so.12"]);
    }

    #[test]
    fn without_a_driver_products_are_an_error() {
        if driver().is_err() {
            assert!(matches!(
                blas_library(),
                Err(Error::NoDriver | Error::DriverTooOld { .. } | Error::DriverInit(_))
            ));
        }
    }
}
