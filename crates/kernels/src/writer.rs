//! Writing a bundle: what `cargo xtask kernels` calls.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::{
    Arch, Bundle, Checked, Error, FORMAT, Index, Kernel, Place, Result,
    bundle::{HEADER, MAGIC, MAX_RAW, hex},
    kernel_name,
};

/// Highest level of zstd: bundles are written once and read often.
const LEVEL: i32 = 22;
/// A window as large as the largest block, so that every variant of a kernel sees the others.
const WINDOW_LOG: u32 = 26;

/// Collects kernels and writes them as one file.
#[derive(Debug)]
pub struct BundleWriter {
    arch: Arch,
    host: String,
    toolchain: String,
    kernels: BTreeMap<String, (Kernel, Vec<u8>)>,
}

impl BundleWriter {
    /// An empty bundle. `host` as in [`std::env::consts::ARCH`]; `toolchain` is the hash of what compiles.
    pub fn new(arch: Arch, host: impl Into<String>, toolchain: impl Into<String>) -> BundleWriter {
        BundleWriter { arch, host: host.into(), toolchain: toolchain.into(), kernels: BTreeMap::new() }
    }

    /// The contents of a bundle that exists, to add to or to record checks in.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where a cubin does not match its hash.
    pub fn of(bundle: &Bundle) -> Result<BundleWriter> {
        let index = bundle.index();
        let mut writer = BundleWriter::new(bundle.arch(), &index.host, &index.toolchain);
        for kernel in bundle.kernels() {
            writer.add(kernel.clone(), bundle.cubin_of_any_host(kernel)?)?;
        }
        Ok(writer)
    }

    /// Adds a kernel. Its `cubin` field is filled in here; `checked` is kept as given, so that an unchanged cubin (same hash) may keep
    /// its record.
    ///
    /// # Errors
    /// [`Error::Entry`] for a name that is taken or does not follow from the fields, and for an empty cubin.
    pub fn add(&mut self, mut kernel: Kernel, cubin: Vec<u8>) -> Result<()> {
        let bad = |why: String| Error::Entry { name: kernel.name.clone(), why };
        let name =
            kernel_name(&kernel.kernel, &kernel.dtype, &kernel.generics, kernel.warps, kernel.occupancy);
        if name != kernel.name {
            return Err(bad(format!("its fields spell the name {name}")));
        }
        if self.kernels.contains_key(&name) {
            return Err(bad("was added twice".into()));
        }
        if cubin.is_empty() || cubin.len() > MAX_RAW {
            return Err(bad(format!("has a cubin of {} bytes", cubin.len())));
        }
        kernel.cubin = Place { sha256: hex(&Sha256::digest(&cubin)), ..Place::default() };
        self.kernels.insert(name, (kernel, cubin));
        Ok(())
    }

    /// Records a check of the cubin with this hash; true where the bundle holds it.
    pub fn record(&mut self, sha256: &str, checked: &Checked) -> bool {
        let mut found = false;
        for (kernel, _) in self.kernels.values_mut().filter(|(k, _)| k.cubin.sha256 == sha256) {
            kernel.checked = Some(checked.clone());
            found = true;
        }
        found
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// [`Error::Entry`] where a kernel's variants are larger than a block may be, or compression fails.
    pub fn bytes(mut self) -> Result<Vec<u8>> {
        let blocks = self.fill_blocks()?;
        let kernels = self.kernels.into_values().map(|(k, _)| k).collect();
        let index =
            Index { arch: self.arch.to_string(), host: self.host, toolchain: self.toolchain, kernels };
        let bad = |why: String| Error::Entry { name: "index".into(), why };
        let text = serde_json::to_vec(&index).map_err(|e| bad(e.to_string()))?;
        let packed = pack(&text).map_err(bad)?;
        let mut lengths = Vec::new();
        for n in [blocks.len(), packed.len(), text.len()] {
            lengths.extend(length(n).map_err(bad)?);
        }
        let mut table = Vec::new();
        for (block, raw) in &blocks {
            table.extend(length(block.len()).map_err(bad)?);
            table.extend(length(*raw).map_err(bad)?);
        }
        let hash = Sha256::new().chain_update(&lengths).chain_update(&table).chain_update(&packed).finalize();
        let mut out = Vec::with_capacity(HEADER + table.len() + packed.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&lengths);
        out.extend_from_slice(&hash);
        out.extend_from_slice(&table);
        out.extend_from_slice(&packed);
        blocks.iter().for_each(|(block, _)| out.extend_from_slice(block));
        Ok(out)
    }

    /// Puts the variants of each kernel into one block and notes their places. Gives (compressed block, raw length).
    fn fill_blocks(&mut self) -> Result<Vec<(Vec<u8>, usize)>> {
        let mut raw: BTreeMap<(String, String), Vec<u8>> = BTreeMap::new();
        let key = |k: &Kernel| (k.family.clone(), k.kernel.clone());
        for (kernel, cubin) in self.kernels.values_mut() {
            let block = raw.entry(key(kernel)).or_default();
            (kernel.cubin.offset, kernel.cubin.len) = (block.len(), cubin.len());
            block.extend_from_slice(cubin);
        }
        let number: BTreeMap<_, usize> = raw.keys().cloned().enumerate().map(|(i, k)| (k, i)).collect();
        for (kernel, _) in self.kernels.values_mut() {
            kernel.cubin.block = number[&key(kernel)];
        }
        raw.into_iter()
            .map(|((_, name), block)| {
                if block.len() > MAX_RAW {
                    let why =
                        format!("all its cubins together have {} bytes; at most {MAX_RAW}", block.len());
                    return Err(Error::Entry { name, why });
                }
                let packed = pack(&block).map_err(|why| Error::Entry { name, why })?;
                Ok((packed, block.len()))
            })
            .collect()
    }
}

fn pack(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut z = zstd::bulk::Compressor::new(LEVEL).map_err(|e| e.to_string())?;
    // The window follows the data: a large one costs memory here and nothing when reading.
    let log = bytes.len().max(1).next_power_of_two().ilog2().clamp(10, WINDOW_LOG);
    z.set_parameter(zstd::zstd_safe::CParameter::WindowLog(log)).map_err(|e| e.to_string())?;
    z.compress(bytes).map_err(|e| e.to_string())
}

fn length(n: usize) -> Result<[u8; 4], String> {
    u32::try_from(n).map(u32::to_le_bytes).map_err(|_| format!("{n} bytes are more than the format can say"))
}
