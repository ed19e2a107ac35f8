//! Checkpoints of other projects as models of this one.
//!
//! Policy: sizes come from the tensors' shapes and, where shapes do not say, from the `config.json` beside them. Every tensor of the source is used or known to be
//! without effect, and every parameter of the model is filled (but for those of layers that were asked to be new): anything else is an error that names the keys.

mod names;
#[cfg(test)]
mod tests;
mod torch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    str::FromStr,
};

use flashlin_tensor::{DType, Device, Tensor};
use serde_json::{Value, json};
pub use torch::TorchFile;

use crate::{Config, Error, Model, Result, config::Map, files, weights::WeightMap};

/// A layout that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// RWKV-7 as BlinkDL publishes it (`.pth`).
    Rwkv7,
    /// RWKV-6 as BlinkDL publishes it (`.pth`).
    Rwkv6,
    /// Mamba of state-spaces (`pytorch_model.bin`).
    Mamba,
    /// Mamba-2 of state-spaces (`pytorch_model.bin`).
    Mamba2,
    /// Llama and Mistral as Hugging Face stores them (a folder).
    Llama,
}

impl Layout {
    const ALL: [(&'static str, Layout); 5] = [
        ("rwkv7", Layout::Rwkv7),
        ("rwkv6", Layout::Rwkv6),
        ("mamba", Layout::Mamba),
        ("mamba2", Layout::Mamba2),
        ("llama", Layout::Llama),
    ];

    /// The layout of a source, from its keys.
    fn of(source: &dyn Source) -> Option<Layout> {
        let has = |key: &str| source.dims(key).is_some();
        let all = [
            ("blocks.0.att.r_k", Layout::Rwkv7),
            ("blocks.0.att.time_faaaa", Layout::Rwkv6),
            ("backbone.layers.0.mixer.dt_proj.weight", Layout::Mamba),
            ("backbone.layers.0.mixer.dt_bias", Layout::Mamba2),
            ("model.layers.0.self_attn.q_proj.weight", Layout::Llama),
        ];
        all.into_iter().find(|(key, _)| has(key)).map(|(_, layout)| layout)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(_, l)| l == self).map_or("?", |(name, _)| name))
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let names: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
        let found = Self::ALL.iter().find(|(name, _)| *name == s).map(|(_, l)| *l);
        found.ok_or_else(|| {
            Error::argument("layout", format!("is `{s}`, expected one of {}", names.join(", ")))
        })
    }
}

/// Where tensors come from.
trait Source {
    fn names(&self) -> Vec<String>;
    fn dims(&self, name: &str) -> Option<Vec<usize>>;
    fn get(&self, name: &str) -> Result<Tensor>;
}

impl Source for TorchFile {
    fn names(&self) -> Vec<String> {
        TorchFile::names(self).map(String::from).collect()
    }

    fn dims(&self, name: &str) -> Option<Vec<usize>> {
        TorchFile::dims(self, name).map(<[usize]>::to_vec)
    }

    fn get(&self, name: &str) -> Result<Tensor> {
        TorchFile::get(self, name)
    }
}

impl Source for WeightMap {
    fn names(&self) -> Vec<String> {
        self.keys().map(String::from).collect()
    }

    fn dims(&self, name: &str) -> Option<Vec<usize>> {
        WeightMap::dims(self, name).map(|d| d.to_vec())
    }

    fn get(&self, name: &str) -> Result<Tensor> {
        WeightMap::get(self, name)
    }
}

/// How a parameter is made of the source's tensors.
enum Recipe {
    /// This tensor, in the parameter's shape.
    As(String),
    /// This matrix, turned round.
    Turned(String),
    /// This tensor times a number, in the parameter's shape.
    Scaled(String, f64),
    /// These tensors one below the other, in the parameter's shape.
    Stacked(Vec<String>),
    /// The parts `[n, ..]` of this tensor along a dimension in another order; then turned into the parameter's shape as `fn` says.
    Parts(String, fn(&Tensor) -> Result<Tensor>),
}

