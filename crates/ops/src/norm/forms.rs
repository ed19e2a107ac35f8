//! The usual forms of [`norm`], by the names they have elsewhere.

use flashlin_tensor::{Error, Result, Var};

use super::{NormArgs, NormKind, norm};
use crate::activation::Activation;

/// A multiplicative gate.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// Shape of the norm's input, any float dtype
    pub value: &'a Var,
    /// [`Activation::Silu`] or [`Activation::Sigmoid`]
    pub activation: Activation,
    /// false: norm(x) weight + bias is multiplied; true: x is multiplied and then normalised
    pub before_norm: bool,
}

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension of `x` `[.., D]`.
///
/// # Errors
/// As [`norm`].
pub fn rms_norm(x: &Var, weight: Option<&Var>, eps: f64) -> Result<Var> {
    Ok(norm(&NormArgs { weight, eps, ..NormArgs::new(x) })?.y)
}

/// (x - mean) / sqrt(var + eps) * weight + bias over the last dimension of `x` `[.., D]`.
///
/// # Errors
/// As [`norm`].
pub fn layer_norm(x: &Var, weight: Option<&Var>, bias: Option<&Var>, eps: f64) -> Result<Var> {
    Ok(norm(&NormArgs { weight, bias, eps, kind: NormKind::Layer, ..NormArgs::new(x) })?.y)
}

/// Layer norm (or RMS norm) within each of `groups` equal parts of the last dimension; weight and bias are `[D]`.
///
/// # Errors
/// As [`norm`].
pub fn group_norm(
    x: &Var,
    weight: Option<&Var>,
    bias: Option<&Var>,
    groups: usize,
    is_rms_norm: bool,
    eps: f64,
) -> Result<Var> {
    let kind = if is_rms_norm { NormKind::Rms } else { NormKind::Layer };
    Ok(norm(&NormArgs { weight, bias, eps, kind, groups, ..NormArgs::new(x) })?.y)
}

/// rms_norm(x) * weight * act(gate), with act silu or sigmoid (FLA's FusedRMSNormGated).
///
/// # Errors
/// As [`norm`].
pub fn rms_norm_gated(
    x: &Var,
    gate: &Var,
    weight: Option<&Var>,
    activation: Activation,
    eps: f64,
) -> Result<Var> {
    let gate = Some(Gate { value: gate, activation, before_norm: false });
    Ok(norm(&NormArgs { weight, eps, gate, ..NormArgs::new(x) })?.y)
}

/// Mamba 2's gated norm: statistics over parts of `group_size` (None: all of D), gate silu(z), applied after the norm
/// (`norm_before_gate`) or to its input. Without `z` it is a grouped RMS norm.
///
/// # Errors
/// As [`norm`], and when `group_size` does not divide D.
pub fn rms_norm_gated_grouped(
    x: &Var,
    z: Option<&Var>,
    weight: Option<&Var>,
    group_size: Option<usize>,
    norm_before_gate: bool,
    eps: f64,
) -> Result<Var> {
    let width = x.dims().last().copied().unwrap_or(0);
    let groups = match group_size {
        None => 1,
        Some(size) if size > 0 && width.is_multiple_of(size) => (width / size).max(1),
        Some(size) => {
            let why = format!("is {size}, expected a divisor of the last dimension {width}");
            return Err(Error::invalid("norm", "group_size", why));
        }
    };
    let gate = z.map(|value| Gate { value, activation: Activation::Silu, before_norm: !norm_before_gate });
    Ok(norm(&NormArgs { weight, eps, groups, gate, ..NormArgs::new(x) })?.y)
}

/// rms_norm(x) * norm_weight times `weight` `[out, D]` transposed, plus `bias` `[out]`.
///
/// # Errors
/// As [`norm`] and [`Var::linear`].
pub fn rms_norm_linear(
    x: &Var,
    norm_weight: Option<&Var>,
    weight: &Var,
    bias: Option<&Var>,
    eps: f64,
) -> Result<Var> {
    let y = rms_norm(x, norm_weight, eps)?.linear(weight)?;
    bias.map_or(Ok(y.clone()), |b| y.add(b))
}

/// x / sqrt(sum(x^2) + eps) over the last dimension.
///
/// # Errors
/// As [`norm`].
pub fn l2_norm(x: &Var, eps: f64) -> Result<Var> {
    Ok(norm(&NormArgs { eps, kind: NormKind::L2, ..NormArgs::new(x) })?.y)
}
