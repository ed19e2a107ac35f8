//! Activations by the names that configs use.

use flashlin_ops::activation::Activation;

use crate::{Error, Result};

/// The activation with this name.
pub(crate) fn activation(key: &'static str, name: &str) -> Result<Activation> {
    name.parse().map_err(|e: flashlin_ops::Error| Error::config(key, e.to_string()))
}

/// Activations that gated norms support.
pub(crate) fn gate_activation(key: &'static str, name: &str) -> Result<Activation> {
    match name {
        "swish" | "silu" => Ok(Activation::Silu),
        "sigmoid" => Ok(Activation::Sigmoid),
        other => Err(Error::config(key, format!("is `{other}`; supported: swish, silu, sigmoid"))),
    }
}
