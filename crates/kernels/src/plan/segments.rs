//! Few heads, long sequences: the segments of a sequence at once.
//!
//! The serial pass of a recurrence has a block for each (block of V, head, sequence); where these leave most SMs idle, a sequence is cut into segments that run
//! side by side. What a segment does to the state that enters it is linear, `S_end = A S_start + B`: a pass from zero gives B, `delta_through` (or the decay alone) A, a short
//! launch joins them into the state before each segment, and the pass proper starts from those. Gradients of states go the same way backwards, with `A^T`.
//!
//! Policy: it is done where the bundle has the kernels, memory suffices and the segments are so many that three short passes beat a long one (measured on an
//! H200; nothing else depends on it).

use super::recurrence::Maker;
use super::{Array, Bound, CHUNK, Plan, Recurrence};
use crate::Result;

/// Chunks of a segment at least: below that, joining costs more than it saves.
const SHORTEST: usize = 8;
/// The width of the blocks of V that the passes over segments run in.
const BLOCK: usize = 64;

/// How sequences are cut.
#[derive(Clone, Copy)]
struct Cut {
    /// Segments of each sequence.
    count: usize,
    /// Chunks of a segment.
    chunks: usize,
}

impl Cut {
    /// As many segments as fill the SMs once; None where fewer than `least`.
    fn of(make: &Maker<'_>, least: usize) -> Option<Cut> {
        let s = make.shape;
        let chunks = s.sequences.longest().div_ceil(CHUNK);
        let blocks = s.sequences.count() * s.value_heads * s.value_dim.div_ceil(BLOCK);
        let count = (make.machine.sm_count / blocks.max(1)).min(chunks / SHORTEST);
        let chunks = chunks.div_ceil(count.max(1));
        (count >= least).then_some(Cut { count, chunks })
    }

    fn bound(self, more: &[(&'static str, Bound)]) -> Vec<(&'static str, Bound)> {
        let own = [("nseg", Bound::Int(self.count)), ("seg", Bound::Int(self.chunks))];
        own.into_iter().chain(more.iter().copied()).collect()
    }
}

/// The forward in segments, where that pays and fits.
pub(super) fn forward(make: &Maker<'_>, recurrence: Recurrence) -> Option<Plan> {
    let delta = recurrence == Recurrence::Delta;
    let cut = Cut::of(make, if delta { 6 } else { 3 })?;
    let mut make = make.clone();
    let mut all = || -> Result<()> {
        join_forward(&mut make, cut, delta)?;
        let from = [("h0", Bound::To("hseg")), ("has_h0", Bound::Int(1)), ("has_ht", Bound::Int(0))];
        pass(&mut make, cut, name(delta, "fwd"), &[("OUT", 1), ("SAVE", 0)], &from)
    };
    all().ok()?;
    make.plan.fits("the forward", make.machine).ok()
}

/// States before chunks and their gradients in segments, for a backward.
pub(super) fn states(make: &Maker<'_>, recurrence: Recurrence) -> Option<Plan> {
    let delta = recurrence == Recurrence::Delta;
    let cut = Cut::of(make, if delta { 4 } else { 3 })?;
    let mut make = make.clone();
    let mut all = || -> Result<()> {
        join_forward(&mut make, cut, delta)?;
        let from = [("h0", Bound::To("hseg")), ("has_h0", Bound::Int(1)), ("has_ht", Bound::Int(0))];
        pass(&mut make, cut, name(delta, "fwd"), &[("OUT", 0), ("SAVE", 1)], &from)?;
        let zero = [("has_dht", Bound::Int(0)), ("dh0", Bound::To("hb")), ("has_dh0", Bound::Int(1))];
        pass(&mut make, cut, name(delta, "dstate"), &[], &zero)?;
        let ends = [
            ("h0", Bound::To("dht")),
            ("has_h0", Bound::To("has_dht")),
            ("hs", Bound::To("hseg")),
            ("ht", Bound::To("dh0")),
            ("has_ht", Bound::To("has_dh0")),
        ];
        join(&mut make, cut, delta, 1, &ends)?;
        let from = [("dht", Bound::To("hseg")), ("has_dht", Bound::Int(1)), ("has_dh0", Bound::Int(0))];
        pass(&mut make, cut, name(delta, "dstate"), &[], &from)
    };
    all().ok()?;
    make.plan.clone().fits("the backward", make.machine).ok()
}

fn name(delta: bool, part: &str) -> String {
    format!("{}_{part}", if delta { "delta" } else { "decay" })
}

/// The states before the segments, in `hseg`.
fn join_forward(make: &mut Maker<'_>, cut: Cut, delta: bool) -> Result<()> {
    let s = make.shape;
    let all = s.sequences.count() * cut.count;
    let states = |name, v| Array::new(name, "f32", &[all, s.value_heads, s.key_dim, v]);
    make.plan.workspace.extend([states("hb", s.value_dim), states("hseg", s.value_dim)]);
    let zero = [("has_h0", Bound::Int(0)), ("ht", Bound::To("hb")), ("has_ht", Bound::Int(1))];
    pass(make, cut, name(delta, "fwd"), &[("OUT", 0), ("SAVE", 0)], &zero)?;
    if delta {
        make.plan.workspace.push(states("ha", s.key_dim));
        let [c, k, _, vl] = s.dims();
        let through = make.choose("delta_through", &[c, k, vl])?;
        let blocks = s.key_dim.div_ceil(through.need_generic("BV")?.max(1) as usize);
        make.plan.launch_bound(through, [blocks, s.value_heads, all], cut.bound(&[]))?;
    }
    join(make, cut, delta, 0, &[("hs", Bound::To("hseg"))])
}

/// One pass over all segments, with states in and out.
fn pass(
    make: &mut Maker<'_>,
    cut: Cut,
    kernel: String,
    parts: &[(&'static str, i64)],
    bound: &[(&'static str, Bound)],
) -> Result<()> {
    let s = make.shape;
    let generics: Vec<_> = s.dims().into_iter().chain(parts.iter().copied()).chain([("ST", 1)]).collect();
    let found = make.machine.choose(&kernel, make.dtype, &generics, 1.0)?;
    let grid = [s.value_blocks(found)?, s.value_heads, s.sequences.count() * cut.count];
    make.plan.launch_bound(found, grid, cut.bound(bound))
}

fn join(
    make: &mut Maker<'_>,
    cut: Cut,
    delta: bool,
    reverse: i64,
    bound: &[(&'static str, Bound)],
) -> Result<()> {
    let s = make.shape;
    let [c, k, v, vl] = s.dims();
    let generics: Vec<(&str, i64)> = match delta {
        true => vec![k, v, ("REV", reverse)],
        false => vec![c, k, v, vl, ("REV", reverse)],
    };
    let found = make.machine.choose(&name(delta, "join"), "f32", &generics, 1.0)?;
    let grid = [s.value_blocks(found)?, s.value_heads, s.sequences.count()];
    make.plan.launch_bound(found, grid, cut.bound(bound))
}
