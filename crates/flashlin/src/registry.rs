//! The list of model families. Listings, docs, conformance tests and benchmarks iterate it.

use std::{any::Any, fmt::Debug};

use flashlin_tensor::Var;

use crate::{
    Error, Result,
    backbone::Block,
    config::{BaseConfig, KeyInfo, Map},
    features,
    init::{Dist, Init},
    layer::Carried,
};

/// A model architecture: its name, its config keys, and how to build its blocks.
pub trait ModelFamily: Sync {
    /// `model_type` in `config.json`.
    fn model_type(&self) -> &'static str;
    /// Class name for `architectures` in `config.json`.
    fn architecture(&self) -> &'static str;
    /// One line on what it is.
    fn summary(&self) -> &'static str;
    /// Where it comes from.
    fn paper(&self) -> &'static str;
    /// The family's documentation (Markdown).
    fn readme(&self) -> &'static str;
    /// All config keys, base keys included.
    fn keys(&self) -> Vec<&'static KeyInfo>;
    /// Defaults of shared keys where they differ from the common ones.
    fn defaults(&self) -> Map {
        Map::new()
    }
    /// Reads the typed config.
    ///
    /// # Errors
    /// A value of the wrong type.
    fn parse(&self, raw: &Map) -> Result<std::sync::Arc<dyn FamilyConfig>>;
    /// Ready-made sizes: name and keys.
    fn presets(&self) -> Vec<(&'static str, Map)>;
    /// Names of the checkpoint's outer modules.
    fn layout(&self) -> KeyLayout {
        KeyLayout::default()
    }
    /// Whether the embedding of `pad_token_id` learns nothing as an input.
    fn freezes_padding(&self) -> bool {
        true
    }
    /// Whether the peer's mixers of this family run over the boundaries of packed sequences (ours do not).
    fn peer_crosses_boundaries(&self) -> bool {
        false
    }
}

/// The typed config of a family.
pub trait FamilyConfig: Any + Debug + Send + Sync {
    /// The shared part.
    fn base(&self) -> &BaseConfig;
    /// For the family's own code.
    fn as_any(&self) -> &dyn Any;
    /// Checks that need more than one key.
    ///
    /// # Errors
    /// Impossible sizes or combinations, named by key.
    fn check(&self) -> Result<()> {
        Ok(())
    }
    /// Builds block `layer`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    fn block(&self, layer: usize, init: &Init) -> Result<Block>;

    /// What is added to the loss of a pass, from what its layers left (load balancing).
    ///
    /// # Errors
    /// Those of the operators.
    fn extra_loss(&self, _carried: &Carried) -> Result<Option<Var>> {
        Ok(None)
    }

    /// What stands before and after the blocks.
    fn ends(&self) -> Ends {
        Ends::usual(self.base())
    }
}

/// How the embedding and the output projection start, and which norm the last one is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ends {
    /// Initial embeddings.
    pub embedding: Dist,
    /// Initial output projection (where it is not the embedding).
    pub head: Dist,
    /// None: the final norm is an RMS norm. Otherwise a layer norm, with or without a bias.
    pub layer_norm_bias: Option<bool>,
}

impl Ends {
    /// Normal weights and an RMS norm.
    pub fn usual(base: &BaseConfig) -> Self {
        let normal = Dist::Normal(base.initializer_range);
        Ends { embedding: normal, head: normal, layer_norm_bias: None }
    }
}

/// Key names outside the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLayout {
    /// Prefix of everything but the output projection.
    pub root: &'static str,
    /// The final norm.
    pub final_norm: &'static str,
}

impl Default for KeyLayout {
    fn default() -> Self {
        KeyLayout { root: "model", final_norm: "norm" }
    }
}

/// All families.
pub static REGISTRY: &[&dyn ModelFamily] = &[
    &features::gla::Gla,
    &features::retnet::RetNet,
    &features::delta_net::DeltaNet,
    &features::gated_deltanet::GatedDeltaNet,
    &features::gated_deltaproduct::GatedDeltaProduct,
    &features::comba::Comba,
    &features::kda::Kda,
    &features::rwkv6::Rwkv6,
    &features::rwkv7::Rwkv7,
    &features::mamba2::Mamba2,
    &features::log_linear_mamba2::LogLinearMamba2,
    &features::mesa_net::MesaNet,
    &features::path_attn::PathAttn,
    &features::nsa::Nsa,
    &features::transformer::Transformer,
    &features::linear_attn::LinearAttn,
    &features::lightnet::LightNet,
    &features::hgrn::Hgrn,
    &features::hgrn2::Hgrn2,
    &features::gsa::Gsa,
    &features::abc::Abc,
    &features::forgetting_transformer::ForgettingTransformer,
    &features::mla::Mla,
    &features::mamba::Mamba,
    &features::samba::Samba,
    &features::rodimus::Rodimus,
    &features::mom::Mom,
];

/// The family with this `model_type`.
///
/// # Errors
/// When there is none; the message lists what exists.
pub fn find_family(model_type: &str) -> Result<&'static dyn ModelFamily> {
    REGISTRY.iter().copied().find(|f| f.model_type() == model_type).ok_or_else(|| {
        let names: Vec<_> = REGISTRY.iter().map(|f| f.model_type()).collect();
        Error::config("model_type", format!("is `{model_type}`; supported: {}", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_folder_is_registered() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/features");
        for entry in std::fs::read_dir(root).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                let name = entry.file_name().into_string().unwrap();
                assert!(find_family(&name).is_ok(), "features/{name} is not in REGISTRY");
                assert!(entry.path().join("README.md").exists(), "features/{name} has no README.md");
            }
        }
    }

    #[test]
    fn names_are_unique_and_keys_documented() {
        let mut names: Vec<_> = REGISTRY.iter().map(|f| f.model_type()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), REGISTRY.len());
        for family in REGISTRY {
            let mut seen = std::collections::HashSet::new();
            for key in family.keys() {
                assert!(!key.doc.trim().is_empty(), "{}.{}", family.model_type(), key.name);
                assert!(seen.insert(key.name), "{}.{} stands twice", family.model_type(), key.name);
            }
        }
    }

    #[test]
    fn an_unknown_family_lists_the_known() {
        let msg = find_family("gpt7").err().unwrap().to_string();
        assert!(msg.contains("gpt7") && msg.contains("gated_deltanet"), "{msg}");
    }
}
