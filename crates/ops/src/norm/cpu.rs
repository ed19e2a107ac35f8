//! One row kernel for all norms, forward and backward. A row is read once into L1 and everything happens there;
//! backward recomputes the statistics, which costs less than storing and reading them.

use flashlin_tensor::{
    DType, Real, Result, Tensor,
    cpu::{BLOCK, vectorized},
};
use rayon::prelude::*;

use super::{Inputs, NormKind, Plan};
use crate::{
    activation::{
        Activation,
        functions::{Function, Sigmoid, Silu},
    },
    rows::{Rows, RowsMut, blocks, grad_of, opt_to_real, sum, sum_parts, sum2},
};

/// Rows a task works on: fixed, so that sums over rows do not depend on the number of threads.
fn rows_per_task(width: usize) -> usize {
    (4 * BLOCK / width.max(1)).max(1)
}

/// y and (where kept) x + residual in the residual's dtype.
pub(super) fn forward(plan: &Plan, inputs: &Inputs, keep: bool) -> Result<(Tensor, Option<Tensor>)> {
    let x = &inputs.x;
    let mut y = Tensor::empty(x.dims(), x.dtype(), &x.device())?;
    let mut kept = None;
    if let Some(r) = inputs.residual.as_ref().filter(|_| keep) {
        kept = Some(Tensor::empty(x.dims(), r.dtype(), &x.device())?);
    }
    match x.dtype() {
        DType::F64 => forward_as::<f64>(plan, inputs, &mut y, kept.as_mut())?,
        _ => forward_as::<f32>(plan, inputs, &mut y, kept.as_mut())?,
    }
    Ok((y, kept))
}

/// The inputs as rows of numbers.
struct View<'a, R> {
    x: Rows<'a>,
    residual: Option<Rows<'a>>,
    gate: Option<Rows<'a>>,
    weight: Option<Vec<R>>,
    bias: Option<Vec<R>>,
}

impl<'a, R: Real> View<'a, R> {
    fn new(x: &'a Tensor, residual: Option<&'a Tensor>, inputs: &'a Inputs) -> Result<Self> {
        Ok(View {
            x: Rows::new(x)?,
            residual: residual.map(Rows::new).transpose()?,
            gate: inputs.gate.as_ref().map(Rows::new).transpose()?,
            weight: opt_to_real(inputs.weight.as_ref())?,
            bias: opt_to_real(inputs.bias.as_ref())?,
        })
    }
}

/// Buffers of one task, each a row long.
struct Scratch<R> {
    read: Vec<R>,
    u: Vec<R>,
    gate: Vec<R>,
    slope: Vec<R>,
    a: Vec<R>,
    b: Vec<R>,
}

impl<R: Real> Scratch<R> {
    fn new(n: usize) -> Self {
        let z = || vec![R::ZERO; n];
        Scratch { read: z(), u: z(), gate: z(), slope: z(), a: z(), b: z() }
    }
}

fn forward_as<R: Real>(
    plan: &Plan,
    inputs: &Inputs,
    y: &mut Tensor,
    kept: Option<&mut Tensor>,
) -> Result<()> {
    let view = View::<R>::new(&inputs.x, inputs.residual.as_ref(), inputs)?;
    let (total, width, step) = (y.numel(), plan.width, rows_per_task(plan.width));
    if total == 0 {
        return Ok(());
    }
    let ys = blocks(Some(y), total, step * width)?;
    let sums = blocks(kept, total, step * width)?;
    ys.into_par_iter().zip(sums).enumerate().for_each(|(b, (mut y, mut kept))| {
        let mut s = Scratch::<R>::new(width);
        let rows = b * step..total / width;
        vectorized(
            #[inline(always)]
            || {
                for (i, row) in rows.take(step).enumerate() {
                    load(&view, row, &mut s);
                    if let Some(k) = &mut kept {
                        k.write(i * width, &s.u);
                    }
                    forward_row(plan, &view, row, &mut s);
                    if let Some(y) = &mut y {
                        y.write(i * width, &s.a);
                    }
                }
            },
        );
    });
    Ok(())
}

/// s.u = x + residual
#[inline(always)]
fn load<R: Real>(view: &View<R>, row: usize, s: &mut Scratch<R>) {
    let x = view.x.row(row, &mut s.read);
    s.u.copy_from_slice(x);
    if let Some(r) = &view.residual {
        for (u, &r) in s.u.iter_mut().zip(r.row(row, &mut s.a)) {
            *u += r;
        }
    }
}

/// s.gate = act(g) and, where asked for, s.slope = act'(g).
#[inline(always)]
fn load_gate<R: Real>(act: Activation, rows: &Rows, row: usize, s: &mut Scratch<R>, slope: bool) {
    let g = rows.row(row, &mut s.read);
    match act {
        Activation::Sigmoid => fill::<R, Sigmoid>(g, &mut s.gate, &mut s.slope, slope),
        _ => fill::<R, Silu>(g, &mut s.gate, &mut s.slope, slope),
    }
}

