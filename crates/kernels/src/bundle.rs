//! Reading a bundle.
//!
//! The file, all integers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `FLNKERN\0` |
//! | 4 | format version |
//! | 4 | number n of blocks |
//! | 4, 4 | length of the index, compressed and raw |
//! | 32 | SHA-256 of everything from the number of blocks (without this field) to the end of the compressed index |
//! | n x (4, 4) | length of each block, compressed and raw |
//! | | the index: JSON ([`Index`]), zstd |
//! | | the blocks: cubins one after another, zstd |
//!
//! The cubins of one kernel share a block, because its variants differ little and compress to a fraction of their sum that way. Opening reads the header and the
//! index alone; a block is decompressed when one of its cubins is loaded, and the cubin is then compared with its hash.

use std::{borrow::Cow, sync::OnceLock};

use sha2::{Digest, Sha256};

use crate::{Arch, Error, Index, Kernel, Result, error::names, index::generics_text, kernel_name};

/// Version of the format that this build writes and reads.
pub const FORMAT: u32 = 1;
/// First bytes of the file.
pub(crate) const MAGIC: &[u8; 8] = b"FLNKERN\0";
/// Length of the fixed part of the header in bytes.
pub(crate) const HEADER: usize = 8 + 4 + 4 + 4 + 4 + 32;
/// What an index or a block may measure when decompressed: a bound against files that would exhaust memory.
pub(crate) const MAX_RAW: usize = 64 << 20;

/// The kernels of one architecture, read on demand.
#[derive(Debug)]
pub struct Bundle {
    name: String,
    bytes: Cow<'static, [u8]>,
    arch: Arch,
    index: Index,
    blocks: Vec<Block>,
    /// Blocks as they were decompressed by the first cubin asked of them.
    raw: Vec<OnceLock<Vec<u8>>>,
}

/// One compressed block in the file.
#[derive(Clone, Copy, Debug)]
struct Block {
    start: usize,
    len: usize,
    raw: usize,
}

impl Bundle {
    /// Opens a bundle; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Format`].
    pub fn new(name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Bundle> {
        let (name, bytes) = (name.into(), bytes.into());
        let corrupt = |why: String| Error::Corrupt { bundle: name.clone(), why };
        let mut at = Cursor { bytes: &bytes, pos: 0 };
        if at.take(8) != Some(MAGIC) {
            return Err(corrupt("it does not begin as a bundle does".into()));
        }
        let short = || corrupt("it ends inside its header".into());
        let found = at.u32().ok_or_else(short)?;
        if found != FORMAT {
            return Err(Error::Format { bundle: name, found, expected: FORMAT });
        }
        let count = at.u32().ok_or_else(short)? as usize;
        let (packed, raw) = (at.u32().ok_or_else(short)? as usize, at.u32().ok_or_else(short)? as usize);
        let hash = at.take(32).ok_or_else(short)?;
        let table = count.checked_mul(8).and_then(|n| at.take(n)).ok_or_else(short)?;
        let text = at.take(packed).ok_or_else(|| corrupt("it ends inside its index".into()))?;
        let mut sum = Sha256::new();
        sum.update(&bytes[12..24]);
        sum.update(table);
        sum.update(text);
        if sum.finalize().as_slice() != hash {
            return Err(corrupt("its index does not match its hash".into()));
        }
        let blocks = block_table(table, at.pos, bytes.len()).map_err(&corrupt)?;
        let text = unpack(text, raw).map_err(|e| corrupt(format!("its index: {e}")))?;
        let index: Index = serde_json::from_slice(&text).map_err(|e| corrupt(format!("its index: {e}")))?;
        check_index(&index, &blocks).map_err(&corrupt)?;
        let arch = index.arch.parse().map_err(|e: Error| corrupt(e.to_string()))?;
        let raw = blocks.iter().map(|_| OnceLock::new()).collect();
        Ok(Bundle { name, bytes, arch, index, blocks, raw })
    }

    /// Reads a bundle from a file.
    ///
    /// # Errors
    /// [`Error::File`], and those of [`Bundle::new`].
    pub fn open(path: &std::path::Path) -> Result<Bundle> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| Error::File { path: name.clone(), source })?;
        Bundle::new(name, bytes)
    }

    /// The architecture that it is for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What it says about itself.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Its kernels, sorted by name.
    pub fn kernels(&self) -> &[Kernel] {
        &self.index.kernels
    }

    /// The kernel of this name.
    ///
    /// # Errors
    /// [`Error::NoKernel`] that names its relatives.
    pub fn get(&self, name: &str) -> Result<&Kernel> {
        let at = self.kernels().binary_search_by(|k| k.name.as_str().cmp(name));
        at.map(|i| &self.kernels()[i]).map_err(|_| {
            let stem = name.split('@').next().unwrap_or(name);
            self.no_kernel(name.into(), stem)
        })
    }

    /// All configurations of a kernel with this dtype and these values among their generics, in the order of their names; may be
    /// none.
    pub fn variants(&self, kernel: &str, dtype: &str, generics: &[(&str, i64)]) -> Vec<&Kernel> {
        self.of_type(kernel, dtype).iter().filter(|k| k.has(generics)).collect()
    }

    /// The configurations of a kernel with this dtype: they are neighbours, because names begin with both. Called by every launch, so it searches
    /// instead of looking at all.
    pub(crate) fn of_type(&self, kernel: &str, dtype: &str) -> &[Kernel] {
        let prefix = format!("{kernel}@{dtype}_");
        let all = self.kernels();
        let begin = |k: &Kernel| {
            let name = k.name.as_bytes();
            name[..name.len().min(prefix.len())].cmp(prefix.as_bytes())
        };
        let first = all.partition_point(|k| begin(k).is_lt());
        let count = all[first..].partition_point(|k| begin(k).is_eq());
        &all[first..first + count]
    }

    /// The one configuration of a kernel with this dtype and these values among its generics; where several are left, the first
    /// by name.
    ///
    /// # Errors
    /// [`Error::NoKernel`] that names the configurations of the kernel.
    pub fn find(&self, kernel: &str, dtype: &str, generics: &[(&str, i64)]) -> Result<&Kernel> {
        self.of_type(kernel, dtype).iter().find(|k| k.has(generics)).ok_or_else(|| {
            self.no_kernel(format!("{kernel} for {dtype} with {}", generics_text(generics)), kernel)
        })
    }

    /// The cubin of a kernel of this bundle, compared with its hash.
    ///
    /// # Errors
    /// [`Error::Corrupt`]; [`Error::Host`] where it carries code of another processor.
    pub fn cubin(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let here = std::env::consts::ARCH;
        if self.index.host != here {
            return Err(Error::Host { bundle: self.name.clone(), found: self.index.host.clone(), here });
        }
        self.cubin_of_any_host(kernel)
    }

    /// The cubin whatever processor its host code is for: for tools that look at it or pack it, not for launching.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn cubin_of_any_host(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let corrupt = |why: String| Error::Corrupt { bundle: self.name.clone(), why };
        let place = &kernel.cubin;
        let raw = self.block(place.block).map_err(|e| corrupt(format!("block {}: {e}", place.block)))?;
        let cubin = place
            .offset
            .checked_add(place.len)
            .and_then(|end| raw.get(place.offset..end))
            .ok_or_else(|| corrupt(format!("{} lies outside of its block", kernel.name)))?;
        if hex(&Sha256::digest(cubin)) != place.sha256 {
            return Err(corrupt(format!("{} does not match its hash", kernel.name)));
        }
        Ok(cubin.to_vec())
    }

    fn block(&self, number: usize) -> Result<&[u8], String> {
        let (Some(block), Some(slot)) = (self.blocks.get(number), self.raw.get(number)) else {
            return Err("is missing".into());
        };
        if let Some(raw) = slot.get() {
            return Ok(raw);
        }
        let raw = unpack(&self.bytes[block.start..block.start + block.len], block.raw)?;
        Ok(slot.get_or_init(|| raw))
    }

    fn no_kernel(&self, wanted: String, stem: &str) -> Error {
        let mut there: Vec<&str> =
            self.kernels().iter().filter(|k| k.kernel == stem).map(|k| k.name.as_str()).collect();
        if there.is_empty() {
            there = self.kernels().iter().map(|k| k.kernel.as_str()).collect();
            there.dedup();
        }
        Error::NoKernel { arch: self.arch.to_string(), wanted, there: names(&there) }
    }
}

