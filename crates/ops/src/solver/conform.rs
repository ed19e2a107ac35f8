//! The Mesa layer as the conformance suite sees it: inputs on which the solver reaches the exact solution.

use flashlin_tensor::{Result, Var};

use super::{MesaArgs, mesa, mesa_step, reference::Problem};
use crate::PackedSeqs;
use crate::conformance::{Fill, ModuleInput, ModuleOp, Number, dot, trace};

/// [`mesa`] dense and packed, and [`mesa_step`].
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

const H: usize = 2;
const K: usize = 3;
const V: usize = 4;
/// Queries are large, so that the solver's constant does not stop it before it is exact.
const QUERIES: f64 = 3e7;
const CASES: [&str; 3] = ["chunks", "packed", "step"];
const LENS: [usize; 4] = [5, 0, 1, 20];

fn lens(case: usize) -> Vec<usize> {
    [vec![37, 37], LENS.to_vec(), vec![1, 1, 1]][case].clone()
}

/// m m^T: A is symmetric in all that the layer ever makes, so the suite's state is made so.
fn square<N: Number>(m: &[N]) -> Vec<N> {
    let row = |i: usize| &m[i * K..][..K];
    (0..K * K).map(|at| dot(row(at / K), row(at % K))).collect()
}

fn formula<N: Number>(case: usize, x: &[Vec<N>]) -> Vec<Vec<N>> {
    let mut out = vec![Vec::new(), Vec::new(), Vec::new()];
    let mut at = 0;
    for (n, t) in lens(case).into_iter().enumerate() {
        let rows = |i: usize, width: usize| &x[i][at * width..][..t * width];
        let kk: Vec<N> = x[6][n * H * K * K..][..H * K * K].chunks(K * K).flat_map(square).collect();
        let parts = Problem {
            t,
            h: H,
            k_dim: K,
            v_dim: V,
            q: &rows(0, H * K).iter().map(|&q| q * N::of(QUERIES)).collect::<Vec<_>>(),
            k: rows(1, H * K),
            v: rows(2, H * V),
            g: rows(3, H),
            beta: rows(4, H),
            lambda: &x[5],
            kk: &kk,
            kv: &x[7][n * H * K * V..][..H * K * V],
        }
        .forward();
        let [o, a, b] = parts;
        out[0].extend(o.into_iter().map(|o| o / N::of(QUERIES)));
        out[1].extend(a);
        out[2].extend(b);
        at += t;
    }
    out
}

impl ModuleOp for Conformance {
    fn name(&self) -> &'static str {
        super::OP
    }

    fn cases(&self) -> Vec<String> {
        CASES.iter().map(|c| c.to_string()).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let lens = lens(case);
        let n = lens.len();
        let (b, t) = if case == 1 { (1, lens.iter().sum()) } else { (n, lens[0]) };
        let token = |name, tail: &[usize], fill| ModuleInput::token(name, &[&[b, t], tail].concat(), fill);
        vec![
            token("q", &[H, K], Fill::Normal(1.0)),
            token("k", &[H, K], Fill::Uniform(-1.0, 1.0)),
            token("v", &[H, V], Fill::Normal(1.0)),
            token("g", &[H], Fill::LogDecay),
            token("beta", &[H], Fill::Uniform(0.1, 1.0)),
            ModuleInput::shared("lambda", &[H, K], Fill::Uniform(0.5, 1.5)),
            ModuleInput::token("initial_kk", &[n, H, K, K], Fill::Uniform(-0.5, 0.5)),
            ModuleInput::token("initial_kv", &[n, H, K, V], Fill::Normal(1.0)),
        ]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let seqs = PackedSeqs::from_lens(&LENS);
        // Large queries do not fit half precision: what is half is cast before.
        let dtype = x[0].dtype();
        let x = x.iter().map(|x| x.to_dtype(dtype.accumulator())).collect::<Result<Vec<_>>>()?;
        let q = x[0].affine(QUERIES, 0.0)?;
        let kk = x[6].matmul(&x[6].transpose(2, 3)?)?;
        let args = MesaArgs {
            initial: Some([&kk, &x[7]]),
            iterations: 12,
            chunk_size: 16,
            ..MesaArgs::new(&q, &x[1], &x[2], &x[3], &x[4], &x[5])
        };
        let out = match case {
            0 => mesa(&args)?,
            1 => mesa(&MesaArgs { seqs: Some(&seqs), ..args })?,
            _ => mesa_step(&args)?,
        };
        let [kk, kv] = out.states;
        Ok(vec![out.o.affine(1.0 / QUERIES, 0.0)?.to_dtype(dtype)?, kk, kv])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        formula(case, x)
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        trace(x, d_out, |x| formula(case, x)).1
    }
}