#[inline(always)]
fn fill<R: Real, F: Function>(g: &[R], gate: &mut [R], slope: &mut [R], with_slope: bool) {
    for (o, &g) in gate.iter_mut().zip(g) {
        *o = F::value(g);
    }
    if with_slope {
        for (o, &g) in slope.iter_mut().zip(g) {
            *o = F::slope(g);
        }
    }
}

/// Mean (0 unless a layer norm) and 1 / root of one group.
#[inline(always)]
fn statistics<R: Real>(plan: &Plan, u: &[R]) -> (R, R) {
    let n = R::from_f64(u.len() as f64);
    let eps = R::from_f64(plan.eps);
    match plan.kind {
        NormKind::Rms => (R::ZERO, R::ONE / (sum2(u, u, |a, b| a * b) / n + eps).sqrt()),
        NormKind::L2 => (R::ZERO, R::ONE / (sum2(u, u, |a, b| a * b) + eps).sqrt()),
        NormKind::Layer => {
            let mean = sum(u) / n;
            let var = sum2(u, u, |a, b| (a - mean) * (b - mean)) / n;
            (mean, R::ONE / (var + eps).sqrt())
        }
    }
}

/// Row s.u to output s.a.
#[inline(always)]
fn forward_row<R: Real>(plan: &Plan, view: &View<R>, row: usize, s: &mut Scratch<R>) {
    if let (Some((act, before)), Some(rows)) = (plan.gate, &view.gate) {
        load_gate(act, rows, row, s, false);
        if before {
            s.u.iter_mut().zip(&s.gate).for_each(|(u, &g)| *u *= g);
        }
    }
    let size = plan.width / plan.groups;
    for (u, a) in s.u.chunks_exact(size).zip(s.a.chunks_exact_mut(size)) {
        let (mean, r) = statistics(plan, u);
        for (a, &u) in a.iter_mut().zip(u) {
            *a = (u - mean) * r;
        }
    }
    if let Some(w) = &view.weight {
        s.a.iter_mut().zip(w).for_each(|(a, &w)| *a *= w);
    }
    if let Some(b) = &view.bias {
        s.a.iter_mut().zip(b).for_each(|(a, &b)| *a += b);
    }
    if plan.gate.is_some_and(|(_, before)| !before) {
        s.a.iter_mut().zip(&s.gate).for_each(|(a, &g)| *a *= g);
    }
}

/// Gradients of x, weight, bias, residual and gate from those of y and of x + residual; `wants` in that order.
pub(super) fn backward(
    plan: &Plan,
    inputs: &Inputs,
    normed: &Tensor,
    dy: Tensor,
    dsum: Option<Tensor>,
    wants: [bool; 5],
) -> Result<Vec<Option<Tensor>>> {
    match inputs.x.dtype() {
        DType::F64 => backward_as::<f64>(plan, inputs, normed, dy, dsum, wants),
        _ => backward_as::<f32>(plan, inputs, normed, dy, dsum, wants),
    }
}

fn backward_as<R: Real>(
    plan: &Plan,
    inputs: &Inputs,
    normed: &Tensor,
    dy: Tensor,
    dsum: Option<Tensor>,
    [want_x, want_w, want_b, want_r, want_g]: [bool; 5],
) -> Result<Vec<Option<Tensor>>> {
    let x = &inputs.x;
    let view = View::<R>::new(normed, None, inputs)?;
    let (dy, dsum) = (dy.contiguous()?, dsum.map(|t| t.contiguous()).transpose()?);
    let (dyr, dsr) = (Rows::new(&dy)?, dsum.as_ref().map(Rows::new).transpose()?);
    let (total, width, step) = (x.numel(), plan.width, rows_per_task(plan.width));
    let like = |want: bool, t: Option<&Tensor>| match t {
        Some(t) if want => Tensor::empty(t.dims(), t.dtype(), &t.device()).map(Some),
        _ => Ok(None),
    };
    // x and the residual have one gradient; it is written twice only where their dtypes differ.
    let same = inputs.residual.as_ref().is_some_and(|r| r.dtype() == x.dtype());
    let mut dx = like(want_x || (same && want_r), Some(x))?;
    let mut dr = like(want_r && !same, inputs.residual.as_ref())?;
    let mut dg = like(want_g, inputs.gate.as_ref())?;
    let mut parts = Vec::new();
    if total > 0 {
        let outs = blocks(dx.as_mut(), total, step * width)?
            .into_par_iter()
            .zip(blocks(dr.as_mut(), total, step * width)?)
            .zip(blocks(dg.as_mut(), total, step * width)?);
        let task = |(b, ((dx, dr), dg)): (usize, _)| {
            let rows = (b * step..total / width).take(step);
            let mut sums = (vec![R::ZERO; width], vec![R::ZERO; width]);
            let mut outs = [dx, dr, dg];
            vectorized(
                #[inline(always)]
                || {
                    let mut s = Scratch::<R>::new(width);
                    for (i, row) in rows.enumerate() {
                        backward_row(plan, &view, row, (&dyr, dsr.as_ref()), &mut s, &mut sums);
                        write_row(&mut outs, i * width, &s);
                    }
                },
            );
            sums
        };
        parts = outs.enumerate().map(task).collect::<Vec<_>>();
    }
    let (dw, db): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let sums = |want: bool, parts: &[Vec<R>], like: Option<&Tensor>| {
        like.filter(|_| want).map(|t| grad_of(sum_parts(parts, width), t)).transpose()
    };
    let dw = sums(want_w, &dw, inputs.weight.as_ref())?;
    let db = sums(want_b, &db, inputs.bias.as_ref())?;
    let dr = if same && want_r { dx.clone() } else { dr };
    Ok(vec![dx.filter(|_| want_x), dw, db, dr, dg])
}

