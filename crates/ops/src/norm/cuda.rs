//! Norms on a GPU (kernels in `tiles/src/norm`). Rows of one half-precision type whose width has a tile (a multiple of 8, one group, the gate last) are
//! read once and stay in registers; everything else goes through a kernel that takes any width, kind, gate and group in passes over the row, in
//! the rows' own type where all have one, else in f32. Gradients of weight and bias are parts, summed in a fixed order.

use flashlin_tensor::{
    DType, Error, Result, Tensor,
    cuda::{Arg, Launcher, plan},
};

use super::{Inputs, NormKind, Plan};
use crate::activation::Activation;

const OP: &str = "norm";
/// Widths up to here go to the narrow kernel of any width.
const NARROW: usize = 256;

/// What a forward pass leaves for its reverse besides x + residual: the rows' statistics where the kernel with a tile made them.
pub(super) type Saved = Option<Stats>;

/// 1 / root and mean of every row.
#[derive(Clone, Debug)]
pub(super) struct Stats {
    rstd: Tensor,
    mean: Tensor,
}

/// The arrays of a call in one type, dense; parameters in theirs.
struct Arrays {
    on: Launcher,
    dtype: DType,
    kind: &'static str,
    rows: usize,
    width: usize,
    x: Tensor,
    residual: Option<Tensor>,
    gate: Option<Tensor>,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

impl Arrays {
    fn of(
        plan: &Plan,
        x: &Tensor,
        residual: Option<&Tensor>,
        inputs: &Inputs,
        params: Params,
    ) -> Result<Arrays> {
        let on = Launcher::on(OP, x)?;
        let named = [("x", Some(x)), ("residual", residual), ("gate", inputs.gate.as_ref())];
        for (arg, t) in
            named.into_iter().chain([("weight", inputs.weight.as_ref()), ("bias", inputs.bias.as_ref())])
        {
            t.map(|t| on.float(arg, t.dtype())).transpose()?;
        }
        let same = |t: Option<&Tensor>| t.is_none_or(|t| t.dtype() == inputs.x.dtype());
        let one = same(Some(x)) && same(residual) && same(inputs.gate.as_ref());
        let dtype = if one { inputs.x.dtype() } else { DType::F32 };
        let params = if params == Params::OfRows { dtype } else { DType::F32 };
        on.int(x.numel())?;
        Ok(Arrays {
            kind: on.float("x", dtype)?,
            dtype,
            rows: x.numel() / plan.width.max(1),
            width: plan.width,
            x: on.dense(x, dtype)?,
            residual: on.dense_if(residual, dtype)?,
            gate: on.dense_if(inputs.gate.as_ref(), dtype)?,
            weight: on.dense_if(inputs.weight.as_ref(), params)?,
            bias: on.dense_if(inputs.bias.as_ref(), params)?,
            on,
        })
    }

    fn like(&self, dtype: DType) -> Result<Tensor> {
        Tensor::empty(self.x.dims(), dtype, &self.x.device())
    }

    /// The address of an array, of x where it is absent: kernels with tiles describe every array to the memory unit, read or not.
    fn some(&self, t: Option<&Tensor>) -> Result<Arg> {
        self.on.at(t.unwrap_or(&self.x))
    }

