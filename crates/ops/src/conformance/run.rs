//! Running one case: variables from arrays, the call, the gradients, everything back as f64.

use std::collections::BTreeMap;

use flashlin_tensor::{DType, Device, Tensor, Var};

use super::SequenceOp;
use super::case::{Arrays, Case, Fill, Input, round};
use crate::{Error, Result, StateLayout};

/// The variables of a call by name; the initial state is `initial_state`, in the case's layout.
#[derive(Clone, Debug, Default)]
pub struct Vars(pub BTreeMap<&'static str, Var>);

impl Vars {
    /// The variable, or None when the case has no such input.
    pub fn find(&self, name: &str) -> Option<&Var> {
        self.0.get(name)
    }

    /// The variable.
    ///
    /// # Panics
    /// When the operator's own `inputs` did not make it.
    pub fn get(&self, name: &str) -> &Var {
        self.find(name).unwrap_or_else(|| panic!("the operator's inputs() makes no `{name}`"))
    }
}

/// What a call returns.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// Output by token.
    pub o: Var,
    /// Final state in the case's layout, where the operator has one.
    pub state: Option<Var>,
}

/// Results in f64: states and their gradients in KV order.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Output by token.
    pub o: Vec<f64>,
    /// Final state; empty when the operator has none.
    pub state: Vec<f64>,
    /// Gradient by input name.
    pub grads: BTreeMap<&'static str, Vec<f64>>,
}

/// Deviations from contiguous, fully tracked inputs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How<'a> {
    /// Token inputs become slices of one wide row, and the state a slice of a wider one.
    pub views: bool,
    /// Track this input alone.
    pub only: Option<&'a str>,
    /// Where the inputs of a module lie (a case of a sequence operator says it itself).
    pub device: Device,
}

/// The random inputs of a case, with an initial state where it has one.
pub(super) fn all_inputs(op: &dyn SequenceOp, case: &Case) -> (Vec<Input>, Arrays) {
    let mut inputs = op.inputs(case);
    if case.initial && !op.layouts().is_empty() {
        inputs.push(Input::shared(case, "initial_state", &case.state_dims(), Fill::Normal(1.0)));
    }
    let arrays = Arrays(inputs.iter().map(|i| (i.name, i.values.clone())).collect());
    (inputs, arrays)
}

/// Random weights of output and final state in the loss, non-zero and exact in their dtypes.
pub(super) fn loss_weights(case: &Case, o: usize, state: usize) -> (Vec<f64>, Vec<f64>) {
    let draw = |name, n, dtype| away_from_zero(case.random(name, n, Fill::Normal(1.0), DType::F64), dtype);
    (draw("loss weights of o", o, case.dtype), draw("loss weights of the state", state, case.accumulator()))
}

/// Numbers moved away from zero by a quarter, rounded to `dtype`.
pub(super) fn away_from_zero(x: Vec<f64>, dtype: DType) -> Vec<f64> {
    x.into_iter().map(|x| round(if x < 0.0 { x - 0.25 } else { x + 0.25 }, dtype)).collect()
}

/// Swaps the last two dimensions of `[.., rows, cols]`.
pub(super) fn turned(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    if rows * cols == 0 {
        return Vec::new();
    }
    let one = |m: &[f64]| (0..rows * cols).map(|i| m[i % rows * cols + i / rows]).collect::<Vec<_>>();
    x.chunks(rows * cols).flat_map(one).collect()
}

pub(super) fn tensor(values: &[f64], dims: &[usize], dtype: DType) -> Result<Tensor> {
    Tensor::from_slice(values, dims)?.to_dtype(dtype)
}

/// `values` on a device, as a slice of a tensor whose last dimension is wider by `pad`, surrounded by NaN.
pub(super) fn with_gaps(values: &[f64], dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let last = dims.len() - 1;
    let mut edge = dims.to_vec();
    edge[last] = 3;
    let edge = Tensor::full(f64::NAN, &edge, dtype, &Device::Cpu)?;
    let inner = tensor(values, dims, dtype)?;
    Tensor::cat(&[&edge, &inner, &edge], last)?.to_device(device)?.narrow(last, 3, dims[last])
}

/// Token inputs of one dtype as slices of one `[B, T, width]` row, like those of a fused projection.
fn fused(inputs: &[&Input], device: &Device) -> Result<Vec<Tensor>> {
    let width = |i: &Input| i.dims[2..].iter().product::<usize>();
    let flat = |i: &Input| tensor(&i.values, &[i.dims[0], i.dims[1], width(i)], i.dtype)?.to_device(device);
    let parts = inputs.iter().map(|i| flat(i)).collect::<Result<Vec<_>>>()?;
    let all = Tensor::cat(&parts.iter().collect::<Vec<_>>(), 2)?;
    let mut start = 0;
    let mut views = Vec::new();
    for i in inputs {
        views.push(all.narrow(2, start, width(i))?.reshape(&i.dims)?);
        start += width(i);
    }
    Ok(views)
}

