//! Plans of softmax attention: blocks of queries (forward, dq), blocks of keys (dk and dv), and parts of a cache's keys (one new token a sequence).

use super::{Array, Machine, Plan};
use crate::{Error, Kernel, Result};

/// The widths of heads that kernels are compiled for; others are filled up with zeros to the next.
pub const WIDTHS: [usize; 3] = [64, 128, 256];
/// Integers of a row of a table of blocks.
const ENTRY: usize = 8;
/// Blocks that a decoding step aims at, as a multiple of the SMs.
const WAVES: usize = 2;

/// Where one sequence lies in the packed queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSpan {
    /// Its first query.
    pub q0: usize,
    /// Queries; the last stands at the last key.
    pub queries: usize,
    /// Its first key.
    pub k0: usize,
    /// Keys.
    pub keys: usize,
}

/// Sizes of the operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// The sequences.
    pub spans: Vec<AttentionSpan>,
    /// (B, Tq, Tk) where they are all rows of B, one behind the other.
    pub rows: Option<[usize; 3]>,
    /// HQ: heads of the queries, a multiple of H.
    pub q_heads: usize,
    /// H: heads of the keys.
    pub heads: usize,
    /// D: width of a head, one of [`WIDTHS`].
    pub width: usize,
    /// Queries see no later keys.
    pub causal: bool,
    /// Keys that a query sees where causal.
    pub window: Option<usize>,
}

/// A launch over blocks, and the table of them that it reads (empty for rows).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLaunch {
    /// The launch.
    pub plan: Plan,
    /// 8 integers a block; see `tiles/src/attention`.
    pub table: Vec<i32>,
    /// Slots of queries for the forward pass and dq; blocks of keys for dk and dv.
    pub count: usize,
}

/// A step of decoding: the kernels, and how the keys are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// The two launches, and their workspace `acc` and `ml`.
    pub plan: Plan,
    /// Parts of each row's keys.
    pub parts: usize,
    /// Blocks of keys of a part.
    pub step: usize,
}

impl AttentionShape {
    /// The next width that kernels have.
    pub fn width_for(head: usize) -> Option<usize> {
        WIDTHS.into_iter().find(|w| *w >= head)
    }

    /// Kernels compute offsets in 32 bits.
    fn check(&self) -> Result<()> {
        let end = |f: fn(&AttentionSpan) -> usize| self.spans.iter().map(f).max().unwrap_or(0);
        let queries = (end(|s| s.q0 + s.queries), self.q_heads);
        let keys = (end(|s| s.k0 + s.keys), self.heads);
        for (tokens, heads) in [queries, keys] {
            let most = i32::MAX as usize / (heads * self.width).max(1);
            // Blocks are filled up, so room is left beyond the end.
            if tokens.saturating_add(1024) > most {
                let why = format!("{tokens} tokens of {heads} heads of {}; up to {most}", self.width);
                return Err(Error::Entry { name: "tokens".into(), why });
            }
        }
        Ok(())
    }

    fn choose<'m>(&self, machine: &Machine<'m>, kernel: &str, dtype: &str) -> Result<&'m Kernel> {
        let generics = [("D", self.width as i64), ("VL", i64::from(self.rows.is_none()))];
        let blocks: usize = self.spans.iter().map(|s| s.queries.div_ceil(128)).sum();
        machine.choose(
            kernel,
            dtype,
            &generics,
            (blocks * self.q_heads) as f64 / machine.sm_count.max(1) as f64,
        )
    }

    /// Work of a block in keys (queries of `span` from `from` on).
    fn seen(&self, s: &AttentionSpan, from: usize, size: usize) -> usize {
        if !self.causal {
            return s.keys;
        }
        let end = (from + size + s.keys).saturating_sub(s.queries).min(s.keys);
        end.min(self.window.map_or(end, |w| w.saturating_add(size)))
    }

    /// A launch over blocks of `size` queries (`keys`: of keys), slots of `slot` queries.
    fn blocks(&self, kernel: &Kernel, [size, slot]: [usize; 2], keys: bool) -> Result<Option<BlockLaunch>> {
        let heads = if keys { self.heads } else { self.q_heads };
        let of = |s: &AttentionSpan| if keys { s.keys } else { s.queries };
        let mut rows: Vec<(usize, [usize; ENTRY])> = Vec::new();
        let mut first = 0;
        for s in &self.spans {
            for i in 0..of(s).div_ceil(size) {
                let work = if keys { s.queries + s.keys - i * size } else { self.seen(s, i * size, size) };
                rows.push((
                    work,
                    [s.q0, s.queries, s.k0, s.keys, i, if keys { first } else { first + i }, 0, 0],
                ));
            }
            first += s.queries.div_ceil(slot);
        }
        let count = rows.len();
        if count == 0 || heads == 0 {
            return Ok(None);
        }
        let (grid, table) = match self.rows {
            Some([b, ..]) => ([count / b, heads, b], Vec::new()),
            None => {
                // The longest first, so that the last ones to finish are short. The sort is stable: one table for one shape.
                rows.sort_by_key(|(work, _)| std::cmp::Reverse(*work));
                let table = rows.iter().flat_map(|(_, row)| row).map(|&x| int(x)).collect::<Result<_>>()?;
                ([count, heads, 1], table)
            }
        };
        let mut plan = Plan::default();
        plan.launch(kernel, grid)?;
        Ok(Some(BlockLaunch { plan, table, count }))
    }
}

