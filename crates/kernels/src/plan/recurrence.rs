//! Plans of the recurrent families: `decay` with one decay a head, and `delta`.
//!
//! Both go over a sequence in chunks. Work inside chunks runs for all chunks at once; the state passes from chunk to chunk in a serial launch with one block for each
//! (block of V, head, sequence). Where heads are few, that leaves SMs idle: `decay` then saves the states in the serial pass and computes the outputs of all chunks at once, which needs memory for
//! the states.

use super::{Array, CHUNK, Machine, Plan, Sequences, segments};
use crate::{Error, Kernel, Result};

/// Sequences x heads, as a share of the SMs, below which outputs get a launch of their own. On an H200 the serial pass takes 1.45 us a chunk with outputs and 0.87 without;
/// the outputs apart cost in proportion to the heads.
const FEW: f64 = 0.18;
/// What decays the state of `decay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// Nothing.
    None,
    /// One value a head.
    Head,
    /// One value a token and head.
    Token,
}

/// Which recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recurrence {
    /// `S <- e^g S + k v^T`.
    Decay(Gate),
    /// `S <- e^g S; S += k (beta (v - S^T k))^T`.
    Delta,
}

/// Sizes of the operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecurrentShape {
    /// How tokens lie.
    pub sequences: Sequences,
    /// H: heads of q and k.
    pub heads: usize,
    /// HV: heads of v, a multiple of H.
    pub value_heads: usize,
    /// K.
    pub key_dim: usize,
    /// V.
    pub value_dim: usize,
}

impl RecurrentShape {
    /// Serial blocks before V is divided, as a share of the SMs.
    fn fill(&self, machine: &Machine<'_>) -> f64 {
        (self.sequences.count() * self.value_heads) as f64 / machine.sm_count.max(1) as f64
    }

    fn check(&self) -> Result<()> {
        let (h, hv) = (self.heads, self.value_heads);
        let bad = |name: &str, why| Err(Error::Entry { name: name.into(), why });
        if h == 0 || hv == 0 || !hv.is_multiple_of(h) {
            return bad("heads", format!("{hv} value heads do not share {h} key heads evenly"));
        }
        // Kernels compute the offset of a row of the batch in 32 bits.
        let width = (hv * self.key_dim.max(self.value_dim)) as u128;
        if self.sequences.tokens as u128 * width > i32::MAX as u128 {
            let (t, most) = (self.sequences.tokens, i32::MAX as u128 / width.max(1));
            return bad(
                "tokens",
                format!("{t} tokens of {width} numbers in one row; up to {most}: split the sequence"),
            );
        }
        Ok(())
    }

    /// C, K, V, VL: the generics that chunked kernels of this shape have, as far as they have them.
    pub(super) fn dims(&self) -> [(&'static str, i64); 4] {
        [
            ("C", CHUNK as i64),
            ("K", self.key_dim as i64),
            ("V", self.value_dim as i64),
            ("VL", i64::from(self.sequences.is_packed())),
        ]
    }

    /// A block for each chunk and value head.
    fn chunk_grid(&self) -> [usize; 3] {
        let [y, z] = self.sequences.chunk_grid();
        [self.value_heads, y, z]
    }

    /// Blocks of V.
    pub(super) fn value_blocks(&self, kernel: &Kernel) -> Result<usize> {
        Ok(self.value_dim.div_ceil(kernel.need_generic("BV")?.max(1) as usize))
    }

    /// An array with `dims` for each chunk and value head.
    fn per_chunk(&self, name: &'static str, dtype: &str, dims: [usize; 2]) -> Array {
        Array::new(name, dtype, &[self.sequences.chunks(), self.value_heads, dims[0], dims[1]])
    }

    fn states(&self, name: &'static str, dtype: &str) -> Array {
        self.per_chunk(name, dtype, [self.key_dim, self.value_dim])
    }
}

/// A plan in the making.
#[derive(Clone)]
pub(super) struct Maker<'m> {
    pub machine: &'m Machine<'m>,
    pub shape: &'m RecurrentShape,
    pub dtype: &'m str,
    /// An initial or final state, or a gradient of one, takes part.
    pub state: bool,
    pub plan: Plan,
}

