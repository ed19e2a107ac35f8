//! Weights into parameters: strict, by name.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use flashlin_tensor::{DType, Element, Parameter, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{WeightMap, header::shown};
use crate::{Error, Result};

/// Keys that one message lists of a kind; the rest is counted.
const LISTED: usize = 8;
/// Elements that one task of the finiteness check reads.
const SCAN: usize = 1 << 16;

/// How weights are loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Refuse NaN and infinite weights (reads every byte once).
    pub check_finite: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { check_finite: true }
    }
}

/// Gives every parameter the tensor of its name on the parameter's device, converted there to the parameter's dtype. On the CPU a tensor
/// that has that dtype already stays a view of the mapped file; a GPU gets it straight from there.
///
/// `tied` lists (alias, owner): a key that stands for another parameter. It may be absent; where it is there it must hold the
/// owner's values, and it may stand in for an absent owner. Nothing is changed unless everything fits.
///
/// # Errors
/// [`Error::Weights`] that names missing, unused and misshaped keys; [`Error::NotFinite`]; a dtype that cannot be converted.
pub fn load_into(
    params: &[Arc<Parameter>],
    tied: &[(String, String)],
    map: &WeightMap,
    options: LoadOptions,
) -> Result<()> {
    let sources = match_keys(params, tied, map)?;
    let mut values = Vec::with_capacity(params.len());
    for (param, key) in params.iter().zip(&sources) {
        values.push(read(param, key, map, options)?);
    }
    for (alias, owner) in tied {
        if map.contains(alias) && map.contains(owner) && !same_values(map, alias, owner)? {
            let problem = format!(
                "key {} differs from {}, but the configuration ties them (tie_word_embeddings)",
                shown(alias),
                shown(owner)
            );
            return Err(Error::Weights { path: map.origin().to_path_buf(), problem });
        }
    }
    for (param, value) in params.iter().zip(values) {
        param.set(value)?;
    }
    Ok(())
}

/// The key that each parameter is read from, or one error about everything that does not fit.
fn match_keys(params: &[Arc<Parameter>], tied: &[(String, String)], map: &WeightMap) -> Result<Vec<String>> {
    let stand_in: BTreeMap<&str, &str> = tied.iter().map(|(alias, owner)| (&owner[..], &alias[..])).collect();
    let (mut missing, mut misshaped, mut sources) = (Vec::new(), Vec::new(), Vec::new());
    for param in params {
        let name = param.name();
        let alias = stand_in.get(name).copied().filter(|alias| map.contains(alias));
        let key = if map.contains(name) { Some(name) } else { alias };
        match key {
            None => missing.push(format!("{} {:?}", shown(name), param.dims())),
            Some(key) => {
                let got = map.dims(key).unwrap_or_default();
                if got != param.dims() {
                    misshaped.push(format!("{} is {got:?}, expected {:?}", shown(key), param.dims()));
                }
                sources.push(key.to_string());
            }
        }
    }
    let known: HashSet<&str> =
        params.iter().map(|p| p.name()).chain(tied.iter().map(|(alias, _)| &alias[..])).collect();
    let unused: Vec<String> = map.keys().filter(|k| !known.contains(k)).map(shown).collect();
    let shapes: HashMap<&str, Vec<usize>> = params.iter().map(|p| (p.name(), p.dims())).collect();
    for (alias, owner) in tied {
        if let (Some(got), Some(want)) = (map.dims(alias), shapes.get(&owner[..]))
            && got != want
            && map.contains(owner)
        {
            misshaped.push(format!("{} is {got:?}, expected {want:?} as {}", shown(alias), shown(owner)));
        }
    }
    let kinds = [("missing", missing), ("unused", unused), ("misshaped", misshaped)];
    let problems: Vec<String> =
        kinds.iter().filter(|(_, keys)| !keys.is_empty()).map(|(kind, keys)| list(kind, keys)).collect();
    if problems.is_empty() {
        return Ok(sources);
    }
    Err(Error::Weights { path: map.origin().to_path_buf(), problem: problems.join("; ") })
}

/// `2 missing keys: "a" [3], "b" [4]`
fn list(kind: &str, keys: &[String]) -> String {
    let noun = if keys.len() == 1 { "key" } else { "keys" };
    let more = match keys.len().saturating_sub(LISTED) {
        0 => String::new(),
        n => format!(", and {n} more"),
    };
    format!("{} {kind} {noun}: {}{more}", keys.len(), keys[..keys.len().min(LISTED)].join(", "))
}

fn read(param: &Parameter, key: &str, map: &WeightMap, options: LoadOptions) -> Result<Tensor> {
    let file = map.get(key)?;
    let want = param.dtype();
    if file.dtype().is_float() != want.is_float() {
        let problem = format!("key {} has dtype {}, expected {want}", shown(key), file.dtype());
        return Err(Error::Weights { path: map.file_of(key).to_path_buf(), problem });
    }
    let named = || format!("{}: key {}", map.file_of(key).display(), shown(key));
    if options.check_finite {
        check_finite(&file, named)?;
    }
    let device = param.tensor().device();
    if file.dtype() == want {
        return Ok(file.to_device(&device)?);
    }
    // Only a narrower exponent can turn finite into infinite; then the host converts, where that is looked for.
    if want == DType::F16 || file.dtype() == DType::F64 {
        let value = file.to_dtype(want)?;
        if options.check_finite {
            check_finite(&value, || format!("{} (converted from {} to {want})", named(), file.dtype()))?;
        }
        return Ok(value.to_device(&device)?);
    }
    Ok(file.to_device(&device)?.to_dtype(want)?)
}

fn same_values(map: &WeightMap, a: &str, b: &str) -> Result<bool> {
    let (a, b) = (map.get(a)?, map.get(b)?);
    if a.dtype() == b.dtype() {
        return Ok(a.as_bytes()? == b.as_bytes()?);
    }
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    Ok(a.as_slice::<f64>()? == b.as_slice::<f64>()?)
}

/// Refuses a float tensor with NaN or infinite elements; `what` names it in the error.
///
/// # Errors
/// [`Error::NotFinite`] with the first such element, its index and their number.
pub fn check_finite(tensor: &Tensor, what: impl FnOnce() -> String) -> Result<()> {
    let t = tensor.contiguous()?;
    let (count, first) = match t.dtype() {
        DType::F64 => scan(t.as_slice::<f64>()?, |x| !x.is_finite()),
        DType::F32 => scan(t.as_slice::<f32>()?, |x| !x.is_finite()),
        DType::BF16 => scan(t.as_slice::<bf16>()?, |x| x.to_bits() & 0x7f80 == 0x7f80),
        DType::F16 => scan(t.as_slice::<f16>()?, |x| x.to_bits() & 0x7c00 == 0x7c00),
        DType::I64 | DType::I32 | DType::U8 => return Ok(()),
    };
    let Some((index, value)) = first else { return Ok(()) };
    let problem = format!(
        "{count} of {} elements; the first, at flat index {index} of {:?}, is {value}",
        t.numel(),
        t.dims()
    );
    Err(Error::NotFinite { what: what(), problem })
}

/// Number of bad elements, and index and value of the first.
fn scan<T: Element>(values: &[T], bad: impl Fn(&T) -> bool + Sync) -> (usize, Option<(usize, f64)>) {
    // Counting has no early exit, so it vectorises; the position is looked for only when something is wrong.
    let count = values.par_chunks(SCAN).map(|c| c.iter().filter(|x| bad(x)).count()).sum();
    if count == 0 {
        return (0, None);
    }
    (count, values.iter().position(bad).map(|i| (i, values[i].to_f64())))
}