impl Recipe {
    fn names(&self) -> Vec<&str> {
        match self {
            Recipe::As(n) | Recipe::Turned(n) | Recipe::Scaled(n, _) | Recipe::Parts(n, _) => vec![n],
            Recipe::Stacked(all) => all.iter().map(String::as_str).collect(),
        }
    }

    fn make(&self, source: &dyn Source) -> Result<Tensor> {
        Ok(match self {
            Recipe::As(n) => source.get(n)?,
            Recipe::Turned(n) => {
                let t = source.get(n)?;
                t.dims_n::<2>("convert", "matrix")?;
                t.transpose(0, 1)?.contiguous()?
            }
            Recipe::Scaled(n, factor) => {
                let t = source.get(n)?;
                t.to_dtype(DType::F32)?.affine(*factor, 0.0)?
            }
            Recipe::Stacked(all) => {
                let parts = all.iter().map(|n| source.get(n)).collect::<Result<Vec<_>>>()?;
                let flat = parts
                    .iter()
                    .map(|t| t.reshape(&[1, t.numel()]))
                    .collect::<std::result::Result<Vec<_>, _>>()?;
                Tensor::cat(&flat.iter().collect::<Vec<_>>(), 0)?
            }
            Recipe::Parts(n, f) => f(&source.get(n)?)?,
        })
    }
}

/// A converted model's configuration, and where its parameters come from.
struct Plan {
    config: Map,
    recipes: BTreeMap<String, Recipe>,
    /// Tensors of the source that have no effect.
    unused: Vec<String>,
}

/// What to make of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Its layout; None: as its keys say.
    pub layout: Option<Layout>,
    /// Type of the weights; None: that of the source.
    pub dtype: Option<DType>,
    /// Only of Llama's layout: another family, whose mixer takes the place of attention in `layers`. Its new parameters are drawn from `seed`, but those
    /// that have a counterpart of their name and shape.
    pub family: Option<String>,
    /// Layers whose attention is replaced; empty: all.
    pub layers: Vec<usize>,
    /// Keys of the new family's configuration.
    pub keys: Map,
    /// Seed of new parameters.
    pub seed: u64,
}

/// Reads a checkpoint: a `.pth`, `.pt` or `.bin` file, a safetensors file, or a folder with one of them and `config.json`.
///
/// # Errors
/// A file that cannot be read or is damaged, a layout that is not known, keys or shapes that do not fit.
pub fn convert(path: &Path, options: &Options) -> Result<Model> {
    let source = open(path)?;
    let beside = if path.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
    let beside: Option<Map> =
        if beside.exists() { Some(files::read_json(&beside, "model configuration")?) } else { None };
    let layout = match options.layout {
        Some(layout) => layout,
        None => Layout::of(&*source).ok_or_else(|| {
            let known: Vec<_> = Layout::ALL.iter().map(|(name, _)| *name).collect();
            Error::file(path, format!("is in no layout that is known: {}", known.join(", ")))
        })?,
    };
    let plan = names::plan(layout, &*source, beside.as_ref()).map_err(|e| at(path, e))?;
    build(&*source, plan, layout, options).map_err(|e| at(path, e))
}

/// Names the file where the error does not.
fn at(path: &Path, e: Error) -> Error {
    match e {
        e @ (Error::File { .. } | Error::Weights { .. }) => e,
        e => e.in_file(path),
    }
}

