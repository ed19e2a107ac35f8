//! Embeds the bundles that are there: `bundle/sm_*.bundle` become one table of bytes. A missing file is no error here; asking for
//! its architecture at run time is.

use std::{env, fmt::Write, fs, path::Path};

fn main() {
    let dir = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("bundle");
    println!("cargo::rerun-if-changed={}", dir.display());
    let mut files: Vec<_> = fs::read_dir(&dir)
        .map(|d| d.flatten().map(|e| e.path()).collect())
        .unwrap_or_else(|_| Vec::<std::path::PathBuf>::new());
    files.retain(|p| p.extension().is_some_and(|e| e == "bundle"));
    files.sort();
    let mut text = String::from("&[\n");
    for path in &files {
        println!("cargo::rerun-if-changed={}", path.display());
        let stem = path.file_stem().expect("it has an extension").to_string_lossy();
        writeln!(text, "    ({stem:?}, include_bytes!({:?})),", path.display().to_string())
            .expect("a String");
    }
    text.push_str("]\n");
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("bundles.rs");
    fs::write(out, text).expect("OUT_DIR can be written");
}
