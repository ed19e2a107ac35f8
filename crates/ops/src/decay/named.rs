//! The published operators of the family: thin names over [`decay_attention`] that fix which gates there are.

use flashlin_tensor::{DType, Error, Result, Tensor, Var};

use super::api::{DecayArgs, decay_attention};
use crate::{Mode, OpInfo, SeqOutput};

macro_rules! info {
    ($id:ident, $name:literal, $summary:literal, $source:literal, $grads:expr) => {
        #[doc = concat!("Registry entry of `", $name, "`.")]
        pub static $id: OpInfo = OpInfo {
            name: $name,
            family: "decay",
            summary: $summary,
            source: $source,
            modes: &[Mode::Chunk, Mode::Recurrent],
            dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
            devices: &["cpu", "cuda"],
            grads: $grads,
        };
    };
}

info!(
    LINEAR_ATTN,
    "linear_attn",
    "S_t = S_{t-1} + k_t v_t^T",
    "https://arxiv.org/abs/2006.16236",
    &["q", "k", "v", "initial_state"]
);
info!(
    RETENTION,
    "retention",
    "S_t = (1 - 2^{-5-h}) S_{t-1} + k_t v_t^T",
    "https://arxiv.org/abs/2307.08621",
    &["q", "k", "v", "initial_state"]
);
info!(
    LIGHTNING_ATTN,
    "lightning_attn",
    "S_t = e^{-8 h / H (1 - layer / layers)} S_{t-1} + k_t v_t^T",
    "https://arxiv.org/abs/2405.17381",
    &["q", "k", "v", "initial_state"]
);
info!(
    SIMPLE_GLA,
    "simple_gla",
    "S_t = e^{g_t} S_{t-1} + k_t v_t^T, g one number a head",
    "https://arxiv.org/abs/2312.06635",
    &["q", "k", "v", "g", "g_gamma", "initial_state"]
);
info!(
    GLA,
    "gla",
    "S_t = diag(e^{gk_t}) S_{t-1} diag(e^{gv_t}) + k_t v_t^T",
    "https://arxiv.org/abs/2312.06635",
    &["q", "k", "v", "gk", "gv", "initial_state"]
);
info!(
    RWKV6,
    "rwkv6",
    "o_t = S_{t-1}^T r_t + (r_t . u k_t) v_t; S_t = diag(e^{w_t}) S_{t-1} + k_t v_t^T",
    "https://arxiv.org/abs/2404.05892",
    &["q", "k", "v", "gk", "bonus", "initial_state"]
);
info!(
    SSD,
    "ssd",
    "Mamba-2: S_t = e^{A dt_t} S_{t-1} + B_t (dt_t x_t)^T; y_t = S_t^T C_t, B and C shared by groups of heads",
    "https://arxiv.org/abs/2405.21060",
    &["q", "k", "v", "g", "initial_state"]
);

fn check(op: &'static str, what: &str, supported: &str, present: bool) -> Result<()> {
    if present { Err(Error::unsupported(op, what, supported)) } else { Ok(()) }
}

/// Linear attention without decay.
///
/// # Errors
/// As [`decay_attention`], and when any gate is given.
pub fn linear_attn(args: DecayArgs) -> Result<SeqOutput> {
    let gated = args.g.is_some() || args.g_gamma.is_some() || args.gk.is_some() || args.gv.is_some();
    check("linear_attn", "gates", "no gate (see decay_attention)", gated || args.bonus.is_some())?;
    decay_attention(args)
}

/// `ln(1 - 2^{-5-h})` for h in `0..heads`.
pub fn retention_gamma(heads: usize) -> Vec<f64> {
    (0..heads).map(|h| (-(-5.0 - h as f64).exp2()).ln_1p()).collect()
}

/// Retention: the decay of head h is `1 - 2^{-5-h}`. Sets `g_gamma`.
///
/// # Errors
/// As [`decay_attention`], and when a gate is given.
pub fn retention(args: DecayArgs) -> Result<SeqOutput> {
    constant("retention", args, retention_gamma(head_count("retention", &args)?))
}

