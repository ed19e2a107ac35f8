#![doc = include_str!("README.md")]

pub(crate) mod conform;
mod cpu;
mod cuda;
mod forms;
pub mod reference;
#[cfg(test)]
mod tests;

use flashlin_tensor::{Backward, BackwardCtx, DType, Device, Error, Result, Tensor, Var};
pub use forms::{
    Gate, group_norm, l2_norm, layer_norm, rms_norm, rms_norm_gated, rms_norm_gated_grouped, rms_norm_linear,
};

use crate::{
    OpInfo,
    activation::Activation,
    rows::{check_dims, input, tensor_of},
};

/// Registry entry of [`norm`] and the functions built on it.
pub static NORM: OpInfo = OpInfo {
    name: "norm",
    family: "norm",
    summary: "RMS, layer and group norm over the last dimension, with residual add, gate or linear; l2norm",
    source: "RMSNorm: arXiv:1910.07467; LayerNorm: arXiv:1607.06450; GroupNorm: arXiv:1803.08494",
    modes: &[],
    dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
    devices: &["cpu", "cuda"],
    grads: &["x", "weight", "bias", "residual", "gate"],
};

/// Which statistic divides the row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormKind {
    /// x / sqrt(mean x^2 + eps)
    #[default]
    Rms,
    /// (x - mean x) / sqrt(var x + eps)
    Layer,
    /// x / sqrt(sum x^2 + eps)
    L2,
}

/// Everything a norm can be given; [`NormArgs::new`] has the defaults, the functions of this module the usual forms.
#[derive(Clone, Copy, Debug)]
pub struct NormArgs<'a> {
    /// `[.., D]`: normalised over D (strided views are read in place)
    pub x: &'a Var,
    /// `[D]` in any float dtype; None is 1
    pub weight: Option<&'a Var>,
    /// `[D]` in any float dtype; None is 0
    pub bias: Option<&'a Var>,
    /// Shape of `x`, any float dtype: x + residual is normalised
    pub residual: Option<&'a Var>,
    /// Shape of `x`, any float dtype, multiplied as `order` says
    pub gate: Option<Gate<'a>>,
    /// Statistic; [`NormKind::Rms`]
    pub kind: NormKind,
    /// Equal parts of D with statistics of their own; 1
    pub groups: usize,
    /// Added under the root; 1e-5
    pub eps: f64,
    /// Give x + residual back as well, in the residual's dtype; false
    pub prenorm: bool,
    /// Without a residual, start the residual stream in f32 (half-precision inputs); false
    pub residual_in_fp32: bool,
}

impl<'a> NormArgs<'a> {
    /// RMS norm of `x` without weight, eps 1e-5.
    pub fn new(x: &'a Var) -> Self {
        NormArgs {
            x,
            weight: None,
            bias: None,
            residual: None,
            gate: None,
            kind: NormKind::Rms,
            groups: 1,
            eps: 1e-5,
            prenorm: false,
            residual_in_fp32: false,
        }
    }
}

impl NormArgs<'_> {
    /// The differentiable inputs, in the order of their gradients.
    fn inputs(&self) -> [Option<&Var>; 5] {
        [Some(self.x), self.weight, self.bias, self.residual, self.gate.map(|g| g.value)]
    }

    fn any_tracked(&self) -> bool {
        self.inputs().iter().flatten().any(|v| v.is_tracked())
    }
}

/// What [`norm`] returns.
#[derive(Clone, Debug)]
pub struct NormOutput {
    /// Shape and dtype of `x`
    pub y: Var,
    /// x + residual, where `prenorm` asked for it
    pub residual: Option<Var>,
}

/// What the kernels need beside the data.
#[derive(Clone, Copy, Debug)]
struct Plan {
    kind: NormKind,
    groups: usize,
    eps: f64,
    /// Activation of the gate, and whether the gate multiplies before the norm.
    gate: Option<(Activation, bool)>,
    width: usize,
}

/// The tensors of one call, rows contiguous.
#[derive(Clone)]
struct Inputs {
    x: Tensor,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
    gate: Option<Tensor>,
}

