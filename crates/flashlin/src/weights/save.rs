//! Writing weights so that Python opens them and a crash leaves the previous ones.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
};

use flashlin_tensor::{DType, Device, Tensor};

use super::{INDEX_FILE, WEIGHTS_FILE, header};
use crate::{Error, Result, files};

/// Shards are at most this large, as in `transformers`.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Writes one safetensors file with `metadata` in its header, atomically. Float tensors are converted to `dtype` if one is given.
///
/// # Errors
/// When a key is empty, reserved or there twice, or the file cannot be written (its path is named).
pub fn write_file<K: AsRef<str>>(
    path: &Path,
    tensors: &[(K, Tensor)],
    dtype: Option<DType>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    check_keys(path, tensors)?;
    let all: Vec<&(K, Tensor)> = tensors.iter().collect();
    write_some(path, &all, dtype, metadata)
}

/// Writes `model.safetensors`, or shards of at most `max_shard_bytes` (a larger tensor gets a shard of its own) with an index
/// where that is too small, and removes what an earlier save left. Float tensors are converted to `dtype` if one is given.
///
/// The weights change from the old to the new ones in one step, the rename of the single file or of the index; shards never
/// overwrite shards. `config.json` and others are written by the caller.
///
/// # Errors
/// As [`write_file`].
pub fn save<K: AsRef<str>>(
    dir: &Path,
    tensors: &[(K, Tensor)],
    dtype: Option<DType>,
    max_shard_bytes: u64,
) -> Result<()> {
    check_keys(dir, tensors)?;
    let shards = split(tensors, dtype, max_shard_bytes);
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    if let [only] = &shards[..] {
        write_some(&dir.join(WEIGHTS_FILE), only, dtype, &metadata)?;
        // Readers prefer the single file, so it is in force already.
        return remove_stale(dir, &HashSet::new(), INDEX_FILE);
    }
    let names = shard_names(dir, shards.len());
    let mut weight_map = BTreeMap::new();
    for (shard, name) in shards.iter().zip(&names) {
        write_some(&dir.join(name), shard, dtype, &metadata)?;
        weight_map.extend(shard.iter().map(|(key, _)| (key.as_ref(), name)));
    }
    let total: u64 = tensors.iter().map(|(_, t)| stored_bytes(t, dtype)).sum();
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    files::write_json(&dir.join(INDEX_FILE), &index)?;
    remove_stale(dir, &names.iter().map(String::as_str).collect(), WEIGHTS_FILE)
}

fn check_keys<K: AsRef<str>>(path: &Path, tensors: &[(K, Tensor)]) -> Result<()> {
    let mut seen = HashSet::new();
    for (key, _) in tensors {
        let key = key.as_ref();
        if key.is_empty() || key == "__metadata__" {
            return Err(Error::file(
                path,
                format!("cannot store a tensor under the key {}", header::shown(key)),
            ));
        }
        if !seen.insert(key) {
            return Err(Error::file(path, format!("two tensors have the key {}", header::shown(key))));
        }
    }
    Ok(())
}

/// The dtype a tensor has in the file: only floats are converted.
fn stored_dtype(t: &Tensor, dtype: Option<DType>) -> DType {
    dtype.filter(|_| t.dtype().is_float()).unwrap_or(t.dtype())
}

fn stored_bytes(t: &Tensor, dtype: Option<DType>) -> u64 {
    (t.numel() * stored_dtype(t, dtype).size()) as u64
}

/// Fills shards in order; at least one, even without tensors.
fn split<K>(tensors: &[(K, Tensor)], dtype: Option<DType>, max: u64) -> Vec<Vec<&(K, Tensor)>> {
    let (mut shards, mut held) = (vec![Vec::new()], 0);
    for entry in tensors {
        let bytes = stored_bytes(&entry.1, dtype);
        if bytes > 0 && held > 0 && held + bytes > max {
            shards.push(Vec::new());
            held = 0;
        }
        held += bytes;
        if let Some(last) = shards.last_mut() {
            last.push(entry);
        }
    }
    shards
}

fn write_some<K: AsRef<str>>(
    path: &Path,
    tensors: &[&(K, Tensor)],
    dtype: Option<DType>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut order = tensors.to_vec();
    // Wide types first keeps every tensor aligned; otherwise the caller's order stays.
    order.sort_by_key(|(_, t)| std::cmp::Reverse(stored_dtype(t, dtype).size()));
    let entries = order.iter().map(|(k, t)| (k.as_ref(), stored_dtype(t, dtype), t.dims()));
    let head = header::encode(entries, metadata);
    files::write_atomic(path, |w| {
        w.write_all(&head)?;
        for (_, tensor) in &order {
            // Converted one at a time, so that saving needs memory for one tensor only.
            let stored = stored(tensor, dtype).map_err(std::io::Error::other)?;
            w.write_all(stored.as_bytes().map_err(std::io::Error::other)?)?;
        }
        Ok(())
    })
}

fn stored(t: &Tensor, dtype: Option<DType>) -> Result<Cow<'_, Tensor>> {
    let want = stored_dtype(t, dtype);
    if t.device() != Device::Cpu {
        return Ok(Cow::Owned(t.to_device(&Device::Cpu)?.to_dtype(want)?));
    }
    if t.dtype() == want && t.is_contiguous() {
        return Ok(Cow::Borrowed(t));
    }
    Ok(Cow::Owned(t.to_dtype(want)?.contiguous()?))
}

/// The usual names, unless the index that is in force until ours replaces it names one of them.
fn shard_names(dir: &Path, n: usize) -> Vec<String> {
    let names = |stem: &str| -> Vec<String> {
        (1..=n).map(|i| format!("{stem}-{i:05}-of-{n:05}.safetensors")).collect()
    };
    let usual = names("model");
    let index: serde_json::Value =
        files::read_json(&dir.join(INDEX_FILE), "index").unwrap_or(serde_json::Value::Null);
    let in_force: HashSet<&str> = index["weight_map"]
        .as_object()
        .map(|map| map.values().filter_map(|v| v.as_str()).collect())
        .unwrap_or_default();
    let clash = usual.iter().any(|name| in_force.contains(name.as_str()));
    if clash { names("model-b") } else { usual }
}

/// Whether a file name is one that [`shard_names`] (or `transformers`) makes.
fn is_shard_name(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".safetensors").and_then(|s| s.strip_prefix("model-")) else {
        return false;
    };
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    stem.strip_prefix("b-").unwrap_or(stem).split_once("-of-").is_some_and(|(i, n)| digits(i) && digits(n))
}

/// Removes shards that are not in `keep`, and `superseded` (the index or the single file).
fn remove_stale(dir: &Path, keep: &HashSet<&str>, superseded: &str) -> Result<()> {
    let mut stale = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "listing the folder"))? {
        let name = entry.map_err(Error::io(dir, "listing the folder"))?.file_name();
        let Some(name) = name.to_str() else { continue };
        // The index goes before the shards it names.
        if name == superseded {
            stale.insert(0, name.to_string());
        } else if is_shard_name(name) && !keep.contains(name) {
            stale.push(name.to_string());
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    for name in stale {
        let path = dir.join(name);
        fs::remove_file(&path).map_err(Error::io(&path, "removing"))?;
    }
    files::sync_dir(dir)
}
