//! Reading torch's checkpoints (`.pth`, `.pt`, `pytorch_model.bin`): zip archives of a pickled dict and blocks of numbers.
//!
//! Policy: nothing in the file is executed; what is not a plain dict of tensors is refused. See [`pickle`] for what a pickle may say.

mod pickle;
#[cfg(test)]
pub(super) mod tests;
mod zip;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use flashlin_tensor::{DType, MappedFile, Tensor};
use half::{bf16, f16};
use pickle::Record;

use crate::{Error, Result};

/// A checkpoint's tensors.
pub struct TorchFile {
    path: PathBuf,
    file: MappedFile,
    tensors: BTreeMap<String, (Record, DType, usize)>,
}

impl std::fmt::Debug for TorchFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TorchFile({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

/// The element type of a storage class.
fn dtype_of(kind: &str) -> Option<DType> {
    Some(match kind {
        "FloatStorage" => DType::F32,
        "DoubleStorage" => DType::F64,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        _ => return None,
    })
}

impl TorchFile {
    /// Opens a file and reads where its tensors lie.
    ///
    /// # Errors
    /// When it cannot be read, is no archive of a plain dict of float tensors, or anything in it does not fit.
    pub fn open(path: &Path) -> Result<TorchFile> {
        let file = MappedFile::open(path).map_err(|e| Error::file(path, e.to_string()))?;
        let tensors = index(file.bytes()).map_err(|why| Error::file(path, why))?;
        Ok(TorchFile { path: path.to_path_buf(), file, tensors })
    }

    /// Names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's shape.
    pub fn dims(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.0.dims.as_slice())
    }

    /// A tensor, contiguous, in its own type.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let missing = || Error::file(&self.path, format!("has no tensor `{name}`"));
        let (record, dtype, start) = self.tensors.get(name).ok_or_else(missing)?;
        let bytes = self.file.bytes();
        let value = |i: usize| &bytes[start + i * dtype.size()..][..dtype.size()];
        let places = places(record);
        Ok(match dtype {
            DType::F64 => {
                Tensor::from_vec(all(places, |i| f64::from_le_bytes(fixed(value(i)))), &record.dims)?
            }
            DType::F32 => {
                Tensor::from_vec(all(places, |i| f32::from_le_bytes(fixed(value(i)))), &record.dims)?
            }
            DType::F16 => {
                Tensor::from_vec(all(places, |i| f16::from_le_bytes(fixed(value(i)))), &record.dims)?
            }
            _ => Tensor::from_vec(all(places, |i| bf16::from_le_bytes(fixed(value(i)))), &record.dims)?,
        })
    }
}

fn all<T>(places: impl Iterator<Item = usize>, f: impl Fn(usize) -> T) -> Vec<T> {
    places.map(f).collect()
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

/// Where the elements lie in their storage, row by row.
fn places(r: &Record) -> impl Iterator<Item = usize> + '_ {
    let count: usize = r.dims.iter().product();
    (0..count).map(|mut i| {
        let mut at = r.offset;
        for (&n, &stride) in r.dims.iter().zip(&r.strides).rev() {
            at += i % n * stride;
            i /= n;
        }
        at
    })
}

type Index = BTreeMap<String, (Record, DType, usize)>;

/// Every tensor with its type and where its storage begins; all checked to lie inside the file.
fn index(file: &[u8]) -> std::result::Result<Index, String> {
    let entries = zip::entries(file)?;
    let (name, program) = entries
        .iter()
        .find(|(name, _)| name.ends_with("/data.pkl") || *name == "data.pkl")
        .ok_or("holds no data.pkl: it was not written by torch.save")?;
    let root = &name[..name.len() - "data.pkl".len()];
    let big = entries.get(&format!("{root}byteorder")).is_some_and(|r| file[r.clone()].starts_with(b"big"));
    if big {
        return Err("holds big-endian numbers; supported: little-endian".into());
    }
    let mut out = Index::new();
    for (name, record) in pickle::tensors(&file[program.clone()])? {
        let storage = &record.storage;
        let kind = &storage.kind;
        let dtype = dtype_of(kind).ok_or_else(|| {
            format!("holds `{name}` in a {kind}; supported: FloatStorage, DoubleStorage, HalfStorage, BFloat16Storage")
        })?;
        let data = entries.get(&format!("{root}data/{}", storage.key));
        let data =
            data.ok_or_else(|| format!("lacks the numbers of `{name}` (entry data/{})", storage.key))?;
        let fits = extent(&record).is_some_and(|e| e <= storage.len)
            && storage.len.checked_mul(dtype.size()).is_some_and(|n| n <= data.len());
        if !fits {
            return Err(format!("holds `{name}` {:?} beyond its numbers", record.dims));
        }
        if out.insert(name.clone(), (record, dtype, data.start)).is_some() {
            return Err(format!("holds `{name}` twice"));
        }
    }
    Ok(out)
}

/// One more than the last element's place; None where the numbers are absurd. A tensor of expanded strides holds no more elements than
/// its storage: such tensors are refused too.
fn extent(r: &Record) -> Option<usize> {
    if r.dims.len() != r.strides.len() || r.dims.len() > 8 {
        return None;
    }
    let count = r.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    if count == 0 {
        return Some(0);
    }
    let steps = r.dims.iter().zip(&r.strides);
    let last = steps.clone().try_fold(r.offset, |at, (&n, &s)| at.checked_add((n - 1).checked_mul(s)?))?;
    let spread = steps.filter(|(n, _)| **n > 1).all(|(_, s)| *s > 0);
    (spread && count <= last - r.offset + 1).then_some(last + 1)
}
