//! Attention on a GPU: kernels (`tiles/src/attention`) for half precision, and for everything else (f32, mixed dtypes, heads narrower than 32, decays,
//! maps, a scale that is not above 0) the path composed of tensor operations. Heads that kernels are not compiled for are filled up with zeros.

use flashlin_tensor::{
    Backward, BackwardCtx, DType, Error, Result, Tensor, Var,
    cuda::{
        Launcher, Operands,
        plan::{self, AttentionShape, AttentionSpan, BlockLaunch},
    },
};

use super::{AttentionArgs, AttentionOutput, Inputs, OP, plan::Plan, run_composed};
use crate::{kernels::padded, recurrence::recorded};

/// No key lies this far behind a query.
const NO_WINDOW: usize = 1 << 30;
/// Narrower heads are not worth filling up to the least width of the kernels.
const NARROW: usize = 32;
/// Smaller scales would not tell hidden keys from seen ones.
const LEAST_SCALE: f64 = 1e-6;

/// A call that kernels serve, its operands contiguous and of the kernels' width.
struct Fused {
    on: Launcher,
    kind: &'static str,
    dtype: DType,
    shape: AttentionShape,
    scale: f64,
    /// `[B, Tq, HQ, D]`
    q: Tensor,
    /// `[B, Tk, H, D]`
    k: Tensor,
    v: Tensor,
    /// K and V of the caller.
    own: [usize; 2],
    /// B and Tq; B and Tk.
    dims: [[usize; 2]; 2],
}

/// A checked call on a GPU.
pub(super) fn run(args: &AttentionArgs, plan: Plan, inputs: Inputs) -> Result<AttentionOutput> {
    let Some(call) = Fused::of(args, &plan, &inputs)? else { return run_composed(args, plan, inputs) };
    let inputs = [args.q, args.k, args.v];
    if !recorded(inputs)
        && let Some(o) = call.step(args, &plan)?
    {
        return Ok(AttentionOutput { o: Var::constant(o), maps: None });
    }
    let (o, lse, slot) = call.forward()?;
    let own = call.cut(&o, 1)?;
    let o = Var::from_op1(OP, &inputs, own, || -> Box<dyn Backward> {
        Box::new(move |_: &mut BackwardCtx<'_>, mut g: Vec<Option<Tensor>>| {
            let Some(g) = g[0].take() else { return Ok(vec![None; 3]) };
            call.backward(&o, &lse, slot, &g)
        })
    });
    Ok(AttentionOutput { o, maps: None })
}

fn kernel<T>(r: flashlin_tensor::cuda::KernelResult<T>) -> Result<T> {
    r.map_err(Error::Kernel)
}

impl Fused {
    fn of(args: &AttentionArgs, plan: &Plan, inputs: &Inputs) -> Result<Option<Fused>> {
        let dtype = inputs.q.dtype();
        let one = [&inputs.k, &inputs.v].iter().all(|t| t.dtype() == dtype);
        let half = matches!(dtype, DType::BF16 | DType::F16);
        let width = AttentionShape::width_for(plan.k_dim.max(plan.v_dim));
        let wide = plan.k_dim.min(plan.v_dim) >= NARROW;
        let plain = wide && args.decay.is_none() && !args.maps && plan.scale >= LEAST_SCALE;
        let Some(width) = width.filter(|_| one && half && plain) else { return Ok(None) };
        let on = Launcher::on(OP, &inputs.q)?;
        let of = |t: &Tensor| padded(t, 3, width)?.contiguous();
        let span =
            |s: &super::plan::Span| AttentionSpan { q0: s.q0, queries: s.queries, k0: s.k0, keys: s.keys };
        let [[b, tq], [kb, tk]] = [&inputs.q, &inputs.k].map(|t| [t.dim(0), t.dim(1)]);
        let dense = args.seqs.is_none() && args.kv_seqs.is_none() && args.kv_lens.is_none();
        Ok(Some(Fused {
            on,
            kind: on.float("q", dtype)?,
            dtype,
            shape: AttentionShape {
                spans: plan.spans.iter().map(span).collect(),
                rows: dense.then_some([b, tq, tk]),
                q_heads: plan.q_heads,
                heads: plan.heads,
                width,
                causal: plan.causal,
                window: plan.window,
            },
            scale: plan.scale,
            q: of(&inputs.q)?,
            k: of(&inputs.k)?,
            v: of(&inputs.v)?,
            own: [plan.k_dim, plan.v_dim],
            dims: [[b, tq], [kb, tk]],
        }))
    }

    /// The caller's part of a head: of K (0) or V (1) channels.
    fn cut(&self, x: &Tensor, of: usize) -> Result<Tensor> {
        x.narrow(3, 0, self.own[of])?.contiguous()
    }

    fn like(&self, of: usize, dtype: DType, zero: bool) -> Result<Tensor> {
        let [b, t] = self.dims[of];
        let heads = [self.shape.q_heads, self.shape.heads][of];
        let make = if zero { Tensor::zeros } else { Tensor::empty };
        make(&[b, t, heads, self.shape.width], dtype, &self.on.device())
    }

