//! Results of single items on disk: what makes an evaluation restartable and lets several processes share it.
//!
//! A folder belongs to one evaluation. Each process appends to a file of its own, `items-I-of-N.jsonl`: a header line that says what
//! is evaluated, then a line an item, `{"id": .., ..}`. Whoever finds all items there writes `results.json`.
//!
//! Policy: a line counts once it is complete, so a kill at any moment costs the items of one batch. Files of any split into shards
//! add up, and a header that differs is an error that names the difference: results of different models or settings never mix. What
//! the items add up to is computed from the lines in the order of their ids, so it does not depend on who computed them or when.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Version of the files' form.
const FORMAT: u64 = 1;
/// The summary of a finished evaluation.
pub const RESULTS_FILE: &str = "results.json";

/// The part of the items that a process computes: those whose id leaves the remainder `index - 1` when divided by `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { index: 1, count: 1 }
    }
}

impl Shard {
    /// True for items of this shard.
    pub fn has(&self, id: usize) -> bool {
        id % self.count == self.index - 1
    }

    /// True where there is no other shard.
    pub fn is_all(&self) -> bool {
        self.count == 1
    }
}

impl FromStr for Shard {
    type Err = String;

    /// Reads `I/N` with `1 <= I <= N`.
    fn from_str(s: &str) -> Result<Shard, String> {
        let parts = s.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let shard = parts.filter(|(i, n)| 1 <= *i && i <= n).map(|(index, count)| Shard { index, count });
        shard.ok_or_else(|| format!("`{s}`: expected I/N with 1 <= I <= N, e.g. 1/4"))
    }
}

/// What items of an evaluation are kept in: memory, and a folder if there is one.
pub struct Store {
    header: Map<String, Value>,
    shard: Shard,
    files: Option<Files>,
    done: BTreeMap<usize, Value>,
}

struct Files {
    dir: PathBuf,
    path: PathBuf,
    /// Locked while it lives.
    file: File,
}

impl Store {
    /// Opens a store; `header` is everything that decides the results. With a folder, takes over what is done there.
    ///
    /// # Errors
    /// A folder that holds another evaluation, a shard that another process works on, damaged lines, the file system.
    pub fn open(dir: Option<&Path>, shard: Shard, header: Map<String, Value>) -> Result<Store> {
        if dir.is_none() && !shard.is_all() {
            return Err(Error::option(
                "shard",
                "needs an output folder that the shards share (--output DIR)",
            ));
        }
        let mut store = Store { header, shard, files: None, done: BTreeMap::new() };
        if let Some(dir) = dir {
            flashlin::files::create_dir(dir)?;
            let path = dir.join(format!("items-{}-of-{}.jsonl", shard.index, shard.count));
            let file = lock(&path)?;
            store.files = Some(Files { dir: dir.to_path_buf(), path, file });
            store.begin()?;
            store.collect()?;
        }
        Ok(store)
    }

    /// What decides the results.
    pub fn header(&self) -> &Map<String, Value> {
        &self.header
    }

    /// True where an item is for this process to compute.
    pub fn wants(&self, id: usize) -> bool {
        self.shard.has(id) && !self.done.contains_key(&id)
    }

    /// Items known to be done, here or by other processes when this one last looked.
    pub fn done(&self) -> usize {
        self.done.len()
    }

    /// Keeps finished items.
    ///
    /// # Errors
    /// Those of the file system; nothing is lost that was kept before.
    pub fn put<R: Serialize>(&mut self, items: impl IntoIterator<Item = (usize, R)>) -> Result<()> {
        let mut lines = String::new();
        for (id, record) in items {
            let mut line = Map::from_iter([("id".to_string(), json!(id))]);
            match serde_json::to_value(&record).map_err(|e| Error::option("output", e.to_string()))? {
                Value::Object(fields) => line.extend(fields),
                other => drop(line.insert("value".into(), other)),
            }
            let line = Value::Object(line);
            lines.push_str(&format!("{line}\n"));
            self.done.insert(id, line);
        }
        let Some(f) = &mut self.files else { return Ok(()) };
        f.file.write_all(lines.as_bytes()).map_err(Error::io(&f.path, "writing"))?;
        f.file.sync_data().map_err(Error::io(&f.path, "writing to the disk"))
    }

    /// All `total` items in order, or None while other processes have some to do.
    ///
    /// # Errors
    /// Files of others that cannot be read.
    pub fn finish<R: DeserializeOwned>(&mut self, total: usize) -> Result<Option<Vec<R>>> {
        self.collect()?;
        let all: Vec<&Value> = (0..total).map_while(|id| self.done.get(&id)).collect();
        if all.len() < total {
            return Ok(None);
        }
        let read = |v: &Value| serde_json::from_value(v.clone()).map_err(|e| self.damaged(&e.to_string()));
        all.into_iter().map(read).collect::<Result<_>>().map(Some)
    }

