#![doc = include_str!("README.md")]

mod chunks;
pub(crate) mod conform;
mod cumulative;
mod linear;
pub mod reference;
mod rounds;
pub mod selective;
#[cfg(test)]
mod tests;

pub use cumulative::{CumArgs, cumsum, logcumsumexp};
use flashlin_tensor::{DType, Device, Error, Result, Tensor, cuda::kept};
pub use linear::{ScanArgs, ScanOutput, linear_scan};

use crate::{OpInfo, PackedSeqs};

const FLOATS: &[DType] = &[DType::F64, DType::F32, DType::BF16, DType::F16];

macro_rules! info {
    ($id:ident, $name:literal, $summary:literal, $source:literal, $grads:expr) => {
        #[doc = concat!("Registry entry of `", $name, "`.")]
        pub static $id: OpInfo = OpInfo {
            name: $name,
            family: "scan",
            summary: $summary,
            source: $source,
            modes: &[],
            dtypes: FLOATS,
            devices: &["cpu", "cuda"],
            grads: $grads,
        };
    };
}

info!(
    LINEAR_SCAN,
    "linear_scan",
    "h_t = e^{g_t} h_{t-1} + x_t, elementwise (HGRN)",
    "https://arxiv.org/abs/2311.04823",
    &["x", "g", "initial_state"]
);
info!(
    CUMSUM,
    "cumsum",
    "sums along time, of sequences or chunks, forwards or backwards",
    "https://arxiv.org/abs/2312.06635",
    &["x"]
);
info!(
    LOGCUMSUMEXP,
    "logcumsumexp",
    "z_t = ln sum_{s <= t} e^{x_s}, forwards or backwards",
    "https://arxiv.org/abs/2405.21022",
    &["x", "initial_state"]
);
info!(
    SELECTIVE_SCAN,
    "selective_scan",
    "h_t = e^{dt_t A} h_{t-1} + dt_t u_t B_t; y_t = (C_t h_t + D u_t) silu(z_t) (Mamba)",
    "https://arxiv.org/abs/2312.00752",
    &["u", "delta", "a", "b", "c", "d", "z", "delta_bias", "initial_state"]
);

/// The sequences of a `[B, T, D]` call: boundaries of the flattened tokens, and the width D.
fn sequences(op: &'static str, x: &Tensor, seqs: Option<&PackedSeqs>) -> Result<(PackedSeqs, [usize; 3])> {
    let dims = x.dims_n::<3>(op, "x")?;
    if !x.dtype().is_float() {
        return Err(Error::dtype(op, "x", x.dtype(), "a float type"));
    }
    Ok((PackedSeqs::resolve(op, seqs, dims[0], dims[1])?, dims))
}

/// The tensor as rows `[tokens, D]` of the type it is computed in, without gaps.
fn rows(x: &Tensor) -> Result<Tensor> {
    let d = x.dims().last().copied().unwrap_or(0);
    let tokens = x.dims()[..x.rank() - 1].iter().product();
    x.to_dtype(x.dtype().accumulator())?.contiguous()?.reshape(&[tokens, d])
}

/// Indices on the device of `like`.
fn index(values: Vec<i64>, like: &Tensor) -> Result<Tensor> {
    let n = values.len();
    kept(&Tensor::from_vec(values, &[n])?, &like.device())
}

/// The row before each token, `[tokens, D]`: of `h` `[tokens, D]` inside a sequence, of `first` `[N, D]` at its start.
fn before(h: &Tensor, first: &Tensor, seqs: &PackedSeqs) -> Result<Tensor> {
    let n = seqs.len() as i64;
    let from = |(row, r): (usize, std::ops::Range<usize>)| {
        let start = r.start;
        r.map(move |t| if t == start { row as i64 } else { n + t as i64 - 1 })
    };
    let places = seqs.ranges().enumerate().flat_map(from).collect();
    Tensor::cat(&[first, h], 0)?.index_select(&index(places, h)?)
}

/// The row of `h` at each sequence's first or last token, `[N, D]`; of `none` where it has no token.
fn edge(h: &Tensor, none: &Tensor, seqs: &PackedSeqs, first: bool) -> Result<Tensor> {
    let n = seqs.len();
    let at = |(row, r): (usize, std::ops::Range<usize>)| match r.is_empty() {
        true => row as i64,
        false => (n + if first { r.start } else { r.end - 1 }) as i64,
    };
    let places = seqs.ranges().enumerate().map(at).collect();
    Tensor::cat(&[none, h], 0)?.index_select(&index(places, h)?)
}

/// Zeros `[N, D]`, or what was given, in the type it is computed in.
fn start(op: &'static str, first: Option<&Tensor>, dims: &[usize], like: &Tensor) -> Result<Tensor> {
    let dtype = like.dtype().accumulator();
    let Some(first) = first else { return Tensor::zeros(dims, dtype, &like.device()) };
    if first.device() != like.device() {
        return Err(Error::DeviceMismatch { op, a: like.device(), b: first.device() });
    }
    if first.dims() != dims {
        return Err(Error::shape(op, "initial_state", first.dims(), format!("{dims:?}, a row a sequence")));
    }
    if !first.dtype().is_float() || (first.dtype() == DType::F64) != (like.dtype() == DType::F64) {
        return Err(Error::dtype(op, "initial_state", first.dtype(), dtype.to_string()));
    }
    first.to_dtype(dtype)?.contiguous()
}

/// Whether the kernels of the CPU run; tests send their calls the way of other devices.
fn on_cpu(x: &Tensor) -> bool {
    x.device() == Device::Cpu && !crate::composed::forced()
}