    /// Operands that all kernels over blocks know, for `slots` slots.
    fn operands(&self, slots: usize) -> Result<Operands> {
        let mut x = Operands::new(self.on);
        for (name, t) in [("q", &self.q), ("k", &self.k), ("v", &self.v)] {
            x.array(name, t)?;
        }
        let [b, t, tk] = self.shape.rows.unwrap_or([0; 3]);
        let window = self.shape.window.unwrap_or(NO_WINDOW).min(NO_WINDOW);
        for (name, n) in [
            ("b", b),
            ("t", t),
            ("tk", tk),
            ("hq", self.shape.q_heads),
            ("h", self.shape.heads),
            ("count", slots),
            ("causal", usize::from(self.shape.causal)),
            ("window", window),
        ] {
            x.int(name, n)?;
        }
        x.float("scale", self.scale);
        Ok(x)
    }

    fn launch(&self, x: &mut Operands, launch: &BlockLaunch) -> Result<()> {
        if launch.table.is_empty() {
            x.absent("table");
        } else {
            x.array("table", &self.on.table(launch.table.clone())?)?;
        }
        // SAFETY: spans lie inside the tokens, as the call was checked; all arrays have the sizes that the shape states.
        unsafe { x.run(&launch.plan) }
    }

    /// o `[B, Tq, HQ, D]`, the log-sum-exps of all slots, and queries of a slot.
    fn forward(&self) -> Result<(Tensor, Tensor, usize)> {
        let machine = self.on.machine_with(0)?;
        let o = self.like(0, self.dtype, false)?;
        let plan = kernel(plan::attention_forward(&machine, &self.shape, self.kind))?;
        let Some((launch, slot)) = plan else {
            return Ok((o, Tensor::zeros(&[0], DType::F32, &self.on.device())?, 0));
        };
        let lse = Tensor::empty(&[launch.count, self.shape.q_heads, slot], DType::F32, &self.on.device())?;
        let mut x = self.operands(launch.count)?;
        x.array("o", &o)?;
        x.array("lse", &lse)?;
        self.launch(&mut x, &launch)?;
        Ok((o, lse, slot))
    }

    /// Gradients of q, k and v.
    fn backward(&self, o: &Tensor, lse: &Tensor, slot: usize, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        // Keys that belong to no sequence (the unused end of a cache) have gradient 0.
        let unused = self.shape.rows.is_none();
        let dq = self.like(0, self.dtype, false)?;
        let [dk, dv] = [self.like(1, self.dtype, unused)?, self.like(1, self.dtype, unused)?];
        if slot == 0 {
            return [
                self.like(0, self.dtype, true),
                self.like(1, self.dtype, true),
                self.like(1, self.dtype, true),
            ]
            .into_iter()
            .zip([0, 0, 1])
            .map(|(g, of)| self.cut(&g?, of).map(Some))
            .collect();
        }
        let machine = self.on.machine_with(0)?;
        let [queries, keys] = kernel(plan::attention_backward(&machine, &self.shape, self.kind, slot))?;
        let grad = padded(&grad.to_dtype(self.dtype)?, 3, self.shape.width)?.contiguous()?;
        let delta = Tensor::empty(lse.dims(), DType::F32, &self.on.device())?;
        let mut x = self.operands(lse.dim(0))?;
        for (name, t) in
            [("o", o), ("d_o", &grad), ("lse", lse), ("delta", &delta), ("dq", &dq), ("dk", &dk), ("dv", &dv)]
        {
            x.array(name, t)?;
        }
        for launch in [queries, keys].into_iter().flatten() {
            x.int("blocks", launch.count)?;
            self.launch(&mut x, &launch)?;
        }
        Ok(vec![Some(self.cut(&dq, 0)?), Some(self.cut(&dk, 0)?), Some(self.cut(&dv, 1)?)])
    }

    /// One query for each row of a cache, its keys divided over the GPU; None where the call is something else.
    fn step(&self, args: &AttentionArgs, plan: &Plan) -> Result<Option<Tensor>> {
        let cap = self.dims[1][1];
        let rows = plan.spans.iter().enumerate().all(|(n, s)| s.queries == 1 && s.k0 == n * cap);
        if !rows
            || plan.spans.is_empty()
            || args.kv_seqs.is_some()
            || (args.seqs.is_some() && args.kv_lens.is_none())
        {
            return Ok(None);
        }
        let lens: Vec<usize> = plan.spans.iter().map(|s| s.keys).collect();
        let most = lens.iter().copied().max().unwrap_or(0);
        let keys = most.min(self.shape.window.unwrap_or(most));
        // The workspace is small: its allocation tells what is missing, and no step waits for the driver's count of free memory.
        let machine = self.on.machine_with(usize::MAX)?;
        let step = kernel(plan::attention_step(&machine, &self.shape, self.kind, keys))?;
        let lens = lens.into_iter().map(|n| n as i32).collect::<Vec<_>>();
        let o = self.like(0, self.dtype, false)?;
        let mut x = self.operands(0)?;
        x.array("lens", &self.on.table(lens)?)?;
        x.array("o", &o)?;
        let group = self.shape.q_heads / self.shape.heads;
        for (name, n) in
            [("n", plan.spans.len()), ("cap", cap), ("g", group), ("parts", step.parts), ("step", step.step)]
        {
            x.int(name, n)?;
        }
        // SAFETY: each row's keys lie inside the cache; all arrays have the sizes that the shape states.
        unsafe { x.run(&step.plan) }?;
        self.cut(&o, 1).map(Some)
    }
}