    fn column(&self) -> Result<Tensor> {
        Tensor::empty(&[self.rows], DType::F32, &self.x.device())
    }
}

/// In which type the kernels want weight and bias.
#[derive(Clone, Copy, PartialEq)]
enum Params {
    OfRows,
    F32,
}

fn flag<T>(x: Option<&T>) -> Arg {
    Arg::I32(i32::from(x.is_some()))
}

/// The tiles' code of the gate: 0 none, 1 silu, 2 sigmoid.
fn last_gate(plan: &Plan) -> i64 {
    plan.gate.map_or(0, |(act, _)| if act == Activation::Silu { 1 } else { 2 })
}

/// Whether a kernel with a tile serves the call: one half-precision type throughout, and a shape that the bundle has.
fn has_tile(plan: &Plan, inputs: &Inputs) -> Result<bool> {
    let x = &inputs.x;
    let all = [&inputs.weight, &inputs.bias, &inputs.residual, &inputs.gate];
    let one = all.into_iter().flatten().all(|t| t.dtype() == x.dtype());
    let form = plan.groups == 1 && plan.kind != NormKind::L2 && !plan.gate.is_some_and(|(_, first)| first);
    if !(one && form && x.numel() > 0 && plan.width.is_multiple_of(8)) {
        return Ok(false);
    }
    let on = Launcher::on(OP, x)?;
    let generics = [
        ("DT", plan.width.next_power_of_two() as i64),
        ("MEAN", i64::from(plan.kind == NormKind::Layer)),
        ("GATE", last_gate(plan)),
    ];
    let kind = on.float("x", x.dtype())?;
    Ok(["norm_fwd", "norm_bwd"].iter().all(|name| on.find(name, kind, &generics).is_ok()))
}

/// y, x + residual in the residual's dtype where there is one, and what the reverse reads.
pub(super) fn forward(plan: &Plan, inputs: &Inputs) -> Result<(Tensor, Option<Tensor>, Saved)> {
    if has_tile(plan, inputs)? { tile_forward(plan, inputs) } else { any_forward(plan, inputs) }
}

/// What plans may use, without asking the driver for memory: a norm's parts are small.
fn machine(on: &Launcher) -> Result<plan::Machine<'static>> {
    on.machine_with(usize::MAX)
}

fn tile_forward(plan: &Plan, inputs: &Inputs) -> Result<(Tensor, Option<Tensor>, Saved)> {
    let a = Arrays::of(plan, &inputs.x, inputs.residual.as_ref(), inputs, Params::OfRows)?;
    let (on, layer) = (&a.on, plan.kind == NormKind::Layer);
    let launch = plan::norm_forward(&machine(on)?, a.rows, a.width, a.kind, layer, last_gate(plan))
        .map_err(Error::Kernel)?;
    let y = a.like(a.dtype)?;
    let sum = a.residual.as_ref().map(|_| a.like(a.dtype)).transpose()?;
    let stats = Stats { rstd: a.column()?, mean: a.column()? };
    let mut args = vec![on.at(&a.x)?, a.some(a.residual.as_ref())?, a.some(a.gate.as_ref())?];
    args.extend([a.some(a.weight.as_ref())?, a.some(a.bias.as_ref())?, on.at(&y)?, a.some(sum.as_ref())?]);
    args.extend([on.at(&stats.rstd)?, on.at(&stats.mean)?, on.int(a.rows)?, on.int(a.width)?]);
    args.extend([flag(a.residual.as_ref()), flag(a.weight.as_ref()), flag(a.bias.as_ref())]);
    args.push(Arg::F32(plan.eps as f32));
    for l in &launch.launches {
        // SAFETY: all arrays are dense with rows of the plan's width, parameters have one row, statistics a number a row.
        unsafe { on.launch(&l.kernel, l.grid.map(|n| n as usize), &args) }?;
    }
    Ok((y, sum, Some(stats)))
}

/// Kind and gate as the kernels of any width know them.
fn codes(plan: &Plan) -> [Arg; 2] {
    let kind = match plan.kind {
        NormKind::Rms => 0,
        NormKind::Layer => 1,
        NormKind::L2 => 2,
    };
    let gate = last_gate(plan) as i32 + if plan.gate.is_some_and(|(_, first)| first) { 2 } else { 0 };
    [Arg::I32(kind), Arg::I32(gate)]
}

/// The kernel of any width for groups of this size.
fn any(a: &Arrays, name: &str, size: usize) -> Result<String> {
    let lanes = if size <= NARROW { 128 } else { 1024 };
    Ok(a.on.find(name, a.kind, &[("N", lanes)])?.name.clone())
}