fn open(path: &Path) -> Result<Box<dyn Source>> {
    let bin = path.join("pytorch_model.bin");
    if path.is_dir() && bin.exists() {
        return Ok(Box::new(TorchFile::open(&bin)?));
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    if !path.is_dir() && matches!(extension, "pth" | "pt" | "bin") {
        return Ok(Box::new(TorchFile::open(path)?));
    }
    Ok(Box::new(WeightMap::open(path)?))
}

fn build(source: &dyn Source, mut plan: Plan, layout: Layout, options: &Options) -> Result<Model> {
    let replaced = swap(&mut plan, layout, options)?;
    plan.config.extend(options.keys.clone());
    let config = Config::from_json(plan.config)?;
    let first = plan.recipes.values().flat_map(Recipe::names).next().map(|n| source.get(n)).transpose()?;
    let dtype = options.dtype.or(first.map(|t| t.dtype())).unwrap_or(DType::F32);
    let model = Model::new(&config, dtype, &Device::Cpu, options.seed)?;
    let fresh = |name: &str| replaced.iter().any(|i| name.starts_with(&format!("model.layers.{i}.attn.")));
    let mut used: BTreeSet<&str> = plan.unused.iter().map(String::as_str).collect();
    for p in model.params() {
        let Some(recipe) = plan.recipes.get(p.name()) else {
            if fresh(p.name()) {
                continue;
            }
            return Err(Error::argument("checkpoint", format!("has nothing for the parameter {}", p.name())));
        };
        let t = recipe.make(source)?;
        used.extend(recipe.names());
        if t.numel() != p.dims().iter().product::<usize>() {
            if fresh(p.name()) {
                continue;
            }
            let why = format!(
                "has {} {:?}, but {} is {:?}",
                recipe.names().join(", "),
                t.dims(),
                p.name(),
                p.dims()
            );
            return Err(Error::argument("checkpoint", why));
        }
        p.set(t.reshape(&p.dims())?.to_dtype(p.dtype())?)?;
    }
    used.extend(plan.recipes.iter().filter(|(name, _)| fresh(name)).flat_map(|(_, r)| r.names()));
    // A tied projection may be there in its own name too.
    used.extend(
        model.tied_keys().iter().filter_map(|(alias, _)| plan.recipes.get(alias)).flat_map(Recipe::names),
    );
    let names = source.names();
    let left: Vec<&str> = names.iter().map(String::as_str).filter(|n| !used.contains(n)).collect();
    if !left.is_empty() {
        let shown = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        return Err(Error::argument("checkpoint", format!("has {} tensors of no use: {shown}", left.len())));
    }
    Ok(model)
}

/// Another family in the place of Llama's attention; returns the layers whose mixers are new.
fn swap(plan: &mut Plan, layout: Layout, options: &Options) -> Result<Vec<usize>> {
    let Some(family) = &options.family else {
        if options.layers.is_empty() {
            return Ok(Vec::new());
        }
        return Err(Error::argument("layers", "need a family whose mixer stands there"));
    };
    if layout != Layout::Llama {
        return Err(Error::unsupported("another family's mixer in this layout", "llama"));
    }
    let layers = plan.config.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
    let replaced: Vec<usize> =
        if options.layers.is_empty() { (0..layers).collect() } else { options.layers.clone() };
    if let Some(bad) = replaced.iter().find(|i| **i >= layers) {
        return Err(Error::argument("layers", format!("holds {bad}, but the model has {layers}")));
    }
    let keep: Vec<usize> = (0..layers).filter(|i| !replaced.contains(i)).collect();
    let take = |map: &mut Map, key: &str| map.remove(key).unwrap_or(Value::Null);
    let c = &mut plan.config;
    let (heads, kv, bias) = (take(c, "num_heads"), take(c, "num_kv_heads"), take(c, "qkv_bias"));
    let (window, theta) = (take(c, "window_size"), take(c, "rope_theta"));
    c.remove("qk_norm");
    c.insert("model_type".into(), family.as_str().into());
    c.insert("num_heads".into(), heads.clone());
    if !keep.is_empty() {
        let attn = json!({"layers": keep, "num_heads": heads, "num_kv_heads": kv, "qkv_bias": bias, "window_size": window, "rope_theta": theta});
        c.insert("attn".into(), attn);
    }
    Ok(replaced)
}
