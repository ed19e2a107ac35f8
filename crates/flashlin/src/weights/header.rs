//! The header of a safetensors file: an 8-byte little-endian length, then JSON that maps each key to dtype, shape and byte range.
//!
//! Read with our own checks, because they name the key and say what was expected, and because JSON parsers keep the last of two
//! equal keys silently.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::Path,
};

use flashlin_tensor::DType;
use safetensors::Dtype as FileDType;
use serde::{
    Deserialize,
    de::{Error as _, IgnoredAny, IntoDeserializer, MapAccess, Visitor},
};

use crate::{Error, Result};

/// Bytes before the JSON.
pub(super) const LENGTH_BYTES: usize = 8;
/// As in the reference implementation.
const MAX_HEADER: usize = 100_000_000;
/// More dimensions than any tensor here has.
const MAX_RANK: usize = 16;

/// One tensor of a file. The byte range counts from the start of the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Info {
    pub dtype: FileDType,
    pub dims: Vec<usize>,
    pub start: usize,
    pub end: usize,
}

/// A checked header: the ranges tile the data without gaps or overlaps, in order.
#[derive(Debug)]
pub(super) struct Header {
    pub tensors: Vec<(String, Info)>,
    pub metadata: BTreeMap<String, String>,
}

/// Parses and checks the header of a whole file.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header> {
    let bad = |problem: String| Error::file(path, format!("not a usable safetensors file: {problem}"));
    let Some(length) = file.first_chunk::<LENGTH_BYTES>() else {
        return Err(bad(format!("it has {} bytes, expected at least {LENGTH_BYTES}", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let room = file.len() - LENGTH_BYTES;
    if length > room.min(MAX_HEADER) as u64 {
        let (reason, limit) = match length > room as u64 {
            true => ("what the file holds", room),
            false => ("the format's limit", MAX_HEADER),
        };
        return Err(bad(format!("its header claims {length} bytes, more than {reason} ({limit})")));
    }
    let data = LENGTH_BYTES + length as usize;
    let raw: RawHeader =
        serde_json::from_slice(&file[LENGTH_BYTES..data]).map_err(|e| bad(format!("header: {e}")))?;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (key, info) in raw.tensors {
        let info = check(info, file.len() - data).map_err(|e| bad(format!("key {}: {e}", shown(&key))))?;
        tensors.push((key, info));
    }
    tensors.sort_by_key(|(_, info)| (info.start, info.end));
    tiles(&tensors, file.len() - data).map_err(bad)?;
    for (_, info) in &mut tensors {
        info.start += data;
        info.end += data;
    }
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Checks one entry by itself. `room` is the number of data bytes in the file.
fn check(raw: RawInfo, room: usize) -> Result<Info, String> {
    let dtype = dtype_from_name(&raw.dtype).ok_or_else(|| {
        format!("unknown dtype {}, expected one such as F32, BF16 or F16", shown(&raw.dtype))
    })?;
    if raw.shape.len() > MAX_RANK {
        return Err(format!("{} dimensions, expected at most {MAX_RANK}", raw.shape.len()));
    }
    // Zero-sized dimensions count as one here: their neighbours must not overflow strides either.
    let absurd = || format!("the shape {:?} overflows", raw.shape);
    let bits = raw
        .shape
        .iter()
        .try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d.max(1)))
        .filter(|&n| n <= isize::MAX as u64)
        .ok_or_else(absurd)?;
    let bits = if raw.shape.contains(&0) { 0 } else { bits };
    if bits % 8 != 0 {
        return Err(format!("{:?} of {} do not fill whole bytes", raw.shape, raw.dtype));
    }
    let (start, end) = raw.data_offsets;
    if start > end {
        return Err(format!("its data ends at {end}, before its start {start}"));
    }
    if end - start != bits / 8 {
        let (got, want) = (end - start, bits / 8);
        return Err(format!("{got} bytes of data, but {} {:?} needs {want}", raw.dtype, raw.shape));
    }
    if end > room as u64 {
        return Err(format!(
            "its data ends at byte {end}, but the file has {room} bytes of data (truncated?)"
        ));
    }
    let dims = raw.shape.iter().map(|&d| d as usize).collect();
    Ok(Info { dtype, dims, start: start as usize, end: end as usize })
}

/// The format demands that the tensors fill the data exactly.
fn tiles(tensors: &[(String, Info)], room: usize) -> Result<(), String> {
    let (mut at, mut before) = (0, None);
    for (key, info) in tensors {
        if info.start != at {
            let what = if info.start < at { "overlaps" } else { "leaves a gap after" };
            let neighbour = before.map_or("the start of the data".to_string(), shown);
            let (key, start) = (shown(key), info.start);
            return Err(format!("key {key} starts at {start} and {what} {neighbour}, expected {at}"));
        }
        at = info.end;
        before = Some(key);
    }
    if at != room {
        return Err(format!("its tensors hold {at} bytes, but {room} bytes of data follow the header"));
    }
    Ok(())
}

/// Encodes length and JSON for tensors written one after another; padded so that the data begins at a multiple of 64 bytes,
/// which keeps memory-mapped tensors aligned for vector loads.
pub(super) fn encode<'a>(
    tensors: impl Iterator<Item = (&'a str, DType, &'a [usize])>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut json = serde_json::Map::new();
    json.insert("__metadata__".into(), serde_json::json!(metadata));
    let mut at = 0;
    for (key, dtype, dims) in tensors {
        let end = at + dims.iter().product::<usize>() * dtype.size();
        let entry = serde_json::json!({ "dtype": name_of(dtype), "shape": dims, "data_offsets": [at, end] });
        json.insert(key.to_string(), entry);
        at = end;
    }
    let mut text = serde_json::Value::Object(json).to_string().into_bytes();
    let padded = (LENGTH_BYTES + text.len()).next_multiple_of(64) - LENGTH_BYTES;
    text.resize(padded, b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.append(&mut text);
    out
}

/// Name of a dtype in the file format.
fn name_of(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::U8 => "U8",
    }
}

/// The dtype that tensors have here, if there is one.
pub(super) fn tensor_dtype(dtype: FileDType) -> Option<DType> {
    DType::ALL.into_iter().find(|&d| dtype_from_name(name_of(d)) == Some(dtype))
}

fn dtype_from_name(name: &str) -> Option<FileDType> {
    let de: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
    FileDType::deserialize(de).ok()
}

/// A key as it may appear in a message: quoted, control characters escaped, bounded.
pub(super) fn shown(key: impl AsRef<str>) -> String {
    let key = key.as_ref();
    if key.chars().count() <= 120 {
        return format!("{key:?}");
    }
    let head: String = key.chars().take(120).collect();
    format!("{head:?}... ({} bytes)", key.len())
}

/// A shape with its dtype as messages show it: `bf16 [3, 4]`.
pub fn shape_text(dtype: DType, dims: &[usize]) -> String {
    format!("{dtype} {dims:?}")
}

struct RawHeader {
    tensors: Vec<(String, RawInfo)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object from keys to {dtype, shape, data_offsets}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut out = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        let _rest: IgnoredAny = map.next_value()?;
                        return Err(A::Error::custom(format!("the key {} is there twice", shown(&key))));
                    }
                    let named = |e: A::Error| A::Error::custom(format!("key {}: {e}", shown(&key)));
                    if key == "__metadata__" {
                        out.metadata = map.next_value().map_err(named)?;
                    } else {
                        let info = map.next_value().map_err(named)?;
                        out.tensors.push((key, info));
                    }
                }
                Ok(out)
            }
        }
        de.deserialize_map(Entries)
    }
}
