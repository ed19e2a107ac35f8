//! A checkpoint's tensors by name: one file or many, opened and checked, read when asked for.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    path::{Component, Path, PathBuf},
};

use flashlin_tensor::{DType, MappedFile, Tensor};
use serde::{
    Deserialize,
    de::{Error as _, MapAccess, Visitor},
};

use super::{
    INDEX_FILE, WEIGHTS_FILE,
    header::{self, Info, shown, tensor_dtype},
};
use crate::{Error, Result};

/// The tensors of a checkpoint, memory-mapped. A tensor is a view of the file (no copy where its bytes are aligned).
///
/// The files must not be changed while this or any tensor from it lives; saving replaces files by rename, which is fine.
#[derive(Clone)]
pub struct WeightMap {
    origin: PathBuf,
    files: Vec<(PathBuf, MappedFile)>,
    entries: BTreeMap<String, (usize, Info)>,
    metadata: BTreeMap<String, String>,
}

impl fmt::Debug for WeightMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, n, files) = (self.origin.display(), self.len(), self.files.len());
        write!(f, "WeightMap({path}: {n} tensors in {files} files)")
    }
}

impl WeightMap {
    /// Opens a safetensors file, an index (`*.index.json`), or a checkpoint folder: `model.safetensors` if it is there,
    /// else `model.safetensors.index.json`.
    ///
    /// # Errors
    /// When there is no such file, or any of the files is not a well-formed safetensors file or index.
    pub fn open(path: &Path) -> Result<WeightMap> {
        if !path.is_dir() {
            let is_index = path.extension().is_some_and(|e| e == "json");
            return if is_index { Self::open_index(path) } else { Self::open_file(path) };
        }
        let (single, index) = (path.join(WEIGHTS_FILE), path.join(INDEX_FILE));
        if single.exists() {
            return Self::open_file(&single);
        }
        if index.exists() {
            return Self::open_index(&index);
        }
        let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
        let hint = match pickled.iter().find(|name| path.join(name).exists()) {
            Some(name) => format!("; {name} is there, but pickled weights are not read: save as safetensors"),
            None => String::new(),
        };
        Err(Error::file(path, format!("holds no weights: expected {WEIGHTS_FILE} or {INDEX_FILE}{hint}")))
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// When it cannot be read or is not well formed.
    pub fn open_file(path: &Path) -> Result<WeightMap> {
        let mut map = WeightMap {
            origin: path.to_path_buf(),
            files: Vec::new(),
            entries: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        let header = map.add(path)?;
        map.metadata = header.metadata;
        map.entries = header.tensors.into_iter().map(|(key, info)| (key, (0, info))).collect();
        Ok(map)
    }

    /// Opens the shards that an index names. Index and shards must agree on every key.
    fn open_index(path: &Path) -> Result<WeightMap> {
        let index: Index = crate::files::read_json(path, "index of safetensors shards")?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut map = WeightMap {
            origin: path.to_path_buf(),
            files: Vec::new(),
            entries: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        let mut numbers = HashMap::new();
        for (key, shard) in &index.weight_map.0 {
            if numbers.contains_key(shard.as_str()) {
                continue;
            }
            let number = map.files.len();
            let shard_path = shard_path(path, dir, key, shard)?;
            if !shard_path.exists() {
                let problem =
                    format!("names the shard {} (for key {}), which is missing", shown(shard), shown(key));
                return Err(Error::file(path, problem));
            }
            let header = map.add(&shard_path)?;
            numbers.insert(shard.as_str(), number);
            for (key, info) in header.tensors {
                match index.weight_map.0.get(&key) {
                    Some(named) if named == shard => {}
                    Some(other) => {
                        let problem = format!("holds key {}, which the index puts into {other}", shown(&key));
                        return Err(Error::file(&shard_path, problem));
                    }
                    None => {
                        let problem = format!("holds key {}, which the index does not name", shown(&key));
                        return Err(Error::file(&shard_path, problem));
                    }
                }
                map.entries.insert(key, (number, info));
            }
        }
        if let Some((key, shard)) = index.weight_map.0.iter().find(|(key, _)| !map.entries.contains_key(*key))
        {
            let problem = format!("puts key {} into {}, which does not hold it", shown(key), shown(shard));
            return Err(Error::file(path, problem));
        }
        Ok(map)
    }

    /// Maps a file and parses its header.
    fn add(&mut self, path: &Path) -> Result<header::Header> {
        // Asked before opening: opening a pipe would wait for a writer.
        let meta = fs::metadata(path).map_err(Error::io(path, "opening"))?;
        if !meta.is_file() {
            return Err(Error::file(path, "not a regular file, expected a safetensors file"));
        }
        if meta.len() < header::LENGTH_BYTES as u64 {
            return header::parse(path, &vec![0; meta.len() as usize]);
        }
        let file = MappedFile::open(path).map_err(Error::io(path, "opening"))?;
        let header = header::parse(path, file.bytes())?;
        self.files.push((path.to_path_buf(), file));
        Ok(header)
    }

    /// The file, index or folder this was opened from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// The keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Shape of a tensor.
    pub fn dims(&self, key: &str) -> Option<&[usize]> {
        self.entries.get(key).map(|(_, info)| &info.dims[..])
    }

    /// Element type of a tensor; None for an unknown key and for types that only the file format has (such as F8_E4M3).
    pub fn dtype(&self, key: &str) -> Option<DType> {
        self.entries.get(key).and_then(|(_, info)| tensor_dtype(info.dtype))
    }

    /// The floating-point type that holds most bytes: what "the dtype of the checkpoint" means. F32 when there is none.
    pub fn main_dtype(&self) -> DType {
        let bytes = |d: DType| -> usize {
            let of = self.entries.values().filter(|(_, i)| tensor_dtype(i.dtype) == Some(d));
            of.map(|(_, i)| i.end - i.start).sum()
        };
        let floats = [DType::F32, DType::BF16, DType::F16, DType::F64];
        // The first of equals wins, so an empty file is F32.
        floats.into_iter().rev().max_by_key(|&d| bytes(d)).unwrap_or(DType::F32)
    }

    /// Bytes of all tensors together.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(|(_, info)| (info.end - info.start) as u64).sum()
    }

    /// Free-form entries of a single file's header (empty for a sharded checkpoint).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The file that holds a key (the origin for an unknown one).
    pub fn file_of(&self, key: &str) -> &Path {
        self.entries.get(key).map_or(&self.origin, |(number, _)| &self.files[*number].0)
    }

    /// A tensor as it is in the file, without a copy where its bytes are aligned.
    ///
    /// # Errors
    /// When the key is unknown, or its dtype is none that tensors have here.
    pub fn get(&self, key: &str) -> Result<Tensor> {
        let Some((number, info)) = self.entries.get(key) else {
            return Err(Error::file(&self.origin, format!("has no key {}", shown(key))));
        };
        let (path, file) = &self.files[*number];
        let Some(dtype) = tensor_dtype(info.dtype) else {
            let what = format!("{}: key {} with dtype {:?}", path.display(), shown(key), info.dtype);
            return Err(Error::unsupported(what, "F64, F32, BF16, F16, I64, I32, U8"));
        };
        Ok(Tensor::from_mapped(file, info.start, &info.dims, dtype)?)
    }
}

/// Where a shard lies. Names from a downloaded index must not reach outside its folder.
fn shard_path(index: &Path, dir: &Path, key: &str, shard: &str) -> Result<PathBuf> {
    let mut parts = Path::new(shard).components();
    let plain = matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
    if !plain || shard.contains(['/', '\\', '\0']) {
        let problem = format!(
            "key {} is in {}, expected the name of a file beside the index",
            shown(key),
            shown(shard)
        );
        return Err(Error::file(index, problem));
    }
    Ok(dir.join(shard))
}

#[derive(Deserialize)]
struct Index {
    weight_map: UniqueKeys,
}

/// A JSON object of strings in which a key may appear once only.
struct UniqueKeys(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: serde::Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = UniqueKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object from keys to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
                let mut out = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if out.contains_key(&key) {
                        return Err(A::Error::custom(format!("the key {} is there twice", shown(&key))));
                    }
                    out.insert(key, value);
                }
                Ok(UniqueKeys(out))
            }
        }
        de.deserialize_map(Entries)
    }
}
