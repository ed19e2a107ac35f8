//! Linear-attention language models: layers, models, state, checkpoints and generation.
//!
//! A [`Config`] (a `config.json`) names a family of [`REGISTRY`]; a [`Model`] runs it; a [`ModelState`] is what a
//! sequence left behind, a value that forks, saves and continues. Every mixer is a public [`Layer`] by itself.

mod backbone;
pub mod config;
pub mod convert;
mod error;
mod family;
pub mod features;
pub mod files;
pub mod generate;
mod head;
pub mod hub;
mod init;
mod layer;
mod model;
pub mod modules;
mod padding;
mod pretrained;
mod registry;
pub mod sample;
mod slots;
mod state;
pub mod tokenizer;
pub mod verify;
pub mod weights;

pub use backbone::{Block, SubLayer};
pub use config::Config;
pub use error::{Error, ErrorKind, Result};
pub use family::{FamilyDef, Keys};
pub use flashlin_ops::{Mode, PackedSeqs};
pub use flashlin_tensor::{DType, Device};
pub use init::{Dist, Init, Role};
pub use layer::{Carried, Layer, LayerCtx, forward_masked};
pub use model::{ForwardOptions, Input, Logits, Model, Output, Tokens};
pub use padding::Padding;
pub use pretrained::{CONFIG_FILE, GENERATION_FILE};
pub use registry::{Ends, FamilyConfig, KeyLayout, ModelFamily, REGISTRY, find_family};
pub use state::{LayerState, ModelState, STATE_VERSION, StateKind, StateSpec, StateTensor};

/// `n` cases of a property; `PROPTEST_CASES` asks for a longer run.
#[cfg(test)]
fn cases(n: u32) -> proptest::test_runner::Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(n);
    proptest::test_runner::Config { cases, ..Default::default() }
}

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
