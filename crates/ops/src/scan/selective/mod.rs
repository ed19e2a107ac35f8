//! The selective scan of Mamba: a state of S numbers a channel, with step sizes and projections that depend on the token.

mod composed;
pub(crate) mod conform;
mod cpu;
pub mod reference;

use flashlin_tensor::{BackwardCtx, DType, Error, Result, Tensor, Var};

use super::{ScanOutput, on_cpu, start};
use crate::{PackedSeqs, rows::check_dims};

const OP: &str = "selective_scan";

/// Arguments of [`selective_scan`]; all but `u` may have another float dtype than it (f64 where u is f64).
#[derive(Clone, Copy, Debug)]
pub struct SelectiveArgs<'a> {
    /// Inputs `[B, T, D]`.
    pub u: &'a Var,
    /// Step sizes `[B, T, D]`, before bias and softplus.
    pub delta: &'a Var,
    /// Rates `[D, S]`, `<= 0`.
    pub a: &'a Var,
    /// What enters the state, `[B, T, S]`, or `[B, T, G, S]` for G groups of channels (G divides D).
    pub b: &'a Var,
    /// What is read from it, of the shape of `b`.
    pub c: &'a Var,
    /// Skip weights `[D]`. Default: none.
    pub d: Option<&'a Var>,
    /// Gates `[B, T, D]`, through silu. Default: none.
    pub z: Option<&'a Var>,
    /// Added to delta, `[D]`. Default: none.
    pub delta_bias: Option<&'a Var>,
    /// Step sizes are softplus(delta + bias). Default: true.
    pub delta_softplus: bool,
    /// h_0 `[N, D, S]`, f32 (f64 where u is f64). Default: zero.
    pub initial_state: Option<&'a Var>,
    /// Boundaries of sequences packed along T (then B = 1). Default: B sequences of T.
    pub seqs: Option<&'a PackedSeqs>,
}

impl<'a> SelectiveArgs<'a> {
    /// Without skip, gate and bias, from zero states.
    pub fn new(u: &'a Var, delta: &'a Var, a: &'a Var, b: &'a Var, c: &'a Var) -> Self {
        SelectiveArgs {
            u,
            delta,
            a,
            b,
            c,
            d: None,
            z: None,
            delta_bias: None,
            delta_softplus: true,
            initial_state: None,
            seqs: None,
        }
    }

    /// The differentiable inputs, in the order of their gradients.
    fn inputs(&self) -> [Option<&'a Var>; 9] {
        let SelectiveArgs { u, delta, a, b, c, d, z, delta_bias, initial_state, .. } = *self;
        [Some(u), Some(delta), Some(a), Some(b), Some(c), d, z, delta_bias, initial_state]
    }
}

const NAMES: [&str; 9] = ["u", "delta", "a", "b", "c", "d", "z", "delta_bias", "initial_state"];

/// Sizes of a checked call.
#[derive(Clone, Debug)]
struct Sizes {
    seqs: PackedSeqs,
    /// B, T, D
    dims: [usize; 3],
    groups: usize,
    state: usize,
}

/// `h_t = e^{dt_t A} h_{t-1} + dt_t u_t B_t; y_t = (C_t . h_t + D u_t) silu(z_t)`, differentiable in every input. The state is `[N, D, S]`.
///
/// # Errors
/// When shapes, dtypes, devices or boundaries do not fit; the message names the argument.
pub fn selective_scan(args: &SelectiveArgs) -> Result<ScanOutput> {
    let sizes = check(args)?;
    let [_, _, d] = sizes.dims;
    let shape = [sizes.seqs.len(), d, sizes.state];
    let first = start(OP, args.initial_state.map(Var::tensor), &shape, args.u.tensor())?;
    if !on_cpu(args.u.tensor()) {
        return composed::run(args, &sizes, first);
    }
    match args.u.dtype() {
        DType::F64 => run::<f64>(args, sizes, first),
        _ => run::<f32>(args, sizes, first),
    }
}

fn check(args: &SelectiveArgs) -> Result<Sizes> {
    let dims = args.u.tensor().dims_n::<3>(OP, "u")?;
    let [batch, len, d] = dims;
    let seqs = PackedSeqs::resolve(OP, args.seqs, batch, len)?;
    let [_, state] = args.a.tensor().dims_n::<2>(OP, "a")?;
    let grouped = args.b.dims().len() == 4;
    let groups = if grouped { args.b.dim(2) } else { 1 };
    if d == 0 || state == 0 || groups == 0 || !d.is_multiple_of(groups) {
        let expected = format!(
            "[{batch}, {len}, S] or [{batch}, {len}, G, S] with G a divisor of D = {d}, S and D above 0"
        );
        return Err(Error::shape(OP, "b", args.b.dims(), expected));
    }
    let mut by_token = vec![batch, len, groups, state];
    if !grouped {
        by_token.remove(2);
    }
    check_dims(OP, "delta", args.delta.tensor(), &dims)?;
    check_dims(OP, "a", args.a.tensor(), &[d, state])?;
    check_dims(OP, "b", args.b.tensor(), &by_token)?;
    check_dims(OP, "c", args.c.tensor(), &by_token)?;
    for (arg, v, want) in
        [("d", args.d, &[d][..]), ("z", args.z, &dims[..]), ("delta_bias", args.delta_bias, &[d][..])]
    {
        v.map_or(Ok(()), |v| check_dims(OP, arg, v.tensor(), want))?;
    }
    let double = args.u.dtype() == DType::F64;
    for (arg, v) in NAMES.into_iter().zip(args.inputs()).filter_map(|(n, v)| v.map(|v| (n, v))) {
        if !v.dtype().is_float() || (v.dtype() == DType::F64) != double {
            return Err(Error::dtype(
                OP,
                arg,
                v.dtype(),
                if double { "f64, as u" } else { "f32, bf16 or f16" },
            ));
        }
        if v.device() != args.u.device() {
            return Err(Error::DeviceMismatch { op: OP, a: args.u.device(), b: v.device() });
        }
    }
    Ok(Sizes { seqs, dims, groups, state })
}

fn run<R: crate::simd::Real>(args: &SelectiveArgs, sizes: Sizes, first: Tensor) -> Result<ScanOutput> {
    let data = cpu::Data::<R>::new(args, sizes, &first)?;
    let (y, last, starts) = data.forward()?;
    let y = y.to_dtype(args.u.dtype())?;
    let absent = args.u.detach();
    let inputs = args.inputs();
    let given = inputs.map(|v| v.is_some());
    let shapes = inputs.map(|v| v.map(|v| (v.dims().to_vec(), v.dtype())));
    let inputs = inputs.map(|v| v.unwrap_or(&absent));
    let backward = move |ctx: &mut BackwardCtx<'_>, mut grads: Vec<Option<Tensor>>| {
        let (dy, d_last) = (ctx.or_zeros(0, &mut grads)?, ctx.or_zeros(1, &mut grads)?);
        let all = data.backward(&starts, &dy, &d_last)?;
        let fit = |(i, g): (usize, Tensor)| match &shapes[i] {
            Some((dims, dtype)) if given[i] && ctx.needs(i) => g.reshape(dims)?.to_dtype(*dtype).map(Some),
            _ => Ok(None),
        };
        all.into_iter().enumerate().map(fit).collect()
    };
    let mut out = Var::from_op(OP, &inputs, vec![y, last], || Box::new(backward)).into_iter();
    match (out.next(), out.next()) {
        (Some(o), Some(final_state)) => Ok(ScanOutput { o, final_state }),
        _ => Err(Error::invalid(OP, "o", "was not computed")),
    }
}