fn any_forward(plan: &Plan, inputs: &Inputs) -> Result<(Tensor, Option<Tensor>, Saved)> {
    let a = Arrays::of(plan, &inputs.x, inputs.residual.as_ref(), inputs, Params::F32)?;
    let (on, size) = (&a.on, plan.width / plan.groups);
    let y = a.like(a.dtype)?;
    let sum = a.residual.as_ref().map(|_| a.like(a.dtype)).transpose()?;
    let mut args = vec![on.at(&a.x)?, a.some(a.residual.as_ref())?, a.some(a.gate.as_ref())?];
    args.extend([a.some(a.weight.as_ref())?, a.some(a.bias.as_ref())?, on.at(&y)?, a.some(sum.as_ref())?]);
    args.extend([on.int(a.width)?, on.int(size)?]);
    args.extend(codes(plan));
    args.extend([flag(a.residual.as_ref()), flag(sum.as_ref())]);
    args.extend([flag(a.weight.as_ref()), flag(a.bias.as_ref()), Arg::F32(plan.eps as f32)]);
    if size > 0 {
        // SAFETY: as in `tile_forward`; parameters are f32.
        unsafe { on.launch(&any(&a, "norm_any_fwd", size)?, [a.rows, plan.groups, 1], &args) }?;
    }
    let sum = match (sum, &inputs.residual) {
        (Some(sum), Some(r)) => Some(sum.to_dtype(r.dtype())?),
        _ => None,
    };
    Ok((y.to_dtype(inputs.x.dtype())?, sum, None))
}

