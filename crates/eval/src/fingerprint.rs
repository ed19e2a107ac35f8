//! What was evaluated, as the header of a result: which model, which data, which program.
//!
//! Policy: data files are hashed whole. Of weights, which may be many gigabytes, sizes, headers and pieces spread over each file are
//! hashed: enough to tell two models apart, not to guard against somebody who wants them confused.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use flashlin::Model;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Pieces of a weight file that are hashed, and their bytes.
const PIECES: u64 = 64;
const PIECE: u64 = 1 << 16;
/// Folders of data inside folders (links may form a circle).
const MAX_DEPTH: usize = 32;

/// Header of an evaluation: task, program, model and data. `options` is all else that decides its results.
///
/// # Errors
/// Files that cannot be read.
pub fn header(
    task: &str,
    model: Value,
    data: &[impl AsRef<Path>],
    options: Value,
) -> Result<Map<String, Value>> {
    let mut files = Vec::new();
    data.iter().try_for_each(|p| data_files(p.as_ref(), MAX_DEPTH, &mut files))?;
    let whole = json!({
        "task": task,
        "versions": { "flashlin": env!("CARGO_PKG_VERSION") },
        "model": model,
        "data": files,
        "options": options,
    });
    Ok(whole.as_object().cloned().unwrap_or_default())
}

/// A model's identity: its name without folders, what it is and runs as, and its hash.
///
/// # Errors
/// Files that cannot be read.
pub fn model(dir: &Path, model: &Model) -> Result<Value> {
    let name = dir.canonicalize().ok().and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
    Ok(json!({
        "name": name,
        "model_type": model.config().family().model_type(),
        "parameters": model.num_params(),
        "dtype": model.dtype().to_string(),
        "device": model.device().to_string(),
        "sha256": model_hash(dir)?,
    }))
}

/// Hash of the files that decide what a model computes: configuration, tokenizer, weights.
fn model_hash(dir: &Path) -> Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "reading"))? {
        let name = entry.map_err(Error::io(dir, "reading"))?.file_name();
        let Some(name) = name.to_str().map(String::from) else { continue };
        let matters = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
        if matters.contains(&name.as_str()) || name.ends_with(".safetensors") {
            names.push(name);
        }
    }
    names.sort();
    let mut hash = Sha256::new();
    for name in names {
        let path = dir.join(&name);
        hash.update(name.as_bytes());
        hash.update([0]);
        match name.ends_with(".safetensors") {
            true => weight_file(&path, &mut hash).map_err(Error::io(&path, "reading"))?,
            false => hash.update(std::fs::read(&path).map_err(Error::io(&path, "reading"))?),
        }
    }
    Ok(hex(&hash.finalize()))
}

fn weight_file(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    hash.update(bytes.to_le_bytes());
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let header = 8 + u64::from_le_bytes(size).min(bytes.saturating_sub(8));
    let mut piece = |from: u64, len: u64| -> std::io::Result<()> {
        let mut part = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        (&mut file).take(len).read_to_end(&mut part)?;
        hash.update(&part);
        Ok(())
    };
    piece(0, header)?;
    let rest = bytes - header;
    if rest <= PIECES * PIECE {
        return piece(header, rest);
    }
    (0..PIECES).try_for_each(|i| piece(header + (rest - PIECE) / (PIECES - 1) * i, PIECE))
}

/// A file, or all files of a folder in the order of their names.
fn data_files(path: &Path, depth: usize, out: &mut Vec<Value>) -> Result<()> {
    if !path.is_dir() {
        out.push(data_file(path)?);
        return Ok(());
    }
    if depth == 0 {
        return Err(Error::file(path, "folders lie too deep in each other"));
    }
    let entries = std::fs::read_dir(path)
        .and_then(|all| all.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>());
    let mut entries = entries.map_err(Error::io(path, "reading"))?;
    entries.sort();
    entries.iter().try_for_each(|e| data_files(e, depth - 1, out))
}

fn data_file(path: &Path) -> Result<Value> {
    let mut file = File::open(path).map_err(Error::io(path, "opening"))?;
    let mut hash = Sha256::new();
    let mut part = vec![0; 1 << 20];
    let mut bytes = 0u64;
    loop {
        let n = file.read(&mut part).map_err(Error::io(path, "reading"))?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        hash.update(&part[..n]);
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
    Ok(json!({ "name": name, "bytes": bytes, "sha256": hex(&hash.finalize()) }))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_weight_is_another_model() {
        let dir = tempfile::tempdir().unwrap();
        let weights = dir.path().join("model.safetensors");
        let mut raw = vec![7u8; 200_000];
        raw[..8].copy_from_slice(&100u64.to_le_bytes());
        std::fs::write(&weights, &raw).unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let first = model_hash(dir.path()).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "nothing that counts").unwrap();
        assert_eq!(model_hash(dir.path()).unwrap(), first);
        raw[150_000] = 8;
        std::fs::write(&weights, &raw).unwrap();
        assert_ne!(model_hash(dir.path()).unwrap(), first);
        let file = data_file(&dir.path().join("config.json")).unwrap();
        assert_eq!(file["bytes"], 2);
        // SHA-256 of "{}".
        assert_eq!(file["sha256"], "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
    }
}
