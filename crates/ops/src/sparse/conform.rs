//! Native sparse attention as the conformance suite sees it.

use flashlin_tensor::{Result, Var};

use super::{NsaArgs, nsa, reference::Problem};
use crate::PackedSeqs;
use crate::conformance::{Fill, ModuleInput, ModuleOp, Number, trace};

/// [`nsa`]: blocks more and fewer than are selected, no window, packed sequences, more keys than queries.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

struct Variant {
    name: &'static str,
    /// (queries, keys) of each sequence.
    lens: &'static [(usize, usize)],
    packed: bool,
    block_size: usize,
    block_count: usize,
    window: Option<usize>,
}

const HQ: usize = 4;
const H: usize = 2;
const D: usize = 3;
const V: usize = 5;
const SCALE: f64 = 0.6;

const VARIANTS: &[Variant] = &[
    Variant {
        name: "few",
        lens: &[(3, 3), (3, 3)],
        packed: false,
        block_size: 4,
        block_count: 4,
        window: Some(2),
    },
    Variant {
        name: "selects",
        lens: &[(26, 26)],
        packed: false,
        block_size: 4,
        block_count: 4,
        window: Some(5),
    },
    Variant {
        name: "no window",
        lens: &[(19, 19)],
        packed: false,
        block_size: 3,
        block_count: 3,
        window: None,
    },
    Variant {
        name: "packed",
        lens: &[(0, 0), (9, 9), (1, 1), (14, 14)],
        packed: true,
        block_size: 2,
        block_count: 4,
        window: Some(3),
    },
    Variant {
        name: "cached",
        lens: &[(1, 17), (3, 3), (0, 4), (5, 12)],
        packed: true,
        block_size: 2,
        block_count: 4,
        window: Some(3),
    },
];

fn formula<N: Number>(case: usize, x: &[Vec<N>]) -> Vec<Vec<N>> {
    let v = &VARIANTS[case];
    let (mut at, mut key, mut o) = (0, 0, Vec::new());
    for &(t, s) in v.lens {
        let rows = |i: usize, width: usize| &x[i][at * width..][..t * width];
        let keys = |i: usize, width: usize| &x[i][key * width..][..s * width];
        let problem = Problem {
            t,
            s,
            hq: HQ,
            h: H,
            d: D,
            dv: V,
            q: rows(0, HQ * D),
            k: keys(1, H * D),
            v: keys(2, H * V),
            gates: [rows(3, HQ), rows(4, HQ), rows(5, HQ)],
            block_size: v.block_size,
            block_count: v.block_count,
            window: v.window,
            scale: SCALE,
        };
        o.extend(problem.forward());
        (at, key) = (at + t, key + s);
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
        let (queries, keys): (usize, usize) = v.lens.iter().fold((0, 0), |a, l| (a.0 + l.0, a.1 + l.1));
        let (b, t, s) = if v.packed { (1, queries, keys) } else { (v.lens.len(), v.lens[0].0, v.lens[0].1) };
        let token =
            |name, t: usize, tail: &[usize], fill| ModuleInput::token(name, &[&[b, t], tail].concat(), fill);
        vec![
            token("q", t, &[HQ, D], Fill::Normal(1.0)),
            token("k", s, &[H, D], Fill::Normal(1.0)),
            token("v", s, &[H, V], Fill::Normal(1.0)),
            token("g_cmp", t, &[HQ], Fill::Uniform(0.1, 1.0)),
            token("g_slc", t, &[HQ], Fill::Uniform(0.1, 1.0)),
            token("g_swa", t, &[HQ], Fill::Uniform(0.1, 1.0)),
        ]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let v = &VARIANTS[case];
        let lens = |f: fn(&(usize, usize)) -> usize| {
            PackedSeqs::from_lens(&v.lens.iter().map(f).collect::<Vec<_>>())
        };
        let (queries, keys) = (lens(|l| l.0), lens(|l| l.1));
        let out = nsa(&NsaArgs {
            block_size: v.block_size,
            block_count: v.block_count,
            window: v.window,
            scale: Some(SCALE),
            seqs: v.packed.then_some(&queries),
            kv_seqs: (v.packed && queries != keys).then_some(&keys),
            ..NsaArgs::new(&x[0], &x[1], &x[2], [&x[3], &x[4], &x[5]])
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
