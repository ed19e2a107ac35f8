//! The tiles' sources: which entry stands in which file, its parameters, and hashes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use flashlin_kernels::{Arg, ArgKind};

use super::assemble::sha256;

/// What decides a cubin besides the kernels' sources: the assembler and its back ends, the front end, its driver.
const TOOLCHAIN_FILES: [&str; 3] = ["requirements.txt", "Cargo.lock", "src/main.rs"];

/// An entry as its source declares it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Folder under `tiles/src`.
    pub family: String,
    /// Names of the type parameters, in order.
    pub types: Vec<String>,
    /// Names of the const parameters, in order.
    pub consts: Vec<String>,
    /// Launch arguments.
    pub abi: Vec<Arg>,
    /// Hash of its file and of the helpers that it uses.
    pub source: String,
    /// It asks for loads without TMA.
    pub no_tma: bool,
}

/// All entries of the tiles' sources.
pub struct Sources {
    /// By name.
    pub entries: BTreeMap<String, Entry>,
    /// Hash of the toolchain's pins.
    pub toolchain: String,
    /// Text of the table of jobs.
    pub jobs: String,
}

impl Sources {
    /// Reads the workspace `tiles` at `dir`.
    pub fn read(dir: &Path) -> Result<Sources> {
        let read = |p: &Path| std::fs::read_to_string(p).with_context(|| p.display().to_string());
        let mut pins = String::new();
        for f in TOOLCHAIN_FILES {
            pins.push_str(&read(&dir.join(f))?);
        }
        let mut helpers = BTreeMap::new();
        let mut files = Vec::new();
        for folder in std::fs::read_dir(dir.join("src"))? {
            let folder = folder?.path();
            if !folder.is_dir() {
                continue;
            }
            let family = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for file in std::fs::read_dir(&folder)? {
                let file = file?.path();
                let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let text = read(&file)?;
                if family == "tile" {
                    helpers.insert(stem, text);
                } else if stem != "mod" {
                    files.push((family.clone(), text));
                }
            }
        }
        let mut entries = BTreeMap::new();
        for (family, text) in files {
            let (name, entry) = parse(&family, &text, &helpers)?;
            if entries.insert(name.clone(), entry).is_some() {
                bail!("two entries are called {name}");
            }
        }
        Ok(Sources { entries, toolchain: sha256(pins.as_bytes()), jobs: read(&dir.join("jobs.toml"))? })
    }
}

/// The one entry of a file.
fn parse(family: &str, text: &str, helpers: &BTreeMap<String, String>) -> Result<(String, Entry)> {
    let at = text.find("#[cutile::entry").ok_or_else(|| anyhow!("a file of {family} has no entry"))?;
    let decl = &text[at..];
    let decl =
        &decl[decl.find("unsafe fn ").ok_or_else(|| anyhow!("an entry of {family} is no unsafe fn"))? + 10..];
    let name: String = decl.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let between = |open: char, close: char| -> Result<Vec<String>> {
        let from = decl.find(open).ok_or_else(|| anyhow!("{name}: no {open}"))? + 1;
        let to = decl[from..].find(close).ok_or_else(|| anyhow!("{name}: no {close}"))? + from;
        let parts = decl[from..to].split(',').map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
        Ok(parts.filter(|p| !p.is_empty()).collect())
    };
    let (mut types, mut consts) = (Vec::new(), Vec::new());
    for p in between('<', '>')? {
        let ident = |s: &str| s.split(':').next().unwrap_or_default().trim().to_string();
        match p.strip_prefix("const ") {
            Some(rest) => consts.push(ident(rest)),
            None => types.push(ident(&p)),
        }
    }
    let abi = between('(', ')')?.iter().map(|p| argument(&name, p)).collect::<Result<Vec<_>>>()?;
    let mut hashed = text.to_string();
    for (stem, helper) in helpers {
        if text.contains(&format!("tile::{stem}::")) {
            hashed.push_str(helper);
        }
    }
    let source = sha256(hashed.as_bytes());
    let no_tma = text.contains("tma::Disabled");
    Ok((name, Entry { family: family.into(), types, consts, abi, source, no_tma }))
}

fn argument(entry: &str, text: &str) -> Result<Arg> {
    let (name, ty) = text.split_once(':').ok_or_else(|| anyhow!("{entry}: argument {text}"))?;
    let kind = match ty.trim() {
        t if t.starts_with("*mut ") => ArgKind::Ptr,
        "i32" => ArgKind::I32,
        "i64" => ArgKind::I64,
        "f32" => ArgKind::F32,
        other => bail!("{entry}: argument {name} has the type {other}"),
    };
    Ok(Arg { name: name.trim().into(), kind })
}
