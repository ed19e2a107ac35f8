//! Token shift and RWKV-7's pointwise parts as the conformance suite sees them.

use flashlin_tensor::Var;

use super::{Correction, key_update, mix, output_correction, token_shift};
use crate::conformance::{Fill, ModuleInput, ModuleOp, Number, trace};
use crate::{PackedSeqs, Result};

/// [`token_shift`], dense and packed.
#[derive(Clone, Copy, Debug)]
pub struct Shift;

const D: usize = 5;
const LENS: [usize; 4] = [3, 0, 1, 4];

fn sequences(case: usize) -> (Option<PackedSeqs>, [usize; 2], Vec<usize>) {
    match case {
        0 => (None, [2, 6], vec![6, 6]),
        _ => (Some(PackedSeqs::from_lens(&LENS)), [1, 8], LENS.to_vec()),
    }
}

fn shift<N: Number>(case: usize, x: &[N], last: &[N]) -> Vec<Vec<N>> {
    let (mut previous, mut end) = (Vec::new(), Vec::new());
    let mut at = 0;
    for (row, len) in sequences(case).2.into_iter().enumerate() {
        let mut before = &last[row * D..][..D];
        for t in at..at + len {
            previous.extend_from_slice(before);
            before = &x[t * D..][..D];
        }
        end.extend_from_slice(before);
        at += len;
    }
    vec![previous, end]
}

impl ModuleOp for Shift {
    fn name(&self) -> &'static str {
        "token_shift"
    }

    fn cases(&self) -> Vec<String> {
        vec!["dense".into(), "packed".into()]
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let (_, [b, t], lens) = sequences(case);
        vec![
            ModuleInput::token("x", &[b, t, D], Fill::Normal(1.0)),
            ModuleInput::token("last", &[lens.len(), D], Fill::Normal(1.0)),
        ]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let out = token_shift(&x[0], sequences(case).0.as_ref(), Some(&x[1]))?;
        Ok(vec![out.previous, out.last])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        shift(case, &x[0], &x[1])
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        trace(x, d_out, |x| shift(case, &x[0], &x[1])).1
    }
}

/// [`mix`], [`key_update`] and [`output_correction`].
#[derive(Clone, Copy, Debug)]
pub struct Pointwise;

const B: usize = 2;
const T: usize = 9;
const H: usize = 2;
const K: usize = 3;
const V: usize = 4;

fn pointwise<N: Number>(x: &[Vec<N>]) -> Vec<Vec<N>> {
    let [x, previous, mu, k, a, k_a, o, r, r_k, v, g] = x else { return Vec::new() };
    let (d, one) = (H * K, N::of(1.0));
    let mixed = (0..x.len()).map(|i| x[i] + (previous[i] - x[i]) * mu[i % d]).collect();
    let keys = (0..k.len()).map(|i| k[i] * (one + (a[i] - one) * k_a[i % d])).collect();
    let corrected = (0..o.len()).map(|i| {
        let (token, head) = (i / (H * V), i / V % H);
        let at = token * d + head * K;
        let own = (0..K).fold(N::of(0.0), |sum, c| sum + r[at + c] * k[at + c] * r_k[head * K + c]);
        (o[i] + own * v[i]) * g[i]
    });
    vec![mixed, keys, corrected.collect()]
}

impl ModuleOp for Pointwise {
    fn name(&self) -> &'static str {
        "rwkv7_pointwise"
    }

    fn cases(&self) -> Vec<String> {
        vec!["all".into()]
    }

    fn inputs(&self, _: usize) -> Vec<ModuleInput> {
        let (keys, values) = ([B, T, H * K], [B, T, H * V]);
        let token = |name, dims: &[usize]| ModuleInput::token(name, dims, Fill::Normal(1.0));
        let shared = |name, dims: &[usize]| ModuleInput::shared(name, dims, Fill::Normal(1.0));
        vec![
            token("x", &keys),
            token("previous", &keys),
            shared("mu", &[H * K]),
            token("k", &keys),
            token("a", &keys),
            shared("k_a", &[H * K]),
            token("o", &values),
            token("r", &keys),
            shared("r_k", &[H, K]),
            token("v", &values),
            token("g", &values),
        ]
    }

    fn run(&self, _: usize, x: &[Var]) -> Result<Vec<Var>> {
        let heads = |x: &Var, d| x.reshape(&[B, T, H, d]);
        let (k, r, v) = (heads(&x[3], K)?, heads(&x[7], K)?, heads(&x[9], V)?);
        let corrected = Correction { o: &x[6], r: &r, k: &k, r_k: &x[8], v: &v, g: &x[10] };
        let [mixed] = mix(&x[0], &x[1], [&x[2]])?;
        Ok(vec![mixed, key_update(&x[3], &x[4], &x[5])?, output_correction(&corrected)?])
    }

    fn reference(&self, _: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        pointwise(x)
    }

    fn reference_backward(&self, _: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        trace(x, d_out, pointwise).1
    }
}