/// Reads the lengths of the blocks; they must fill the file to its end.
fn block_table(table: &[u8], start: usize, end: usize) -> Result<Vec<Block>, String> {
    let mut at = Cursor { bytes: table, pos: 0 };
    let (mut blocks, mut start) = (Vec::new(), start);
    while let (Some(len), Some(raw)) = (at.u32(), at.u32()) {
        let (len, raw) = (len as usize, raw as usize);
        blocks.push(Block { start, len, raw });
        start = start.checked_add(len).ok_or("its blocks are too long")?;
    }
    if start != end {
        return Err(format!("it has {end} bytes where its header says {start}"));
    }
    Ok(blocks)
}

/// What a look-up relies on: names sorted and unique, cubins inside their blocks.
fn check_index(index: &Index, blocks: &[Block]) -> Result<(), String> {
    if let Some(pair) = index.kernels.windows(2).find(|p| p[0].name >= p[1].name) {
        return Err(format!("{} and {} are not in order", pair[0].name, pair[1].name));
    }
    for k in &index.kernels {
        if k.name != kernel_name(&k.kernel, &k.dtype, &k.generics, k.warps, k.occupancy) {
            return Err(format!("{} is not named after its fields", k.name));
        }
        let end = k.cubin.offset.checked_add(k.cubin.len);
        let fits = blocks.get(k.cubin.block).zip(end).is_some_and(|(b, end)| end <= b.raw);
        if !fits {
            return Err(format!("{} lies outside of the file", k.name));
        }
    }
    Ok(())
}

/// Decompresses one zstd frame of exactly `raw` bytes.
fn unpack(bytes: &[u8], raw: usize) -> Result<Vec<u8>, String> {
    if raw > MAX_RAW {
        return Err(format!("says it has {raw} bytes; at most {MAX_RAW} are read"));
    }
    let out = zstd::bulk::decompress(bytes, raw).map_err(|e| e.to_string())?;
    if out.len() != raw {
        return Err(format!("has {} bytes where {raw} were expected", out.len()));
    }
    Ok(out)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bounds-checked reading.
struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let end = self.pos.checked_add(n)?;
        let part = self.bytes.get(self.pos..end)?;
        self.pos = end;
        Some(part)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
