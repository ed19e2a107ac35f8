//! The selective scan by tensor operations, for devices without a kernel: the scan over all `D S` numbers of the state, written out for every
//! token. It takes S times the memory of the inputs.

use flashlin_tensor::{Result, Tensor, Var};

use super::{SelectiveArgs, Sizes};
use crate::scan::{ScanArgs, ScanOutput, linear_scan};

pub(super) fn run(args: &SelectiveArgs, sizes: &Sizes, first: Tensor) -> Result<ScanOutput> {
    let Sizes { seqs, dims: [b, t, d], groups, state } = sizes;
    let (b, t, d, g, s) = (*b, *t, *d, *groups, *state);
    let wide = args.u.dtype().accumulator();
    let of = |v: &Var| v.to_dtype(wide);
    let u = of(args.u)?;
    let mut dt = of(args.delta)?;
    if let Some(bias) = args.delta_bias {
        dt = dt.add(&of(bias)?)?;
    }
    if args.delta_softplus {
        dt = dt.softplus()?;
    }
    let flat = [b, t, d * s];
    let log_decay = dt.reshape(&[b, t, d, 1])?.mul(&of(args.a)?)?.reshape(&flat)?;
    // Groups of channels share what enters and what is read.
    let shared = |v: &Var| of(v)?.reshape(&[b, t, g, 1, s]);
    let by_group = [b, t, g, d / g, s];
    let entering = dt.mul(&u)?.reshape(&[b, t, g, d / g, 1])?.mul(&shared(args.b)?)?.reshape(&flat)?;
    let initial = args.initial_state.map_or_else(|| Ok(Var::constant(first)), of)?;
    let initial = initial.reshape(&[seqs.len(), d * s])?;
    let scan =
        ScanArgs { initial_state: Some(&initial), seqs: args.seqs, ..ScanArgs::new(&entering, &log_decay) };
    let ScanOutput { o: h, final_state } = linear_scan(&scan)?;
    let mut y = h.reshape(&by_group)?.mul(&shared(args.c)?)?.sum(&[4], false)?.reshape(&[b, t, d])?;
    if let Some(skip) = args.d {
        y = y.add(&u.mul(&of(skip)?)?)?;
    }
    if let Some(z) = args.z {
        y = y.mul(&of(z)?.silu()?)?;
    }
    Ok(ScanOutput { o: y.to_dtype(args.u.dtype())?, final_state: final_state.reshape(&[seqs.len(), d, s])? })
}
