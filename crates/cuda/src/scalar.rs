//! Element types as dense products know them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A floating-point element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scalar {
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
}

impl Scalar {
    /// Every type.
    pub const ALL: [Scalar; 4] = [Scalar::Bf16, Scalar::F16, Scalar::F32, Scalar::F64];

    /// Size of an element in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Scalar::Bf16 | Scalar::F16 => 2,
            Scalar::F32 => 4,
            Scalar::F64 => 8,
        }
    }

    /// `bf16`, `f16`, `f32`, `f64`.
    pub fn name(self) -> &'static str {
        match self {
            Scalar::Bf16 => "bf16",
            Scalar::F16 => "f16",
            Scalar::F32 => "f32",
            Scalar::F64 => "f64",
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
