//! Attention as the conformance suite sees it.

use flashlin_tensor::Var;

use super::{AttentionArgs, AttentionOutput, attention, reference};
use crate::conformance::{Fill, ModuleInput, ModuleOp};
use crate::{PackedSeqs, Result};

/// [`attention`] over packed sequences: causal or not, windows, grouped heads, log-decays, few queries against many keys.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

/// One call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variant {
    /// (queries, keys) of each sequence.
    pub seqs: &'static [(usize, usize)],
    /// HQ and H.
    pub heads: (usize, usize),
    /// K and V.
    pub dims: (usize, usize),
    pub causal: bool,
    pub window: Option<usize>,
    pub decay: bool,
}

/// Sequences around a block of 64, empty ones, and more keys than queries.
const LONG: &[(usize, usize)] =
    &[(70, 70), (0, 0), (1, 1), (64, 64), (65, 130), (3, 200), (5, 0), (0, 4), (9, 6)];
/// Few queries each: the form that decoding takes, with more keys than one segment of it.
const SHORT: &[(usize, usize)] = &[(1, 90), (4, 4), (0, 7), (2, 1), (3, 0), (1, 1100)];

pub(super) fn variants() -> Vec<Variant> {
    let of = |seqs, heads, dims| Variant { seqs, heads, dims, causal: true, window: None, decay: false };
    let base = [
        of(LONG, (2, 2), (16, 16)),
        of(LONG, (4, 2), (19, 7)),
        of(SHORT, (2, 2), (16, 16)),
        of(SHORT, (6, 2), (5, 33)),
    ];
    let mut all = base.to_vec();
    all.push(of(&[(300, 300)], (1, 1), (8, 8)));
    all.push(of(&[], (2, 1), (8, 8)));
    for v in base {
        // With a window of 1 the gradients of q and k are exactly zero, which no relative error can measure.
        all.push(Variant { window: Some(2), ..v });
        all.push(Variant { window: Some(50), decay: true, ..v });
        all.push(Variant { causal: false, ..v });
        all.push(Variant { decay: true, ..v });
    }
    // Heads that a GPU's kernels take, as they are and filled up.
    all.push(of(LONG, (4, 2), (64, 64)));
    all.push(Variant { window: Some(50), ..of(LONG, (2, 1), (33, 70)) });
    all.push(Variant { causal: false, ..of(&[(70, 200), (1, 3)], (1, 1), (129, 40)) });
    all
}

impl Variant {
    /// One call of `run`, by which the attention is computed.
    pub fn run(
        &self,
        x: &[Var],
        maps: bool,
        run: impl Fn(&AttentionArgs) -> Result<AttentionOutput>,
    ) -> Result<AttentionOutput> {
        let lens = |f: fn(&(usize, usize)) -> usize| {
            PackedSeqs::from_lens(&self.seqs.iter().map(f).collect::<Vec<_>>())
        };
        let (queries, keys) = (lens(|s| s.0), lens(|s| s.1));
        run(&AttentionArgs {
            decay: x.get(3).filter(|_| self.decay),
            causal: self.causal,
            window: self.window,
            seqs: Some(&queries),
            kv_seqs: Some(&keys),
            maps,
            ..AttentionArgs::new(&x[0], &x[1], &x[2])
        })
    }

    pub fn arrays<'a>(&self, x: &'a [Vec<f64>]) -> reference::Inputs<'a, f64> {
        reference::Inputs {
            seqs: self.seqs,
            q_heads: self.heads.0,
            heads: self.heads.1,
            key_dim: self.dims.0,
            value_dim: self.dims.1,
            scale: (self.dims.0 as f64).powf(-0.5),
            causal: self.causal,
            window: self.window,
            q: &x[0],
            k: &x[1],
            v: &x[2],
            decay: self.decay.then(|| &x[3][..]),
        }
    }
}

impl ModuleOp for Conformance {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cases(&self) -> Vec<String> {
        let name = |v: &Variant| {
            let Variant { seqs, heads, dims, causal, window, decay } = v;
            format!("{seqs:?} heads {heads:?} K, V {dims:?} causal {causal} window {window:?} decay {decay}")
        };
        variants().iter().map(name).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let v = variants()[case];
        let (tq, tk) = v.seqs.iter().fold((0, 0), |a, s| (a.0 + s.0, a.1 + s.1));
        let normal = Fill::Normal(1.0);
        let mut all = vec![
            ModuleInput::token("q", &[1, tq, v.heads.0, v.dims.0], normal),
            ModuleInput::token("k", &[1, tk, v.heads.1, v.dims.0], normal),
            ModuleInput::token("v", &[1, tk, v.heads.1, v.dims.1], normal),
        ];
        if v.decay {
            all.push(ModuleInput::token("decay", &[1, tk, v.heads.0], Fill::Uniform(-0.2, 0.0)));
        }
        all
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![variants()[case].run(x, false, attention)?.o])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![reference::forward(&variants()[case].arrays(x)).0]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let g = reference::backward(&variants()[case].arrays(x), &d_out[0]);
        [Some(g.q), Some(g.k), Some(g.v), g.decay].into_iter().flatten().collect()
    }
}