/// s.u becomes the gradient of x, s.b that of the gate; weight and bias gradients are added to `sums`.
#[inline(always)]
fn backward_row<R: Real>(
    plan: &Plan,
    view: &View<R>,
    row: usize,
    (dy, dsum): (&Rows, Option<&Rows>),
    s: &mut Scratch<R>,
    (dw, db): &mut (Vec<R>, Vec<R>),
) {
    load(view, row, s);
    let before = plan.gate.is_some_and(|(_, before)| before);
    if let (Some((act, _)), Some(rows)) = (plan.gate, &view.gate) {
        load_gate(act, rows, row, s, true);
        if before {
            // s.b keeps x while s.u becomes x act(g).
            s.b.copy_from_slice(&s.u);
            s.u.iter_mut().zip(&s.gate).for_each(|(u, &g)| *u *= g);
        }
    }
    s.a.copy_from_slice(dy.row(row, &mut s.read));
    let size = plan.width / plan.groups;
    for c in (0..plan.width).step_by(size) {
        let (mean, r) = statistics(plan, &s.u[c..c + size]);
        s.u[c..c + size].iter_mut().for_each(|u| *u = (*u - mean) * r);
        // s.u is x-hat now; s.read is free and holds 1 / root for the second pass.
        s.read[c] = r;
    }
    if plan.gate.is_some() && !before {
        gate_after(view, s);
    }
    for (i, (d, &a)) in dw.iter_mut().zip(&s.a).enumerate() {
        *d += a * s.u[i];
    }
    db.iter_mut().zip(&s.a).for_each(|(d, &a)| *d += a);
    if let Some(w) = &view.weight {
        s.a.iter_mut().zip(w).for_each(|(a, &w)| *a *= w);
    }
    for c in (0..plan.width).step_by(size) {
        let r = s.read[c];
        input_gradient(plan, r, &mut s.u[c..c + size], &s.a[c..c + size]);
    }
    if before {
        for i in 0..plan.width {
            let du = s.u[i];
            s.u[i] = du * s.gate[i];
            s.b[i] = du * s.b[i] * s.slope[i];
        }
    }
    if let Some(dsum) = dsum {
        s.u.iter_mut().zip(dsum.row(row, &mut s.read)).for_each(|(u, &d)| *u += d);
    }
}

/// For y = n act(g), n = x-hat w + b: s.b = dg, s.a = dn.
#[inline(always)]
fn gate_after<R: Real>(view: &View<R>, s: &mut Scratch<R>) {
    s.b.copy_from_slice(&s.u);
    if let Some(w) = &view.weight {
        s.b.iter_mut().zip(w).for_each(|(n, &w)| *n *= w);
    }
    if let Some(b) = &view.bias {
        s.b.iter_mut().zip(b).for_each(|(n, &b)| *n += b);
    }
    for (n, (&a, &slope)) in s.b.iter_mut().zip(s.a.iter().zip(&s.slope)) {
        *n *= a * slope;
    }
    s.a.iter_mut().zip(&s.gate).for_each(|(a, &g)| *a *= g);
}

/// x-hat to du: r (d - x-hat mean(d x-hat) - mean(d)), the last term for layer norms only.
#[inline(always)]
fn input_gradient<R: Real>(plan: &Plan, r: R, xhat: &mut [R], d: &[R]) {
    let n = R::from_f64(if plan.kind == NormKind::L2 { 1.0 } else { d.len() as f64 });
    let along = sum2(d, xhat, |a, b| a * b) / n;
    let mean = if plan.kind == NormKind::Layer { sum(d) / n } else { R::ZERO };
    for (x, &d) in xhat.iter_mut().zip(d) {
        *x = r * (d - *x * along - mean);
    }
}

#[inline(always)]
fn write_row<R: Real>(outs: &mut [Option<RowsMut>; 3], at: usize, s: &Scratch<R>) {
    let [dx, dr, dg] = outs;
    for out in [dx, dr].into_iter().flatten() {
        out.write(at, &s.u);
    }
    if let Some(out) = dg {
        out.write(at, &s.b);
    }
}
