//! The decay gates on a GPU (kernels in `tiles/src/gate`). Parameters' gradients are summed over pieces of tokens in order, then over the pieces, so
//! that the bits do not depend on the device's scheduling.

use flashlin_tensor::{
    DType, Error, Result, Tensor,
    cuda::{Arg, Kernel, Launcher},
};

use super::{
    DecayGate,
    decay_gate::{Gate, OP},
};

/// Tokens that one block adds.
const PIECE: usize = 256;

/// Operands as the kernels read them.
struct Operands {
    on: Launcher,
    kind: &'static str,
    x: Tensor,
    a_log: Option<Tensor>,
    dt_bias: Option<Tensor>,
}

impl Operands {
    fn of(gate: &Gate) -> Result<Operands> {
        let on = Launcher::on(OP, &gate.x)?;
        Ok(Operands {
            kind: on.float("x", gate.x.dtype())?,
            x: on.dense(&gate.x, gate.x.dtype())?,
            a_log: on.dense_if(gate.a_log.as_ref(), DType::F32)?,
            dt_bias: on.dense_if(gate.dt_bias.as_ref(), DType::F32)?,
            on,
        })
    }

    /// The formula's code and bound, and which parameters are there.
    fn tail(&self, gate: &Gate) -> [Arg; 4] {
        let (code, bound) = match gate.formula {
            DecayGate::Softplus => (0, 0.0),
            DecayGate::LowerBound(bound) => (1, bound),
        };
        let flag = |t: &Option<Tensor>| Arg::I32(i32::from(t.is_some()));
        [Arg::I32(code), Arg::F32(bound as f32), flag(&self.a_log), flag(&self.dt_bias)]
    }

    fn params(&self) -> Result<[Arg; 3]> {
        let on = &self.on;
        Ok([on.at(&self.x)?, on.maybe(self.a_log.as_ref())?, on.maybe(self.dt_bias.as_ref())?])
    }
}

fn lanes(kernel: &Kernel) -> Result<usize> {
    Ok(kernel.need_generic("N").map_err(Error::Kernel)?.max(1) as usize)
}

/// Log-decays in f32.
pub(super) fn forward(gate: &Gate) -> Result<Tensor> {
    let o = Operands::of(gate)?;
    let (on, n) = (&o.on, o.x.numel());
    let y = Tensor::empty(o.x.dims(), DType::F32, &o.x.device())?;
    let kernel = on.find("decay_gate_fwd", o.kind, &[])?;
    let mut args = o.params()?.to_vec();
    args.extend([on.at(&y)?, on.int(n)?, on.int(gate.hv * gate.n)?, on.int(gate.n)?]);
    args.extend(o.tail(gate));
    // SAFETY: x and y are dense with n elements, A_log has one for each head and dt_bias one for each channel.
    unsafe { on.launch(&kernel.name, [n.div_ceil(lanes(kernel)?), 1, 1], &args) }?;
    Ok(y)
}

/// Gradients of x, and of the parameters that are there.
pub(super) fn backward(gate: &Gate, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let o = Operands::of(gate)?;
    let (on, row) = (&o.on, gate.hv * gate.n);
    let tokens = o.x.numel().checked_div(row).unwrap_or(0);
    let dy = on.dense(dy, DType::F32)?;
    let dx = Tensor::empty(o.x.dims(), o.x.dtype(), &o.x.device())?;
    let pieces = tokens.div_ceil(PIECE);
    let parts = Tensor::empty(&[pieces, 2, row], DType::F32, &o.x.device())?;
    let kernel = on.find("decay_gate_bwd", o.kind, &[])?;
    let mut args = o.params()?.to_vec();
    args.extend([on.at(&dy)?, on.at(&dx)?, on.at(&parts)?, on.int(tokens)?, on.int(row)?]);
    args.extend([on.int(gate.n)?, on.int(PIECE)?]);
    args.extend(o.tail(gate));
    on.int(o.x.numel())?;
    // SAFETY: as in `forward`; dy and dx are like x, and parts has two rows for each piece of tokens.
    unsafe { on.launch(&kernel.name, [row.div_ceil(lanes(kernel)?), pieces, 1], &args) }?;
    let sums = parts.sum(&[0], false)?;
    let mut out = vec![Some(dx)];
    if let Some(a) = &gate.a_log {
        let by_head = sums.select(0, 1)?.reshape(&[gate.hv, gate.n])?.sum(&[1], false)?;
        out.push(Some(by_head.reshape(a.dims())?.to_dtype(a.dtype())?));
    }
    if let Some(b) = &gate.dt_bias {
        out.push(Some(sums.select(0, 0)?.reshape(b.dims())?.to_dtype(b.dtype())?));
    }
    Ok(out)
}
