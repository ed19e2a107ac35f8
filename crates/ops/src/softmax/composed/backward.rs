//! Its backward: probabilities again from the saved log-sum-exp, one block of queries after the other; the shares of dk and dv are added in order.

use flashlin_tensor::{Result, Tensor};

use super::{
    super::{
        Inputs,
        plan::{Plan, Span},
    },
    Block, Operands,
    decay::{self, Sums},
};

/// Gradients of one sequence's keys in the compute type, over its blocks.
struct Keys {
    /// `[H, keys, K]`
    dk: Tensor,
    /// `[H, keys, V]`
    dv: Tensor,
    /// Of the running sums of the decays, `[H, G, 1, keys]`, without sign
    dc: Option<Tensor>,
}

impl Keys {
    fn new(x: &Operands, s: &Span) -> Result<Self> {
        let (plan, zeros) = (x.plan, |dims: &[usize]| Tensor::zeros(dims, x.dtype, &x.device));
        let sums = |_: &Tensor| zeros(&[plan.heads, plan.group(), 1, s.keys]);
        Ok(Keys {
            dk: zeros(&[plan.heads, s.keys, plan.k_dim])?,
            dv: zeros(&[plan.heads, s.keys, plan.v_dim])?,
            dc: x.decay.as_ref().map(sums).transpose()?,
        })
    }
}

/// Adds `share` to the block of `sum` that begins at `from` along `dim`.
fn add(sum: &mut Tensor, dim: usize, from: usize, share: &Tensor) -> Result<()> {
    let mut start = vec![0; sum.rank()];
    start[dim] = from;
    let both = sum.narrow(dim, from, share.dim(dim))?.add(share)?;
    sum.write(&start, &both)
}

/// Gradients of q, k, v and decay from that of the output, with `lse` as the forward pass left it.
pub(crate) fn backward(
    plan: &Plan,
    inputs: &Inputs,
    [lse, grad]: [&Tensor; 2],
) -> Result<Vec<Option<Tensor>>> {
    let x = Operands::new(plan, inputs)?;
    let grad = grad.reshape(&[plan.q_rows, plan.q_heads, plan.v_dim])?;
    let like = |t: &Tensor, rows, heads, width| Tensor::zeros(&[rows, heads, width], t.dtype(), &x.device);
    let mut dq = like(&inputs.q, plan.q_rows, plan.q_heads, plan.k_dim)?;
    let mut dk = like(&inputs.k, plan.key_rows, plan.heads, plan.k_dim)?;
    let mut dv = like(&inputs.v, plan.key_rows, plan.heads, plan.v_dim)?;
    let zero_sums = |g: &Tensor| Tensor::zeros(&[plan.key_rows, plan.q_heads], g.dtype(), &x.device);
    let mut dg = inputs.decay.as_ref().map(zero_sums).transpose()?;
    for s in &plan.spans {
        let (sums, mut keys) = (x.sums(s)?, Keys::new(&x, s)?);
        for rows in x.row_blocks(s) {
            let b = x.block(s, rows)?;
            let at = s.q0 + b.rows.start;
            let grad = x.query_side(&grad, at, b.rows.len())?;
            let lse = lse.narrow(2, at, b.rows.len())?;
            let share = block(&x, s, (&b, sums.as_ref()), [&lse, &grad], &mut keys)?;
            let share = share.reshape(&[plan.q_heads, b.rows.len(), plan.k_dim])?.transpose(0, 1)?;
            dq.write(&[at, 0, 0], &share)?;
        }
        dk.write(&[s.k0, 0, 0], &keys.dk.transpose(0, 1)?)?;
        dv.write(&[s.k0, 0, 0], &keys.dv.transpose(0, 1)?)?;
        if let (Some(dg), Some(dc)) = (&mut dg, &keys.dc) {
            dg.write(&[s.k0, 0], &decay::gradient(dc)?)?;
        }
    }
    let mut out = Vec::new();
    for (grad, of) in [(dq, &inputs.q), (dk, &inputs.k), (dv, &inputs.v)] {
        out.push(Some(grad.reshape(of.dims())?));
    }
    out.push(dg.zip(inputs.decay.as_ref()).map(|(dg, g)| dg.reshape(g.dims())).transpose()?);
    Ok(out)
}

/// Adds one block's share to the gradients of its keys; returns dq `[H, G * rows, K]`.
fn block(
    x: &Operands,
    s: &Span,
    (b, sums): (&Block, Option<&Sums>),
    [lse, grad]: [&Tensor; 2],
    keys: &mut Keys,
) -> Result<Tensor> {
    let (plan, n, from) = (x.plan, b.rows.len(), b.keys.start);
    let flat = [plan.heads, plan.group() * n, b.keys.len()];
    let p = x.scores(s, b, sums)?.sub(lse)?.exp()?.reshape(&flat)?;
    add(&mut keys.dv, 1, from, &p.transpose(1, 2)?.matmul(grad)?)?;
    let dp = grad.matmul(&b.v.transpose(1, 2)?)?;
    // Not grad . o: o is rounded to its dtype, and then the gradients of a query's scores would not add up to 0.
    let delta = p.mul(&dp)?.sum(&[2], true)?;
    let ds = p.mul(&dp.sub(&delta)?)?;
    // b.q is scaled already.
    add(&mut keys.dk, 1, from, &ds.transpose(1, 2)?.matmul(&b.q)?)?;
    if let Some(dc) = &mut keys.dc {
        let by_head = ds.reshape(&[plan.heads, plan.group(), n, b.keys.len()])?;
        add(dc, 3, from, &by_head.sum(&[2], true)?)?;
    }
    ds.matmul(&b.k)?.affine(plan.scale, 0.0)
}
