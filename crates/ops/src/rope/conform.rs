//! The rotary embedding as the conformance suite sees it.

use flashlin_tensor::Var;

use super::{Offset, Positions, Rotary, reference};
use crate::conformance::{Fill, ModuleInput, ModuleOp};
use crate::{PackedSeqs, Result};

/// [`Rotary`] on q and k: full and partial, both pairings, offsets, packed sequences, xPos.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

struct Variant {
    name: &'static str,
    dim: usize,
    interleaved: bool,
    xpos: Option<f64>,
    /// Lengths and offsets of the sequences; packed in one row, or rows of a batch.
    seqs: &'static [(usize, i64)],
    packed: bool,
}

const WIDTH: usize = 10;
const BASE: f64 = 100.0;
/// Heads of q and k.
const HEADS: [usize; 2] = [2, 1];
/// xPos: the length whose middle has scale 1.
const MAX_LEN: usize = 8;
const ROWS: &[(usize, i64)] = &[(9, 2), (9, -3)];
const PACKED: &[(usize, i64)] = &[(3, 0), (0, 9), (6, 1000)];

const VARIANTS: &[Variant] = &[
    Variant { name: "plain", dim: 10, interleaved: false, xpos: None, seqs: ROWS, packed: false },
    Variant { name: "partial", dim: 6, interleaved: false, xpos: None, seqs: PACKED, packed: true },
    Variant { name: "interleaved", dim: 10, interleaved: true, xpos: None, seqs: PACKED, packed: true },
    Variant {
        name: "partial, interleaved",
        dim: 4,
        interleaved: true,
        xpos: None,
        seqs: ROWS,
        packed: false,
    },
    Variant { name: "xPos", dim: 6, interleaved: false, xpos: Some(16.0), seqs: ROWS, packed: false },
    Variant {
        name: "xPos, interleaved",
        dim: 10,
        interleaved: true,
        xpos: Some(16.0),
        seqs: ROWS,
        packed: false,
    },
];

impl Variant {
    fn positions(&self) -> Vec<i64> {
        self.seqs.iter().flat_map(|&(len, offset)| (0..len as i64).map(move |t| t + offset)).collect()
    }

    /// q or k, by index.
    fn turn(&self, i: usize, x: &[f64], back: bool) -> Vec<f64> {
        let positions = self.positions();
        let sign = [1.0, -1.0][i];
        let spec = reference::Spec {
            dim: self.dim,
            base: BASE,
            interleaved: self.interleaved,
            xpos: self.xpos.map(|base| (base, (MAX_LEN / 2) as f64, sign)),
            positions: &positions,
            heads: HEADS[i],
            width: WIDTH,
        };
        if back { reference::backward(&spec, x) } else { reference::forward(&spec, x) }
    }
}

impl ModuleOp for Conformance {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cases(&self) -> Vec<String> {
        VARIANTS.iter().map(|v| v.name.into()).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let v = &VARIANTS[case];
        let total = v.seqs.iter().map(|s| s.0).sum();
        let (b, t) = if v.packed { (1, total) } else { (v.seqs.len(), v.seqs[0].0) };
        let of = |(name, heads)| ModuleInput::token(name, &[b, t, heads, WIDTH], Fill::Normal(1.0));
        ["q", "k"].into_iter().zip(HEADS).map(of).collect()
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let v = &VARIANTS[case];
        let rotary = Rotary::new(v.dim, BASE)?.interleaved(v.interleaved);
        let rotary = match v.xpos {
            Some(base) => rotary.scale_base(base)?,
            None => rotary,
        };
        let offsets: Vec<i64> = v.seqs.iter().map(|s| s.1).collect();
        let seqs = PackedSeqs::from_lens(&v.seqs.iter().map(|s| s.0).collect::<Vec<_>>());
        let at = Positions {
            offset: Offset::Each(&offsets),
            seqs: v.packed.then_some(&seqs),
            max_len: v.xpos.map(|_| MAX_LEN),
        };
        let (q, k) = rotary.apply(&x[0], &x[1], at)?;
        Ok(vec![q, k])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        (0..2).map(|i| VARIANTS[case].turn(i, &x[i], false)).collect()
    }

    fn reference_backward(&self, case: usize, _x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        (0..2).map(|i| VARIANTS[case].turn(i, &d_out[i], true)).collect()
    }
}
