#![doc = include_str!("README.md")]

pub(crate) mod conform;
mod cuda;
mod kl;
mod labels;
mod linear;
mod plain;
pub mod reference;
mod rows;
#[cfg(test)]
mod tests;

use flashlin_tensor::{DType, Error, Result, Var};
pub use kl::{LINEAR_KL_DIVERGENCE, linear_kl_divergence};
pub use labels::shift_labels;
pub use linear::linear_cross_entropy;
pub use plain::cross_entropy;

use crate::OpInfo;

/// Registry entry of [`cross_entropy`].
pub static CROSS_ENTROPY: OpInfo = OpInfo {
    name: "cross_entropy",
    family: "loss",
    summary: "-ln softmax(logits)[label] with label smoothing, z-loss, soft-capping, ignored labels",
    source: "arXiv:1512.00567, arXiv:2204.02311",
    modes: &[],
    dtypes: FLOATS,
    devices: &["cpu", "cuda"],
    grads: &["logits"],
};

/// Registry entry of [`linear_cross_entropy`].
pub static LINEAR_CROSS_ENTROPY: OpInfo = OpInfo {
    name: "linear_cross_entropy",
    family: "loss",
    summary: "cross_entropy(x W^T + b, labels) without holding the logits whole",
    source: "arXiv:2411.09009",
    modes: &[],
    dtypes: FLOATS,
    devices: &["cpu", "cuda"],
    grads: &["x", "weight", "bias"],
};

const FLOATS: &[DType] = &[DType::F64, DType::F32, DType::BF16, DType::F16];

/// How the losses of tokens become the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Sum over counted tokens divided by their number
    #[default]
    Mean,
    /// Sum over counted tokens
    Sum,
    /// One loss for each token, 0 where the label is ignored
    None,
}

/// Options of the losses; the module's documentation has the formula.
#[derive(Clone, Copy, Debug)]
pub struct LossOptions {
    /// s, in [0, 1]; 0
    pub label_smoothing: f64,
    /// z; 0
    pub lse_square_scale: f64,
    /// Factor on the logits; 1
    pub logit_scale: f64,
    /// Soft cap of the scaled logits, above 0; None
    pub logit_softcapping: Option<f64>,
    /// Label of tokens that do not count; -100
    pub ignore_index: i64,
    /// Mean, sum, or one loss a token; mean
    pub reduction: Reduction,
    /// Gradient penalty on the largest logit (1e-4 is usual); None
    pub l2_warp: Option<f64>,
}

impl Default for LossOptions {
    fn default() -> Self {
        LossOptions {
            label_smoothing: 0.0,
            lse_square_scale: 0.0,
            logit_scale: 1.0,
            logit_softcapping: None,
            ignore_index: -100,
            reduction: Reduction::Mean,
            l2_warp: None,
        }
    }
}

impl LossOptions {
    fn check(&self, op: &'static str) -> Result<()> {
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            let why = format!("is {}, expected a number in [0, 1]", self.label_smoothing);
            return Err(Error::invalid(op, "label_smoothing", why));
        }
        if let Some(cap) = self.logit_softcapping
            && !(cap.is_finite() && cap > 0.0)
        {
            let why = format!("is {cap}, expected a finite number above 0");
            return Err(Error::invalid(op, "logit_softcapping", why));
        }
        for (arg, v) in [("logit_scale", self.logit_scale), ("lse_square_scale", self.lse_square_scale)] {
            if !v.is_finite() {
                return Err(Error::invalid(op, arg, format!("is {v}, expected a finite number")));
            }
        }
        if self.l2_warp.is_some() && self.reduction == Reduction::None {
            return Err(Error::unsupported(op, "l2_warp with reduction none", "mean, sum"));
        }
        Ok(())
    }

    /// Weight of one counted token's loss in the result.
    fn token_weight(&self, count: usize) -> f64 {
        match self.reduction {
            Reduction::Mean => 1.0 / count.max(1) as f64,
            _ => 1.0,
        }
    }

    /// Gradient of a token's largest logit per unit of that logit.
    fn warp(&self, tokens: usize) -> f64 {
        self.l2_warp.unwrap_or(0.0) / tokens.max(1) as f64
    }
}

/// What the losses return.
#[derive(Clone, Debug)]
pub struct LossOutput {
    /// A scalar, or one loss a token in the shape of the labels with [`Reduction::None`]; f32 (f64 for f64 inputs)
    pub loss: Var,
    /// Tokens that counted
    pub count: usize,
}
