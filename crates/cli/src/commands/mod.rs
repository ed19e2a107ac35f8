//! One file a command: its options and what it calls. Below: what several commands read in the same way.

pub mod bench;
pub mod completions;
pub mod convert;
pub mod devices;
pub mod docs;
pub mod eval;
pub mod generate;
pub mod man;
pub mod models;
pub mod new;
pub mod ops;
pub mod quickstart;
pub mod serve;
pub mod show;
pub mod train;
pub mod verify;
pub mod verify_kernels;
pub mod verify_ops;

use std::path::{Path, PathBuf};

use clap::Args;
use flashlin::{DType, Device, hub, tokenizer::Tokenizer};
use flashlin_tensor::cuda::{Products, set_products};

use crate::{failure::Failure, table::bytes};

/// How a hub id becomes a folder.
#[derive(Debug, Args)]
pub struct HubArgs {
    /// Branch, tag or commit of a hub id
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// Use what is in the cache, without network
    #[arg(long)]
    offline: bool,
}

impl HubArgs {
    /// The folder of a model: a path as it is, a hub id downloaded into the cache.
    pub fn resolve(&self, model: &str) -> anyhow::Result<PathBuf> {
        if self.revision.is_none() && Path::new(model).is_dir() {
            return Ok(model.into());
        }
        let mut options = hub::HubOptions::from_env()?;
        options.revision.clone_from(&self.revision);
        options.offline |= self.offline;
        options.progress = Some(std::sync::Arc::new(|p: hub::Progress<'_>| {
            let total = p.total.map(|t| format!(" of {}", bytes(t))).unwrap_or_default();
            tracing::info!("{}: {}{total}", p.file, bytes(p.done));
        }));
        Ok(hub::resolve(model, &options)?)
    }
}

/// Reads an option that names a dtype of weights.
pub fn parse_dtype(option: &str, name: &str) -> Result<DType, Failure> {
    DType::parse(name)
        .filter(|d| d.is_float())
        .ok_or_else(|| Failure::usage(format!("{option}: `{name}` is none of f32, bf16, f16, f64")))
}

/// Where to compute.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Where to compute: cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// How a GPU multiplies f32 matrices: f32, or tf32 (rounded to 11 bits, faster)
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = ["f32", "tf32"])]
    pub products: String,
}

impl DeviceArgs {
    /// The device, opened: what is missing shows before work is put into it. Sets how it multiplies.
    pub fn open(&self) -> anyhow::Result<Device> {
        let device: Device = self.device.parse().map_err(|e| Failure::usage(format!("--device: {e}")))?;
        let products: Products = self.products.parse()?;
        if device == Device::Cpu && products != Products::F32 {
            let message = format!("--products {}: the CPU multiplies in f32", self.products);
            return Err(Failure::usage(message).hint("it is for --device cuda:N").into());
        }
        device.open()?;
        set_products(products);
        Ok(device)
    }
}

/// Opens the GPU that an option names.
pub fn parse_gpu(option: &str, name: &str) -> anyhow::Result<flashlin_cuda::Gpu> {
    match name.parse() {
        Ok(Device::Cuda(ordinal)) => Ok(flashlin_cuda::Gpu::open(ordinal)?),
        Ok(other) => Err(Failure::usage(format!("{option}: {other} is no GPU; expected cuda:N")).into()),
        Err(e) => Err(Failure::usage(format!("{option}: {e}")).into()),
    }
}

/// `bytes`, or a tokenizer.json or a folder with one.
pub fn open_tokenizer(name: &str) -> anyhow::Result<Tokenizer> {
    Ok(match name {
        "bytes" => Tokenizer::bytes()?,
        path => Tokenizer::from_file(Path::new(path))?,
    })
}