/// Gradients before they are given their inputs' dtypes.
struct Gradients {
    x: Tensor,
    gate: Option<Tensor>,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

/// Gradients of x, weight, bias, residual and gate from those of y and of x + residual; `wants` in that order.
pub(super) fn backward(
    plan: &Plan,
    inputs: &Inputs,
    (normed, saved): (&Tensor, &Saved),
    dy: &Tensor,
    dsum: Option<&Tensor>,
    [want_x, want_w, want_b, want_r, want_g]: [bool; 5],
) -> Result<Vec<Option<Tensor>>> {
    let params = [want_w && inputs.weight.is_some(), want_b && inputs.bias.is_some()];
    let g = match saved {
        Some(stats) => tile_backward(plan, inputs, normed, stats, dy, dsum)?,
        None => any_backward(plan, inputs, normed, dy, dsum, params)?,
    };
    let of = |want: bool, g: Option<Tensor>, like: Option<&Tensor>| match (g, like) {
        (Some(g), Some(t)) if want => g.to_dtype(t.dtype()).map(Some),
        _ => Ok(None),
    };
    // Sums of half-precision parameters stay in f32, as they are accumulated.
    let sum = |want: bool, g: Option<Tensor>, like: Option<&Tensor>| match (g, like) {
        (Some(g), Some(t)) if want => g.reshape(t.dims()).map(Some),
        _ => Ok(None),
    };
    Ok(vec![
        of(want_x, Some(g.x.clone()), Some(&inputs.x))?,
        sum(want_w, g.weight, inputs.weight.as_ref())?,
        sum(want_b, g.bias, inputs.bias.as_ref())?,
        of(want_r, Some(g.x), inputs.residual.as_ref())?,
        of(want_g, g.gate, inputs.gate.as_ref())?,
    ])
}

fn tile_backward(
    plan: &Plan,
    inputs: &Inputs,
    normed: &Tensor,
    stats: &Stats,
    dy: &Tensor,
    dsum: Option<&Tensor>,
) -> Result<Gradients> {
    let a = Arrays::of(plan, normed, None, inputs, Params::OfRows)?;
    let (on, layer) = (&a.on, plan.kind == NormKind::Layer);
    let (launch, steps) = plan::norm_backward(&machine(on)?, a.rows, a.width, a.kind, layer, last_gate(plan))
        .map_err(Error::Kernel)?;
    let (dy, dsum) = (on.dense(dy, a.dtype)?, on.dense_if(dsum, a.dtype)?);
    let dx = a.like(a.dtype)?;
    let dgate = a.gate.as_ref().map(|_| a.like(a.dtype)).transpose()?;
    let [first, sum, ..] = &launch.launches[..] else {
        return Err(Error::invalid(OP, "x", "gave an empty plan"));
    };
    // A part of the parameters' gradients from each block.
    let part = |there: bool| {
        there
            .then(|| Tensor::empty(&[first.grid[0] as usize, a.width], DType::F32, &a.x.device()))
            .transpose()
    };
    let (dw, db) = (part(a.weight.is_some())?, part(a.bias.is_some())?);
    let mut args = vec![on.at(&a.x)?, a.some(a.gate.as_ref())?];
    args.extend([a.some(a.weight.as_ref())?, a.some(a.bias.as_ref())?, on.at(&dy)?]);
    args.extend([a.some(dsum.as_ref())?, on.at(&stats.rstd)?, on.at(&stats.mean)?, on.at(&dx)?]);
    args.extend([a.some(dgate.as_ref())?, a.some(dw.as_ref())?, a.some(db.as_ref())?]);
    args.extend([on.int(a.rows)?, on.int(a.width)?, on.int(steps)?, flag(dsum.as_ref())]);
    args.extend([flag(a.weight.as_ref()), flag(a.bias.as_ref())]);
    // SAFETY: as in `tile_forward`; the parts have a row for each block of the grid.
    unsafe { on.launch(&first.kernel, first.grid.map(|n| n as usize), &args) }?;
    let add = |parts: Option<Tensor>| parts.map(|p| column_sum(&a, sum, &p)).transpose();
    Ok(Gradients { x: dx, gate: dgate, weight: add(dw)?, bias: add(db)? })
}

/// The sums of the parts, in order.
fn column_sum(a: &Arrays, launch: &plan::Launch, parts: &Tensor) -> Result<Tensor> {
    let on = &a.on;
    let out = Tensor::empty(&[a.width], DType::F32, &a.x.device())?;
    let args = [on.at(parts)?, on.at(&out)?, on.int(parts.dim(0))?, on.int(a.width)?, Arg::I32(0)];
    // SAFETY: both arrays are dense, of the plan's width.
    unsafe { on.launch(&launch.kernel, launch.grid.map(|n| n as usize), &args) }?;
    Ok(out)
}

fn any_backward(
    plan: &Plan,
    inputs: &Inputs,
    normed: &Tensor,
    dy: &Tensor,
    dsum: Option<&Tensor>,
    [want_w, want_b]: [bool; 2],
) -> Result<Gradients> {
    let a = Arrays::of(plan, normed, None, inputs, Params::F32)?;
    let (on, size) = (&a.on, plan.width / plan.groups);
    let (dy, dsum) = (on.dense(dy, a.dtype)?, on.dense_if(dsum, a.dtype)?);
    let dx = a.like(a.dtype)?;
    let dgate = a.gate.as_ref().map(|_| a.like(a.dtype)).transpose()?;
    // Each row's part, whole: the price of any width.
    let part = |wanted: bool| {
        wanted.then(|| Tensor::empty(&[a.rows, a.width], DType::F32, &a.x.device())).transpose()
    };
    let (dw, db) = (part(want_w)?, part(want_b)?);
    let mut args = vec![on.at(&a.x)?, a.some(a.gate.as_ref())?];
    args.extend([a.some(a.weight.as_ref())?, a.some(a.bias.as_ref())?, on.at(&dy)?]);
    args.extend([a.some(dsum.as_ref())?, on.at(&dx)?, a.some(dgate.as_ref())?]);
    args.extend([a.some(dw.as_ref())?, a.some(db.as_ref())?, on.int(a.width)?, on.int(size)?]);
    args.extend(codes(plan));
    args.extend([flag(a.weight.as_ref()), flag(a.bias.as_ref()), flag(dsum.as_ref())]);
    args.extend([flag(dw.as_ref()), flag(db.as_ref()), Arg::F32(plan.eps as f32)]);
    if size > 0 {
        // SAFETY: as in `any_forward`; the parts have a row for each row.
        unsafe { on.launch(&any(&a, "norm_any_bwd", size)?, [a.rows, plan.groups, 1], &args) }?;
    }
    let add = |parts: Option<Tensor>| parts.map(|p| p.sum(&[0], false)).transpose();
    Ok(Gradients { x: dx, gate: dgate, weight: add(dw)?, bias: add(db)? })
}