impl<'m> Maker<'m> {
    pub fn choose(&self, kernel: &str, generics: &[(&str, i64)]) -> Result<&'m Kernel> {
        self.machine.choose(kernel, self.dtype, generics, self.shape.fill(self.machine))
    }

    /// What does not depend on the state, and the arrays that it leaves.
    pub fn prepare(&mut self, recurrence: Recurrence) -> Result<()> {
        let (shape, dtype) = (self.shape, self.dtype);
        let [c, k, _, vl] = shape.dims();
        match recurrence {
            Recurrence::Decay(gate) => {
                let generics = [c, vl, ("MODE", gate as i64)];
                let sum = self.machine.choose("decay_cumsum", "f32", &generics, shape.fill(self.machine))?;
                self.plan.launch(sum, shape.chunk_grid())?;
                self.plan.workspace.push(shape.per_chunk("gc", "f32", [1, CHUNK]));
            }
            Recurrence::Delta => {
                let gates = self.machine.choose("delta_gates", "f32", &[c, vl], shape.fill(self.machine))?;
                let [heads, y, z] = shape.chunk_grid();
                let heads = heads.div_ceil(gates.need_generic("HB")?.max(1) as usize);
                self.plan.launch(gates, [heads, y, z])?;
                let kernel = self.choose("delta_intra", &[c, k, vl])?;
                self.plan.launch(kernel, shape.chunk_grid())?;
                self.plan.workspace.extend([
                    shape.per_chunk("gvec", "f32", [4, CHUNK]),
                    shape.per_chunk("rk", "f32", [1, CHUNK]),
                    shape.per_chunk("rq", "f32", [1, CHUNK]),
                    shape.per_chunk("tm", dtype, [CHUNK, CHUNK]),
                    shape.per_chunk("pm", dtype, [CHUNK, CHUNK]),
                ]);
            }
        }
        Ok(())
    }

    /// The pass from chunk to chunk. Code that knows states (`ST` = 1) serves without one too, where there is none without.
    fn serial(&mut self, kernel: &str, parts: &[(&'static str, i64)]) -> Result<()> {
        let with = |st: i64| -> Vec<_> {
            self.shape.dims().into_iter().chain(parts.iter().copied()).chain([("ST", st)]).collect()
        };
        let found = match self.choose(kernel, &with(i64::from(self.state))) {
            Err(_) if !self.state => self.choose(kernel, &with(1))?,
            found => found?,
        };
        let grid = [self.shape.value_blocks(found)?, self.shape.value_heads, self.shape.sequences.count()];
        self.plan.launch(found, grid)
    }

    /// The states in the serial pass, then the outputs of all chunks at once.
    fn outputs_apart(&mut self) -> Result<()> {
        self.plan.workspace.push(self.shape.states("hs", self.dtype));
        self.serial("decay_fwd", &[("OUT", 0), ("SAVE", 1)])?;
        let out = self.choose("decay_out", &self.shape.dims())?;
        let [heads, y, z] = self.shape.chunk_grid();
        self.plan.launch(out, [heads * self.shape.value_blocks(out)?, y, z])
    }
}

/// The chunked forward. `state`: an initial or a final state is given.
///
/// # Errors
/// The bundle has no kernel for the shape, or memory does not suffice.
pub fn forward(
    machine: &Machine<'_>,
    shape: &RecurrentShape,
    recurrence: Recurrence,
    dtype: &str,
    state: bool,
) -> Result<Plan> {
    shape.check()?;
    let mut make = Maker { machine, shape, dtype, state, plan: Plan::default() };
    if shape.sequences.chunks() == 0 {
        return Ok(make.plan);
    }
    make.prepare(recurrence)?;
    if let Some(plan) = segments::forward(&make, recurrence) {
        return Ok(plan);
    }
    if recurrence != Recurrence::Delta && shape.fill(machine) < FEW {
        let mut divided = Maker { plan: make.plan.clone(), ..make };
        // Not enough memory for the states, or no such kernel: the serial pass does it alone.
        if divided.outputs_apart().is_ok() && divided.plan.bytes() <= machine.free_bytes {
            return Ok(divided.plan);
        }
        make = Maker { plan: Plan::default(), ..divided };
        make.prepare(recurrence)?;
    }
    let name = if recurrence == Recurrence::Delta { "delta_fwd" } else { "decay_fwd" };
    make.serial(name, &[("OUT", 1), ("SAVE", 0)])?;
    make.plan.fits("the forward", machine)
}

/// The chunked backward: the states again, their gradients, then all gradients at once. `state`: the forward had an initial state, or a gradient of a state
/// comes or goes. With grouped heads the gradients of q and k come for each value head and are summed afterwards.
///
/// # Errors
/// The bundle has no kernel for the shape, or memory does not suffice.
pub fn backward(
    machine: &Machine<'_>,
    shape: &RecurrentShape,
    recurrence: Recurrence,
    dtype: &str,
    state: bool,
) -> Result<Plan> {
    shape.check()?;
    let mut make = Maker { machine, shape, dtype, state, plan: Plan::default() };
    if shape.sequences.chunks() == 0 {
        return Ok(make.plan);
    }
    make.prepare(recurrence)?;
    let [again, states, gradients] = match recurrence {
        Recurrence::Decay(_) => ["decay_fwd", "decay_dstate", "decay_bwd"],
        Recurrence::Delta => ["delta_fwd", "delta_dstate", "delta_bwd"],
    };
    match segments::states(&make, recurrence) {
        Some(plan) => make.plan = plan,
        None => {
            make.serial(again, &[("OUT", 0), ("SAVE", 1)])?;
            make.serial(states, &[])?;
        }
    }
    let last = make.choose(gradients, &shape.dims())?;
    let mut plan = make.plan;
    plan.launch(last, shape.chunk_grid())?;
    plan.workspace.extend([shape.states("hs", dtype), shape.states("dh", dtype)]);
    if recurrence == Recurrence::Delta {
        plan.workspace
            .extend(["us", "dx"].map(|name| shape.per_chunk(name, dtype, [CHUNK, shape.value_dim])));
    }
    plan.fits("the backward", machine)
}

/// One or a few tokens with the state in place. `raw`: gates come as projections.
///
/// # Errors
/// The bundle has no kernel for the shape.
pub fn step(
    machine: &Machine<'_>,
    shape: &RecurrentShape,
    recurrence: Recurrence,
    dtype: &str,
    raw: bool,
) -> Result<Plan> {
    shape.check()?;
    let mut plan = Plan::default();
    if shape.sequences.batch == 0 || shape.sequences.tokens == 0 {
        return Ok(plan);
    }
    let [_, k, v, _] = shape.dims();
    let generics = [k, v, ("ERASE", i64::from(recurrence == Recurrence::Delta)), ("RAW", i64::from(raw))];
    let found = machine.choose("delta_step", dtype, &generics, shape.fill(machine))?;
    plan.launch(found, [shape.value_blocks(found)?, shape.value_heads, shape.sequences.batch])?;
    Ok(plan)
}

/// The head dims `[K, V]` of the smallest configuration of a kernel that holds heads of `dims`: zeros beyond them change nothing. None where heads are too wide.
pub fn head_dims(machine: &Machine<'_>, kernel: &str, dtype: &str, dims: [usize; 2]) -> Option<[usize; 2]> {
    let kernels = machine.bundle.of_type(kernel, dtype).iter();
    let size = |k: &Kernel, name| k.generic(name).and_then(|n| usize::try_from(n).ok());
    let all = kernels.filter_map(|k| Some([size(k, "K")?, size(k, "V")?]));
    all.filter(|d| d[0] >= dims[0] && d[1] >= dims[1]).min_by_key(|d| d[0] * d[1])
}
