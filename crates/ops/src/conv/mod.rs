#![doc = include_str!("README.md")]

pub(crate) mod conform;
mod cpu;
mod cuda;
pub mod reference;
mod step;
#[cfg(test)]
mod tests;

use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Error, Result, Tensor, Var};
pub use step::{ConvStep, conv_step, short_conv_on, short_convs_on};

use crate::{
    OpInfo, PackedSeqs,
    activation::Activation,
    rows::{check_dims, input, tensor_of},
};

/// Registry entry of [`short_conv`].
pub static SHORT_CONV: OpInfo = OpInfo {
    name: "short_conv",
    family: "conv",
    summary: "y[t] = act(sum_w weight[w] x[t - W + 1 + w] + bias) per channel, with a state of the last W inputs",
    source: "arXiv:2302.10866, arXiv:2312.00752",
    modes: &[],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["x", "weight", "bias", "residual", "initial_state"],
};

const OP: &str = "short_conv";

/// Arguments of [`short_conv`]; shapes and dtypes are in the module's table.
#[derive(Clone, Copy, Debug)]
pub struct ConvArgs<'a> {
    /// `[B, T, D]`
    pub x: &'a Var,
    /// `[D, 1, W]` or `[D, W]`
    pub weight: &'a Var,
    /// `[D]`
    pub bias: Option<&'a Var>,
    /// None or [`Activation::Silu`]; [`ConvArgs::new`] has silu
    pub activation: Option<Activation>,
    /// Shape of `x`, added after the activation
    pub residual: Option<&'a Var>,
    /// `[N, D, W]`, newest input last
    pub initial_state: Option<&'a Var>,
    /// Boundaries of packed sequences (B = 1)
    pub seqs: Option<&'a PackedSeqs>,
    /// Return the state after the last token of every sequence
    pub final_state: bool,
}

impl<'a> ConvArgs<'a> {
    /// With silu, and nothing optional.
    pub fn new(x: &'a Var, weight: &'a Var) -> Self {
        ConvArgs {
            x,
            weight,
            bias: None,
            activation: Some(Activation::Silu),
            residual: None,
            initial_state: None,
            seqs: None,
            final_state: false,
        }
    }
}

/// What [`short_conv`] returns.
#[derive(Clone, Debug)]
pub struct ConvOutput {
    /// Shape and dtype of `x`
    pub y: Var,
    /// `[N, D, W]`: the last W inputs of every sequence, where they were asked for
    pub final_state: Option<Var>,
}

/// The tensors of one call and what is known about them.
#[derive(Clone)]
struct Call {
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
    state: Option<Tensor>,
    seqs: PackedSeqs,
    silu: bool,
    channels: usize,
    taps: usize,
}

/// Number of channels and taps of a `[D, 1, W]` or `[D, W]` weight.
fn weight_dims(weight: &Tensor) -> Result<(usize, usize)> {
    match *weight.dims() {
        [d, 1, w] | [d, w] if w > 0 => Ok((d, w)),
        _ => Err(Error::shape(OP, "weight", weight.dims(), "[D, 1, W] or [D, W] with W >= 1")),
    }
}

fn is_silu(activation: Option<Activation>) -> Result<bool> {
    match activation {
        None => Ok(false),
        Some(Activation::Silu) => Ok(true),
        Some(other) => Err(Error::unsupported(OP, format!("activation `{other}`"), "none, silu (swish)")),
    }
}

/// Short causal depthwise convolution; the module's documentation has the formula.
///
/// # Errors
/// When shapes do not fit, packed boundaries do not match, a dtype is no float, or the activation is not served.
pub fn short_conv(args: &ConvArgs) -> Result<ConvOutput> {
    let call = check(args)?;
    let (y, last) = match args.x.device() {
        Device::Cpu => cpu::forward(&call, args.final_state)?,
        _ => cuda::forward(&call, args.final_state)?,
    };
    let again = call.clone();
    let absent = args.x.detach();
    let inputs = [Some(args.x), Some(args.weight), args.bias, args.residual, args.initial_state];
    let inputs = inputs.map(|v| v.unwrap_or(&absent));
    let outputs = std::iter::once(y).chain(last).collect();
    let mut outputs = Var::from_op(OP, &inputs, outputs, || -> Box<dyn Backward> {
        Box::new(move |ctx: &mut BackwardCtx<'_>, mut grads: Vec<Option<Tensor>>| {
            let dy = ctx.or_zeros(0, &mut grads)?;
            let dlast = grads.get_mut(1).and_then(Option::take);
            let wants = std::array::from_fn(|i| ctx.needs(i));
            match call.x.device() {
                Device::Cpu => cpu::backward(&call, &dy, dlast, wants),
                _ => cuda::backward(&call, &dy, dlast, wants),
            }
        })
    })
    .into_iter();
    match (outputs.next(), outputs.next()) {
        (Some(y), final_state) => {
            let y = y.made_by(move || Ok(cuda::forward(&again, false)?.0));
            Ok(ConvOutput { y, final_state })
        }
        (None, _) => Err(Error::invalid(OP, "x", "gave no output")),
    }
}

fn check(args: &ConvArgs) -> Result<Call> {
    let [batch, len, channels] = args.x.tensor().dims_n::<3>(OP, "x")?;
    let (d, taps) = weight_dims(args.weight.tensor())?;
    if d != channels {
        let expected = format!("[{channels}, 1, W] or [{channels}, W] as x has {channels} channels");
        return Err(Error::shape(OP, "weight", args.weight.dims(), expected));
    }
    let seqs = PackedSeqs::resolve(OP, args.seqs, batch, len)?;
    args.bias.map_or(Ok(()), |b| check_dims(OP, "bias", b.tensor(), &[channels]))?;
    args.residual.map_or(Ok(()), |r| check_dims(OP, "residual", r.tensor(), args.x.dims()))?;
    let state_dims = [seqs.len(), channels, taps];
    args.initial_state.map_or(Ok(()), |s| check_dims(OP, "initial_state", s.tensor(), &state_dims))?;
    let rows = |arg, v: Option<&Var>| v.map(|v| input(OP, arg, v.tensor())).transpose();
    Ok(Call {
        x: input(OP, "x", args.x.tensor())?,
        weight: args.weight.tensor().clone(),
        bias: tensor_of(args.bias),
        residual: rows("residual", args.residual)?,
        state: args.initial_state.map(|s| s.tensor().contiguous()).transpose()?,
        seqs,
        silu: is_silu(args.activation)?,
        channels,
        taps,
    })
}
