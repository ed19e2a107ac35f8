//! PaTH attention as the conformance suite sees it.

use flashlin_tensor::{Result, Var};

use super::{PathArgs, path_attn, reference::Problem};
use crate::PackedSeqs;
use crate::conformance::{Fill, ModuleInput, ModuleOp, Number, trace};

/// [`path_attn`]: one chunk and several, grouped heads, forget gates, packed sequences.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

struct Variant {
    name: &'static str,
    lens: &'static [usize],
    packed: bool,
    gated: bool,
    chunk: usize,
}

const HQ: usize = 4;
const H: usize = 2;
const D: usize = 3;
const V: usize = 5;
const SCALE: f64 = 0.6;

const VARIANTS: &[Variant] = &[
    Variant { name: "two tokens", lens: &[2, 2], packed: false, gated: true, chunk: 64 },
    Variant { name: "one chunk", lens: &[13, 13], packed: false, gated: false, chunk: 64 },
    Variant { name: "chunks", lens: &[27], packed: false, gated: false, chunk: 4 },
    Variant { name: "chunks, gated", lens: &[21], packed: false, gated: true, chunk: 8 },
    Variant { name: "packed, gated", lens: &[0, 5, 1, 12], packed: true, gated: true, chunk: 4 },
];

fn formula<N: Number>(case: usize, x: &[Vec<N>]) -> Vec<Vec<N>> {
    let mut at = 0;
    let mut o = Vec::new();
    for &t in VARIANTS[case].lens {
        let rows = |i: usize, width: usize| &x[i][at * width..][..t * width];
        let problem = Problem {
            t,
            hq: HQ,
            h: H,
            d: D,
            dv: V,
            q: rows(0, HQ * D),
            k: rows(1, H * D),
            v: rows(2, H * V),
            w: rows(3, H * D),
            beta: rows(4, H),
            g: VARIANTS[case].gated.then(|| rows(5, HQ)),
            scale: SCALE,
        };
        o.extend(problem.forward());
        at += t;
    }
    vec![o]
}

impl ModuleOp for Conformance {
    fn name(&self) -> &'static str {
        super::OP
    }

    fn cases(&self) -> Vec<String> {
        VARIANTS.iter().map(|v| v.name.into()).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let v = &VARIANTS[case];
        let (b, t) = if v.packed { (1, v.lens.iter().sum()) } else { (v.lens.len(), v.lens[0]) };
        let token = |name, tail: &[usize], fill| ModuleInput::token(name, &[&[b, t], tail].concat(), fill);
        let mut all = vec![
            token("q", &[HQ, D], Fill::Normal(1.0)),
            token("k", &[H, D], Fill::Normal(1.0)),
            token("v", &[H, V], Fill::Normal(1.0)),
            // At most of unit length.
            token("w", &[H, D], Fill::Uniform(-0.57, 0.57)),
            token("beta", &[H], Fill::Uniform(0.1, 1.9)),
        ];
        if v.gated {
            all.push(token("g", &[HQ], Fill::LogDecay));
        }
        all
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let v = &VARIANTS[case];
        let seqs = PackedSeqs::from_lens(v.lens);
        let out = path_attn(&PathArgs {
            g: x.get(5),
            scale: Some(SCALE),
            seqs: v.packed.then_some(&seqs),
            chunk_size: v.chunk,
            ..PathArgs::new(&x[0], &x[1], &x[2], &x[3], &x[4])
        })?;
        Ok(vec![out.o])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        formula(case, x)
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        trace(x, d_out, |x| formula(case, x)).1
    }
}