    /// The result with its header; written to the folder if there is one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn conclude(&self, results: &impl Serialize) -> Result<Value> {
        let mut whole = self.header.clone();
        whole.insert(
            "results".into(),
            serde_json::to_value(results).map_err(|e| self.damaged(&e.to_string()))?,
        );
        let whole = Value::Object(whole);
        if let Some(f) = &self.files {
            flashlin::files::write_json(&f.dir.join(RESULTS_FILE), &whole)?;
        }
        Ok(whole)
    }

    fn damaged(&self, problem: &str) -> Error {
        let dir = self.files.as_ref().map_or(Path::new("results"), |f| &f.dir);
        Error::file(dir, format!("a line of items*.jsonl is not what this version writes: {problem}"))
    }

    /// Makes the own file begin with the header and end with a complete line.
    fn begin(&mut self) -> Result<()> {
        let Some(f) = &mut self.files else { return Ok(()) };
        let mut raw = Vec::new();
        f.file.read_to_end(&mut raw).map_err(Error::io(&f.path, "reading"))?;
        let whole = raw.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        f.file.set_len(whole as u64).map_err(Error::io(&f.path, "cutting a line that was not finished"))?;
        f.file.seek(SeekFrom::End(0)).map_err(Error::io(&f.path, "seeking"))?;
        if whole == 0 {
            let line = json!({ "flashlin_eval": FORMAT, "header": self.header });
            f.file.write_all(format!("{line}\n").as_bytes()).map_err(Error::io(&f.path, "writing"))?;
        }
        Ok(())
    }

    /// Reads what all processes have finished.
    fn collect(&mut self) -> Result<()> {
        let Some(f) = &self.files else { return Ok(()) };
        let entries = std::fs::read_dir(&f.dir).map_err(Error::io(&f.dir, "reading"))?;
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io(&f.dir, "reading"))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            if name.starts_with("items-") && name.ends_with(".jsonl") {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            let text = std::fs::read(&path).map_err(Error::io(&path, "reading"))?;
            for (id, value) in read_items(&path, &text, &self.header)? {
                self.done.entry(id).or_insert(value);
            }
        }
        Ok(())
    }
}

fn lock(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(path).map_err(Error::io(path, "opening"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::file(
            path,
            "another process is computing this shard; give each process its own (--shard I/N)",
        )),
        Err(TryLockError::Error(e)) => Err(Error::io(path, "locking")(e)),
    }
}

/// The complete lines of a file of items. A last line without its end is not there yet.
fn read_items(path: &Path, raw: &[u8], header: &Map<String, Value>) -> Result<Vec<(usize, Value)>> {
    let whole = raw.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let mut items = Vec::new();
    for (i, line) in raw[..whole].split(|&b| b == b'\n').filter(|l| !l.is_empty()).enumerate() {
        let bad = |problem: String| Error::Line { path: path.to_path_buf(), line: i + 1, problem };
        let value: Value = serde_json::from_slice(line).map_err(|e| bad(format!("malformed JSON: {e}")))?;
        if i == 0 {
            check_header(&value, header).map_err(bad)?;
            continue;
        }
        let id = value["id"].as_u64().and_then(|id| usize::try_from(id).ok());
        items.push((id.ok_or_else(|| bad("an item without an id".into()))?, value));
    }
    Ok(items)
}

fn check_header(line: &Value, header: &Map<String, Value>) -> std::result::Result<(), String> {
    if line["flashlin_eval"] != FORMAT {
        return Err(format!(
            "is no header of version {FORMAT}: these are items of another program or version"
        ));
    }
    let found = line["header"].as_object().cloned().unwrap_or_default();
    let keys = header.keys().chain(found.keys());
    match keys.into_iter().find(|k| header.get(*k) != found.get(*k)) {
        None => Ok(()),
        Some(key) => {
            let show = |m: &Map<String, Value>| m.get(key).map_or("nothing".to_string(), Value::to_string);
            Err(format!(
                "this folder holds an evaluation with another `{key}`: {}, and now it is {}; use another --output",
                show(&found),
                show(header)
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(seed: u64) -> Map<String, Value> {
        json!({ "task": "test", "seed": seed }).as_object().unwrap().clone()
    }

    fn record(id: usize) -> (usize, Value) {
        (id, json!({ "x": 1.0 / (id as f64 + 3.0) }))
    }

    #[test]
    fn shards_share_restart_and_merge() {
        let dir = tempfile::tempdir().unwrap();
        let shard = |s: &str| s.parse::<Shard>().unwrap();
        let mut a = Store::open(Some(dir.path()), shard("1/2"), header(1)).unwrap();
        let busy = Store::open(Some(dir.path()), shard("1/2"), header(1)).err().unwrap();
        assert!(busy.to_string().contains("another process"), "{busy}");
        let mut b = Store::open(Some(dir.path()), shard("2/2"), header(1)).unwrap();
        assert!(a.wants(0) && !a.wants(1) && b.wants(1));
        a.put([record(0), record(2)]).unwrap();
        b.put([record(1)]).unwrap();
        assert!(a.finish::<Value>(4).unwrap().is_none());
        drop(b);
        // A line that a kill cut short is not an item.
        let path = dir.path().join("items-2-of-2.jsonl");
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(br#"{"id":3,"x":0.16"#).unwrap();
        drop(file);
        assert!(a.finish::<Value>(4).unwrap().is_none());
        let mut b = Store::open(Some(dir.path()), shard("2/2"), header(1)).unwrap();
        assert_eq!((b.done(), b.wants(3), b.wants(1)), (3, true, false));
        b.put([record(3)]).unwrap();
        let merged: Vec<Value> = b.finish(4).unwrap().unwrap();
        // The same as one process that keeps nothing on disk.
        let mut alone = Store::open(None, Shard::default(), header(1)).unwrap();
        alone.put((0..4).map(record)).unwrap();
        assert_eq!(alone.finish::<Value>(4).unwrap().unwrap(), merged);
        assert_eq!(alone.conclude(&1).unwrap(), b.conclude(&1).unwrap());
        assert!(dir.path().join(RESULTS_FILE).exists());
    }

    #[test]
    fn other_settings_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(Some(dir.path()), Shard::default(), header(1)).unwrap());
        let e = Store::open(Some(dir.path()), Shard::default(), header(2)).err().unwrap().to_string();
        assert!(e.contains("`seed`: 1, and now it is 2"), "{e}");
        assert!(Store::open(None, "1/2".parse().unwrap(), header(1)).is_err());
        for bad in ["0/2", "3/2", "1", "a/b", "1/0"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }
}