fn int(n: usize) -> Result<i32> {
    let why = |_| Error::Entry { name: "tokens".into(), why: format!("{n} does not fit 32 bits") };
    i32::try_from(n).map_err(why)
}

fn generic(kernel: &Kernel, name: &str) -> Result<usize> {
    Ok(kernel.need_generic(name)?.max(1) as usize)
}

/// The forward pass, and queries of a slot; nothing where there are no queries.
///
/// # Errors
/// The bundle has no kernel for the width or type; more tokens than 32 bits count.
pub fn attention_forward(
    machine: &Machine<'_>,
    shape: &AttentionShape,
    dtype: &str,
) -> Result<Option<(BlockLaunch, usize)>> {
    shape.check()?;
    let kernel = shape.choose(machine, "attention_fwd", dtype)?;
    let size = generic(kernel, "BM")?;
    Ok(shape.blocks(kernel, [size, size], false)?.map(|b| (b, size)))
}

/// Its backward, for slots of `slot` queries: dq (with delta), then dk and dv; nothing where there are no queries or no keys.
///
/// # Errors
/// As [`attention_forward`]; slots that the kernels do not read.
pub fn attention_backward(
    machine: &Machine<'_>,
    shape: &AttentionShape,
    dtype: &str,
    slot: usize,
) -> Result<[Option<BlockLaunch>; 2]> {
    shape.check()?;
    let (dq, dkv) =
        (shape.choose(machine, "attention_dq", dtype)?, shape.choose(machine, "attention_dkv", dtype)?);
    for (kernel, name) in [(dq, "BM"), (dkv, "SL")] {
        if generic(kernel, name)? != slot {
            let why =
                format!("works on slots of {}, but the forward pass left {slot}", generic(kernel, name)?);
            return Err(Error::Entry { name: kernel.name.clone(), why });
        }
    }
    Ok([shape.blocks(dq, [slot, slot], false)?, shape.blocks(dkv, [generic(dkv, "BN")?, slot], true)?])
}

