#![doc = include_str!("README.md")]

pub(crate) mod conform;
pub(crate) mod cuda;
pub(crate) mod functions;
mod glu;
pub mod reference;
mod softplus;
#[cfg(test)]
mod tests;
mod unary;

use std::{fmt, str::FromStr};

use flashlin_tensor::{DType, Error, Result};
pub use glu::{glu, swiglu, swiglu_linear};
pub use softplus::softplus;
pub use unary::{activate, logsigmoid};

use crate::OpInfo;

const FLOATS: &[DType] = &[DType::F64, DType::F32, DType::BF16, DType::F16];

/// Registry entry of [`activate`] and its relatives.
pub static ACTIVATION: OpInfo = OpInfo {
    name: "activation",
    family: "activation",
    summary: "relu, sigmoid, logsigmoid, silu, sqrelu, gelu (tanh or erf), softplus, elementwise",
    source: "GELU: arXiv:1606.08415; squared ReLU: arXiv:2109.08668",
    modes: &[],
    dtypes: FLOATS,
    devices: &["cpu", "cuda"],
    grads: &["x"],
};

/// Registry entry of [`glu`] and [`swiglu`].
pub static GLU: OpInfo = OpInfo {
    name: "swiglu",
    family: "activation",
    summary: "act(gate) * up, with act = silu (SwiGLU) or any other activation",
    source: "arXiv:2002.05202",
    modes: &[],
    dtypes: FLOATS,
    devices: &["cpu", "cuda"],
    grads: &["gate", "up"],
};

/// An elementwise activation function, named as `hidden_act` in model configs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// max(x, 0)
    Relu,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// ln sigmoid(x)
    LogSigmoid,
    /// x sigmoid(x); also called swish
    Silu,
    /// max(x, 0)^2
    SqRelu,
    /// GELU in its tanh approximation, which is what `gelu` means in FLA's configs
    Gelu,
    /// GELU exactly, x Phi(x)
    GeluErf,
}

impl Activation {
    const NAMES: [(&str, Activation); 8] = [
        ("relu", Activation::Relu),
        ("sigmoid", Activation::Sigmoid),
        ("logsigmoid", Activation::LogSigmoid),
        ("silu", Activation::Silu),
        ("swish", Activation::Silu),
        ("sqrelu", Activation::SqRelu),
        ("gelu", Activation::Gelu),
        ("gelu_erf", Activation::GeluErf),
    ];

    /// The names [`Activation::from_str`] reads.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().map(|(name, _)| *name)
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, a)| a == self).map_or("?", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Activation {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::NAMES.iter().find(|(name, _)| *name == s).map(|(_, a)| *a).ok_or_else(|| {
            let known = Self::names().collect::<Vec<_>>().join(", ");
            Error::invalid("activation", "hidden_act", format!("is `{s}`, expected one of {known}"))
        })
    }
}