fn variables(case: &Case, inputs: &[Input], how: How) -> Result<Vars> {
    let mut vars = Vars::default();
    let track = |name: &str, t: Tensor| match how.only {
        Some(only) if only != name => Var::constant(t),
        _ => Var::leaf(t),
    };
    for i in inputs {
        let t = if i.name == "initial_state" {
            let [n, hv, k, v] = case.state_dims();
            let (values, dims) = match case.layout {
                StateLayout::KV => (i.values.clone(), [n, hv, k, v]),
                StateLayout::VK => (turned(&i.values, k, v), [n, hv, v, k]),
            };
            if how.views {
                with_gaps(&values, &dims, i.dtype, &case.device)?
            } else {
                tensor(&values, &dims, i.dtype)?.to_device(&case.device)?
            }
        } else {
            tensor(&i.values, &i.dims, i.dtype)?.to_device(&case.device)?
        };
        vars.0.insert(i.name, track(i.name, t));
    }
    if how.views {
        for dtype in [case.dtype, case.accumulator()] {
            let same = |i: &&Input| i.role == super::Role::Token && i.dtype == dtype;
            let group: Vec<&Input> = inputs.iter().filter(same).collect();
            if group.is_empty() {
                continue;
            }
            for (i, t) in group.iter().zip(fused(&group, &case.device)?) {
                vars.0.insert(i.name, track(i.name, t));
            }
        }
    }
    Ok(vars)
}

fn to_kv(case: &Case, x: &Tensor) -> Result<Vec<f64>> {
    let values = x.to_f64_vec()?;
    Ok(match case.layout {
        StateLayout::KV => values,
        StateLayout::VK => turned(&values, case.shape.v, case.shape.k),
    })
}

/// Runs a case and its gradients; contiguous inputs, all tracked.
///
/// # Errors
/// What the operator reports.
pub fn execute(op: &dyn SequenceOp, case: &Case) -> Result<Outcome> {
    execute_as(op, case, How::default())
}

pub(super) fn execute_as(op: &dyn SequenceOp, case: &Case, how: How) -> Result<Outcome> {
    let (inputs, _) = all_inputs(op, case);
    let vars = variables(case, &inputs, how)?;
    let out = op.run(case, &vars)?;
    let state_dims = out.state.as_ref().map(|s| s.dims().to_vec());
    let state_len = state_dims.iter().flatten().product::<usize>() * usize::from(state_dims.is_some());
    let (w_o, w_s) = loss_weights(case, out.o.tensor().numel(), state_len);
    let root = |w: &[f64], of: &Var| tensor(w, of.dims(), of.dtype())?.to_device(&of.device());
    let mut roots = vec![(&out.o, root(&w_o, &out.o)?)];
    if let Some(state) = &out.state {
        let w = match case.layout {
            StateLayout::KV => w_s,
            StateLayout::VK => turned(&w_s, case.shape.k, case.shape.v),
        };
        roots.push((state, root(&w, state)?));
    }
    let grads = Var::backward_with(roots)?;
    let mut outcome = Outcome {
        o: out.o.tensor().to_f64_vec()?,
        state: out.state.as_ref().map_or(Ok(Vec::new()), |s| to_kv(case, s.tensor()))?,
        grads: BTreeMap::new(),
    };
    for (&name, var) in vars.0.iter().filter(|(n, _)| how.only.is_none_or(|o| o == **n)) {
        let grad = grads.get(var).ok_or_else(|| {
            Error::invalid("conformance", "gradient", format!("of `{name}` is missing: nothing flowed back"))
        })?;
        let values = if name == "initial_state" { to_kv(case, grad)? } else { grad.to_f64_vec()? };
        outcome.grads.insert(name, values);
    }
    Ok(outcome)
}

/// The reference's results for a case.
pub(super) fn expected(op: &dyn SequenceOp, case: &Case) -> Outcome {
    let (_, arrays) = all_inputs(op, case);
    let state = if op.layouts().is_empty() { 0 } else { case.state_dims().iter().product() };
    // The output is [B, T, HV, V] for every operator of the suite.
    let o = case.b * case.t * case.shape.hv * case.shape.v;
    let (w_o, w_s) = loss_weights(case, o, state);
    op.reference(case, &arrays, &w_o, &w_s)
}