/// `-8 h / H * (1 - layer / layers)` for h in `0..heads`.
///
/// # Errors
/// When `layer` is not below `layers`.
pub fn lightning_gamma(heads: usize, layer: usize, layers: usize) -> Result<Vec<f64>> {
    if layer >= layers {
        let why = format!("is {layer}, expected less than the number of layers, {layers}");
        return Err(Error::invalid("lightning_attn", "layer", why));
    }
    let slope = 8.0 / heads as f64 * (1.0 - layer as f64 / layers as f64);
    Ok((0..heads).map(|h| -slope * h as f64).collect())
}

/// Lightning attention: constant decays by head and layer. Sets `g_gamma`.
///
/// # Errors
/// As [`decay_attention`], when a gate is given, and when `layer` is not below `layers`.
pub fn lightning_attn(args: DecayArgs, layer: usize, layers: usize) -> Result<SeqOutput> {
    constant("lightning_attn", args, lightning_gamma(head_count("lightning_attn", &args)?, layer, layers)?)
}

fn head_count(op: &'static str, args: &DecayArgs) -> Result<usize> {
    Ok(args.v.tensor().dims_n::<4>(op, "v")?[2])
}

fn constant(op: &'static str, args: DecayArgs, gamma: Vec<f64>) -> Result<SeqOutput> {
    let gated = args.g.is_some() || args.g_gamma.is_some() || args.gk.is_some() || args.gv.is_some();
    check(
        op,
        "gates of the caller",
        "its own constant decay (see decay_attention)",
        gated || args.bonus.is_some(),
    )?;
    let heads = gamma.len();
    let gamma = Tensor::from_vec(gamma, &[heads])?.to_dtype(args.q.dtype().accumulator())?;
    let gamma = Var::constant(flashlin_tensor::cuda::kept(&gamma, &args.q.device())?);
    decay_attention(DecayArgs { g_gamma: Some(&gamma), ..args })
}

/// Decay by one number a head: `g` by token, or `g_gamma`.
///
/// # Errors
/// As [`decay_attention`], and when a channel gate or a bonus is given.
pub fn simple_gla(args: DecayArgs) -> Result<SeqOutput> {
    let others = args.gk.is_some() || args.gv.is_some() || args.bonus.is_some();
    check("simple_gla", "channel gates or a bonus", "g, g_gamma", others)?;
    decay_attention(args)
}

/// Gated linear attention: decay by key channel (`gk`), and by value channel when `gv` is given.
///
/// # Errors
/// As [`decay_attention`], when `gk` is missing, and when another gate or a bonus is given.
pub fn gla(args: DecayArgs) -> Result<SeqOutput> {
    let others = args.g.is_some() || args.g_gamma.is_some() || args.bonus.is_some();
    check("gla", "gates by head or a bonus", "gk, gv", others)?;
    required("gla", "gk", args.gk)?;
    decay_attention(args)
}

/// RWKV6: q is the receptance, `gk` the log-decay w, `bonus` u.
///
/// # Errors
/// As [`decay_attention`], when `gk` or `bonus` is missing, and when another gate is given.
pub fn rwkv6(args: DecayArgs) -> Result<SeqOutput> {
    let others = args.g.is_some() || args.g_gamma.is_some() || args.gv.is_some();
    check("rwkv6", "gates other than gk", "gk, bonus", others)?;
    required("rwkv6", "gk", args.gk)?;
    required("rwkv6", "bonus", args.bonus)?;
    decay_attention(args)
}

/// Mamba-2's state-space duality: q = C and k = B on `n_groups` heads, v = x dt, g = A dt. The scale is 1 unless given.
///
/// # Errors
/// As [`decay_attention`], when `g` is missing, and when another gate or a bonus is given.
pub fn ssd(args: DecayArgs) -> Result<SeqOutput> {
    let others = args.g_gamma.is_some() || args.gk.is_some() || args.gv.is_some() || args.bonus.is_some();
    check("ssd", "gates other than g", "g", others)?;
    required("ssd", "g", args.g)?;
    decay_attention(DecayArgs { scale: Some(args.scale.unwrap_or(1.0)), ..args })
}

fn required(op: &'static str, arg: &'static str, x: Option<&Var>) -> Result<()> {
    match x {
        Some(_) => Ok(()),
        None => Err(Error::invalid(op, arg, "is missing")),
    }
}