/// Normalises over the last dimension; see the module's table for the forms.
///
/// # Errors
/// When shapes do not fit, D is not a multiple of `groups`, eps is negative, a dtype is no float, or the gate's
/// activation is not silu or sigmoid.
pub fn norm(args: &NormArgs) -> Result<NormOutput> {
    if args.residual.is_none() && args.residual_in_fp32 && args.x.dtype().is_half() {
        // The stream starts here: the cast is its first element, and the norm reads it.
        let stream = args.x.to_dtype(DType::F32)?;
        let y = norm(&NormArgs { x: &stream, residual_in_fp32: false, prenorm: false, ..*args })?.y;
        let y = y.to_dtype(args.x.dtype())?;
        return Ok(NormOutput { y, residual: args.prenorm.then_some(stream) });
    }
    let (plan, inputs) = check(args)?;
    let keep = args.residual.is_some() && (args.prenorm || args.any_tracked());
    let (y, sum, saved) = match inputs.x.device() {
        Device::Cpu => {
            let (y, sum) = cpu::forward(&plan, &inputs, keep)?;
            (y, sum, None)
        }
        _ => cuda::forward(&plan, &inputs)?,
    };
    if args.residual.is_none() {
        let normed = inputs.x.clone();
        let y = record(args, plan, inputs, vec![y], (normed, saved)).swap_remove(0);
        return Ok(NormOutput { y, residual: args.prenorm.then(|| args.x.clone()) });
    }
    let Some(sum) = sum.filter(|_| keep) else {
        return Ok(NormOutput { y: Var::constant(y), residual: None });
    };
    // The reverse reads the sum; of x and the residual it asks for type and shape alone, and holding them would cost memory.
    let x = if inputs.x.dtype() == sum.dtype() { sum.clone() } else { shape_of(&inputs.x)? };
    let inputs = Inputs { x, residual: Some(sum.clone()), ..inputs };
    let mut outputs = record(args, plan, inputs, vec![y, sum.clone()], (sum, saved));
    let residual = outputs.pop().filter(|_| args.prenorm);
    Ok(NormOutput { y: outputs.swap_remove(0), residual })
}

fn check(args: &NormArgs) -> Result<(Plan, Inputs)> {
    const OP: &str = "norm";
    let Some(&width) = args.x.dims().last() else {
        return Err(Error::shape(OP, "x", args.x.dims(), "at least one dimension"));
    };
    if args.groups == 0 || !width.is_multiple_of(args.groups) {
        let why = format!("is {}, expected a divisor of the last dimension {width}", args.groups);
        return Err(Error::invalid(OP, "groups", why));
    }
    if args.eps.is_nan() || args.eps < 0.0 {
        return Err(Error::invalid(OP, "eps", format!("is {}, expected a number >= 0", args.eps)));
    }
    for (arg, v) in [("weight", args.weight), ("bias", args.bias)] {
        v.map_or(Ok(()), |v| check_dims(OP, arg, v.tensor(), &[width]))?;
    }
    for (arg, v) in [("residual", args.residual), ("gate", args.gate.map(|g| g.value))] {
        v.map_or(Ok(()), |v| check_dims(OP, arg, v.tensor(), args.x.dims()))?;
    }
    if let Some(act) = args.gate.map(|g| g.activation)
        && !matches!(act, Activation::Silu | Activation::Sigmoid)
    {
        return Err(Error::unsupported(OP, format!("a gate activation `{act}`"), "silu (swish), sigmoid"));
    }
    let rows = |arg, v: Option<&Var>| v.map(|v| input(OP, arg, v.tensor())).transpose();
    let inputs = Inputs {
        x: input(OP, "x", args.x.tensor())?,
        weight: tensor_of(args.weight),
        bias: tensor_of(args.bias),
        residual: rows("residual", args.residual)?,
        gate: rows("gate", args.gate.map(|g| g.value))?,
    };
    let gate = args.gate.map(|g| (g.activation, g.before_norm));
    Ok((Plan { kind: args.kind, groups: args.groups, eps: args.eps, gate, width }, inputs))
}

/// A tensor of this shape and type, one element repeated.
fn shape_of(x: &Tensor) -> Result<Tensor> {
    Tensor::zeros(&[], x.dtype(), &x.device())?.expand(x.dims())
}

/// Records the call; `normed` is what the statistics were taken of (x, or x + residual), with what a GPU left of them.
fn record(
    args: &NormArgs,
    plan: Plan,
    inputs: Inputs,
    outputs: Vec<Tensor>,
    (normed, saved): (Tensor, cuda::Saved),
) -> Vec<Var> {
    let absent = Var::constant(normed.clone());
    let all = args.inputs().map(|v| v.unwrap_or(&absent));
    // Without the sum that the first pass made.
    let again = Inputs { x: normed.clone(), residual: None, ..inputs.clone() };
    let same_type = again.x.dtype() == outputs[0].dtype();
    let mut outputs = Var::from_op("norm", &all, outputs, || -> Box<dyn Backward> {
        Box::new(move |ctx: &mut BackwardCtx<'_>, mut grads: Vec<Option<Tensor>>| {
            let dy = ctx.or_zeros(0, &mut grads)?;
            let dsum = grads.get_mut(1).and_then(Option::take);
            let wants = std::array::from_fn(|i| ctx.needs(i));
            match normed.device() {
                Device::Cpu => cpu::backward(&plan, &inputs, &normed, dy, dsum, wants),
                _ => cuda::backward(&plan, &inputs, (&normed, &saved), &dy, dsum.as_ref(), wants),
            }
        })
    });
    if same_type {
        outputs[0] = outputs[0].clone().made_by(move || Ok(cuda::forward(&plan, &again)?.0));
    }
    outputs
}
