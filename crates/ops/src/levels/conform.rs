//! Log-linear attention as the conformance suite sees it.

use flashlin_tensor::Var;

use super::{LogLinearArgs, log_linear_attn, reference::Problem};
use crate::conformance::{Fill, ModuleInput, ModuleOp, Number, trace};
use crate::{Mode, PackedSeqs, Result};

/// [`log_linear_attn`]: chunk sizes, states that begin anywhere, packed sequences, steps.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

struct Variant {
    name: &'static str,
    /// (tokens, seen) of each sequence.
    seqs: &'static [(usize, usize)],
    packed: bool,
    chunk: usize,
    mode: Mode,
}

const H: usize = 1;
const HV: usize = 2;
const K: usize = 3;
const V: usize = 4;
const L: usize = 8;
const SCALE: f64 = 0.7;

const VARIANTS: &[Variant] = &[
    Variant { name: "one token", seqs: &[(1, 0), (1, 0)], packed: false, chunk: 64, mode: Mode::Chunk },
    Variant { name: "one chunk", seqs: &[(16, 0)], packed: false, chunk: 16, mode: Mode::Chunk },
    Variant { name: "chunks", seqs: &[(55, 0), (55, 0)], packed: false, chunk: 4, mode: Mode::Chunk },
    Variant { name: "from a state", seqs: &[(41, 13)], packed: false, chunk: 8, mode: Mode::Chunk },
    Variant { name: "from states", seqs: &[(10, 7), (10, 96)], packed: false, chunk: 4, mode: Mode::Chunk },
    Variant {
        name: "packed",
        seqs: &[(0, 5), (9, 0), (1, 31), (0, 0), (20, 6)],
        packed: true,
        chunk: 4,
        mode: Mode::Chunk,
    },
    Variant { name: "steps", seqs: &[(9, 3), (9, 3)], packed: false, chunk: 64, mode: Mode::Recurrent },
];

fn formula<N: Number>(case: usize, x: &[Vec<N>]) -> Vec<Vec<N>> {
    let size = L * HV * K * V;
    let (mut o, mut states) = (Vec::new(), Vec::new());
    let mut at = 0;
    for (n, &(t, seen)) in VARIANTS[case].seqs.iter().enumerate() {
        let rows = |i: usize, width: usize| &x[i][at * width..][..t * width];
        let (out, state) = Problem {
            t,
            h: H,
            hv: HV,
            k_dim: K,
            v_dim: V,
            levels: L,
            q: rows(0, H * K),
            k: rows(1, H * K),
            v: rows(2, HV * V),
            g: rows(3, HV),
            lambda: rows(4, HV * L),
            state: &x[5][n * size..][..size],
            seen,
            scale: SCALE,
        }
        .forward();
        o.extend(out);
        states.extend(state);
        at += t;
    }
    vec![o, states]
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
        let total: usize = v.seqs.iter().map(|s| s.0).sum();
        let (b, t) = if v.packed { (1, total) } else { (v.seqs.len(), v.seqs[0].0) };
        let token = |name, tail: &[usize], fill| ModuleInput::token(name, &[&[b, t], tail].concat(), fill);
        vec![
            token("q", &[H, K], Fill::Normal(1.0)),
            token("k", &[H, K], Fill::Normal(1.0)),
            token("v", &[HV, V], Fill::Normal(1.0)),
            token("g", &[HV], Fill::LogDecay),
            token("levels", &[HV, L], Fill::Uniform(0.1, 1.0)),
            ModuleInput::token("state", &[v.seqs.len(), L, HV, K, V], Fill::Normal(1.0)),
        ]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let v = &VARIANTS[case];
        let lens: Vec<usize> = v.seqs.iter().map(|s| s.0).collect();
        let seen: Vec<usize> = v.seqs.iter().map(|s| s.1).collect();
        let seqs = PackedSeqs::from_lens(&lens);
        let state = x[5].to_dtype(x[5].dtype().accumulator())?;
        let out = log_linear_attn(&LogLinearArgs {
            scale: SCALE,
            initial: Some((&state, &seen)),
            seqs: v.packed.then_some(&seqs),
            mode: v.mode,
            chunk_size: v.chunk,
            ..LogLinearArgs::new(&x[0], &x[1], &x[2], &x[3], &x[4])
        })?;
        Ok(vec![out.o, out.state])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        formula(case, x)
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        trace(x, d_out, |x| formula(case, x)).1
    }
}
