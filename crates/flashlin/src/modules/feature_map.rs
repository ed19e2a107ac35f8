//! Feature maps with their parameters: what turns q and k into features before linear attention.

use flashlin_ops::{activation::activate, maps};
use flashlin_tensor::Var;

use super::{Activation, Linear};
use crate::{Error, Result, init::Init};

/// A map of each head's channels, by the names that configs use.
pub enum FeatureMap {
    /// softmax([2y, -2y]) of y = W x + b
    Hedgehog(Linear),
    /// relu(W x)
    T2r(Linear),
    /// (W_1 x + b_1) * (W_2 x + b_2)
    Product(Linear, Linear),
    /// [`maps::dpfp`]
    Dpfp,
    /// elu(x) + 1
    EluPlusOne,
    /// An activation.
    Plain(Activation),
    /// x
    Identity,
}

impl FeatureMap {
    /// Names that [`FeatureMap::new`] reads.
    pub const NAMES: [&'static str; 8] =
        ["hedgehog", "t2r", "elementwise_product", "dpfp", "elu", "relu", "identity", "swish"];

    /// The map of this name for heads of `dim` channels.
    ///
    /// # Errors
    /// An unknown name.
    pub fn new(init: &Init, key: &'static str, name: &str, dim: usize) -> Result<Self> {
        let linear = |at: &str, bias| Linear::new(&init.sub(at), dim, dim, bias);
        Ok(match name {
            "hedgehog" => FeatureMap::Hedgehog(linear("layer", true)?),
            "t2r" => FeatureMap::T2r(linear("layer", false)?),
            "elementwise_product" => FeatureMap::Product(linear("layer1", true)?, linear("layer2", true)?),
            "dpfp" => FeatureMap::Dpfp,
            "elu" => FeatureMap::EluPlusOne,
            "relu" => FeatureMap::Plain(Activation::Relu),
            "swish" => FeatureMap::Plain(Activation::Silu),
            "identity" => FeatureMap::Identity,
            other => return Err(Self::unknown(key, other, &Self::NAMES)),
        })
    }

    /// The error of a name that is not among `known`.
    pub(crate) fn unknown(key: &'static str, name: &str, known: &[&str]) -> Error {
        Error::config(key, format!("is `{name}`; supported: {}", known.join(", ")))
    }

    /// Features of a head of `dim` channels.
    pub fn width(&self, dim: usize) -> usize {
        match self {
            FeatureMap::Hedgehog(_) => 2 * dim,
            FeatureMap::Dpfp => 2 * maps::DPFP_NU * dim,
            _ => dim,
        }
    }

    /// `[.., dim]` to `[.., width]`.
    ///
    /// # Errors
    /// When the last dimension is not what the map was made for.
    pub fn forward(&self, x: &Var) -> Result<Var> {
        Ok(match self {
            FeatureMap::Hedgehog(layer) => maps::hedgehog(&layer.forward(x)?)?,
            FeatureMap::T2r(layer) => activate(&layer.forward(x)?, Activation::Relu)?,
            FeatureMap::Product(first, second) => first.forward(x)?.mul(&second.forward(x)?)?,
            FeatureMap::Dpfp => maps::dpfp(x, maps::DPFP_NU)?,
            FeatureMap::EluPlusOne => maps::elu_plus_one(x)?,
            FeatureMap::Plain(act) => activate(x, *act)?,
            FeatureMap::Identity => x.clone(),
        })
    }
}