/// One new token for each of `rows` rows of a cache that see at most `keys` keys.
///
/// # Errors
/// As [`attention_forward`]; a workspace beyond the memory.
pub fn attention_step(
    machine: &Machine<'_>,
    shape: &AttentionShape,
    dtype: &str,
    keys: usize,
) -> Result<StepPlan> {
    shape.check()?;
    let rows = shape.spans.len();
    let width = [("D", shape.width as i64)];
    let step = machine.choose("attention_step", dtype, &width, 1.0)?;
    let gp = generic(step, "GP")?;
    let merge = machine.choose("attention_merge", dtype, &[width[0], ("GP", gp as i64)], 1.0)?;
    let tiles = shape.heads * (shape.q_heads / shape.heads.max(1)).div_ceil(gp);
    // A window may begin in the middle of a block.
    let blocks = keys.div_ceil(generic(step, "BN")?) + usize::from(shape.window.is_some());
    let wanted = (WAVES * machine.sm_count).div_ceil((rows * tiles).max(1)).clamp(1, blocks.max(1));
    let length = blocks.max(1).div_ceil(wanted);
    let parts = blocks.max(1).div_ceil(length);
    let mut plan = Plan::default();
    plan.launch(step, [parts, tiles, rows])?;
    plan.launch(merge, [tiles, rows, 1])?;
    plan.workspace.push(Array::new("acc", "f32", &[rows, tiles, parts, gp, shape.width]));
    plan.workspace.push(Array::new("ml", "f32", &[rows, tiles, parts, 2, gp]));
    Ok(StepPlan { plan: plan.fits("a step of attention", machine)?, parts, step: length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, Tuning, embedded};

    fn spans(lens: &[(usize, usize)]) -> Vec<AttentionSpan> {
        let (mut q0, mut k0) = (0, 0);
        let next = |&(queries, keys): &(usize, usize)| {
            let s = AttentionSpan { q0, queries, k0, keys };
            (q0, k0) = (q0 + queries, k0 + keys);
            s
        };
        lens.iter().map(next).collect()
    }

    fn shape(lens: &[(usize, usize)], rows: Option<[usize; 3]>, width: usize) -> AttentionShape {
        let causal = true;
        AttentionShape { spans: spans(lens), rows, q_heads: 8, heads: 2, width, causal, window: None }
    }

    /// Every type x width x form finds its kernels in the bundles that have the family; grids and tables cover all queries and keys once.
    #[test]
    fn plans_name_kernels_and_cover_everything_once() {
        for arch in Arch::ALL {
            let (Ok(bundle), Ok(tuning)) = (embedded(arch), Tuning::of(arch)) else { continue };
            if !bundle.kernels().iter().any(|k| k.kernel == "attention_fwd") {
                continue;
            }
            let m = Machine { bundle, tuning, sm_count: 132, free_bytes: 1 << 40 };
            for (dtype, width) in ["bf16", "f16"].into_iter().flat_map(|d| WIDTHS.map(|w| (d, w))) {
                let dense = shape(&[(300, 400); 3], Some([3, 300, 400]), width);
                let (fwd, slot) = attention_forward(&m, &dense, dtype).unwrap().unwrap();
                assert_eq!((fwd.plan.launches[0].grid, fwd.count, slot), ([3, 8, 3], 9, 128));
                assert!(fwd.table.is_empty());
                let [dq, dkv] = attention_backward(&m, &dense, dtype, slot).unwrap().map(Option::unwrap);
                assert_eq!(dq.plan.launches[0].grid, [3, 8, 3]);
                let bn = bundle.get(&dkv.plan.launches[0].kernel).unwrap().need_generic("BN").unwrap() as u32;
                assert_eq!(dkv.plan.launches[0].grid, [400u32.div_ceil(bn), 2, 3]);
                let packed = shape(&[(130, 130), (0, 40), (1, 700), (5, 0)], None, width);
                let (fwd, slot) = attention_forward(&m, &packed, dtype).unwrap().unwrap();
                assert_eq!((fwd.count, fwd.plan.launches[0].grid), (4, [4, 8, 1]));
                let mut slots: Vec<i32> = fwd.table.chunks(8).map(|r| r[5]).collect();
                // The one query of the longest sequence is the most work, and is first.
                assert_eq!(fwd.table[..8], [130, 1, 170, 700, 0, 2, 0, 0]);
                slots.sort_unstable();
                assert_eq!(slots, [0, 1, 2, 3]);
                let [_, dkv] = attention_backward(&m, &packed, dtype, slot).unwrap().map(Option::unwrap);
                let blocks: usize = [130usize, 40, 700].iter().map(|n| n.div_ceil(bn as usize)).sum();
                assert_eq!((dkv.count, dkv.table.len()), (blocks, 8 * blocks));
                let step = attention_step(&m, &shape(&[(1, 8000); 4], None, width), dtype, 8000).unwrap();
                assert_eq!(step.plan.launches[0].grid[1..], [2, 4]);
                let keys =
                    bundle.get(&step.plan.launches[0].kernel).unwrap().need_generic("BN").unwrap() as usize;
                assert!(step.parts * step.step * keys >= 8000 && (step.parts - 1) * step.step * keys < 8000);
                assert!(step.parts > 16, "{step:?}");
            }
            assert!(attention_forward(&m, &shape(&[(0, 7)], None, 64), "bf16").unwrap().is_none());
            let long = shape(&[(1 << 24, 1 << 24)], Some([1, 1 << 24, 1 << 24]), 128);
            assert!(
                attention_forward(&m, &long, "bf16").unwrap_err().to_string().contains("16777216 tokens")
            );
        }
    }

    #[test]
    fn heads_are_filled_up_to_the_next_width() {
        assert_eq!(
            [1, 64, 65, 200, 257].map(AttentionShape::width_for),
            [Some(64), Some(64), Some(128), Some(256), None]
        );
    }
}
