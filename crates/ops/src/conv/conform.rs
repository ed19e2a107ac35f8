//! The short convolution as the conformance suite sees it.

use flashlin_tensor::Var;

use super::{ConvArgs, reference, short_conv};
use crate::activation::Activation;
use crate::conformance::{Fill, ModuleInput, ModuleOp};
use crate::{PackedSeqs, Result};

/// [`short_conv`] over packed sequences, empty ones among them, with every option.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

struct Variant {
    lens: &'static [usize],
    channels: usize,
    taps: usize,
    silu: bool,
    /// Of bias, residual and initial state, those that are given.
    given: &'static [&'static str],
    /// Whether the final state is asked for.
    last: bool,
}

const ALL: &[&str] = &["bias", "residual", "initial_state"];
const VARIANTS: &[Variant] = &[
    Variant { lens: &[70, 0, 3, 1, 64, 65], channels: 9, taps: 4, silu: true, given: ALL, last: true },
    Variant {
        lens: &[5, 2, 0, 1],
        channels: 130,
        taps: 4,
        silu: true,
        given: &["initial_state"],
        last: true,
    },
    Variant { lens: &[9], channels: 3, taps: 1, silu: false, given: ALL, last: true },
    Variant {
        lens: &[1, 2, 3, 7, 0],
        channels: 5,
        taps: 3,
        silu: true,
        given: &["bias", "initial_state"],
        last: true,
    },
    Variant { lens: &[4, 6], channels: 8, taps: 2, silu: true, given: &[], last: true },
    Variant {
        lens: &[3, 12],
        channels: 4,
        taps: 7,
        silu: true,
        given: &["residual", "initial_state"],
        last: true,
    },
    Variant { lens: &[0, 0], channels: 4, taps: 4, silu: true, given: ALL, last: true },
    Variant { lens: &[], channels: 4, taps: 4, silu: true, given: &["bias"], last: true },
    // Sizes that a GPU slides over, without gradients through states.
    Variant {
        lens: &[70, 0, 3, 1, 130],
        channels: 24,
        taps: 4,
        silu: true,
        given: &["bias", "residual"],
        last: false,
    },
    Variant { lens: &[67], channels: 8, taps: 3, silu: false, given: &[], last: false },
    Variant { lens: &[2, 65], channels: 16, taps: 4, silu: true, given: &["initial_state"], last: false },
];

impl Variant {
    fn find<'a, T>(&self, x: &'a [T], name: &str) -> Option<&'a T> {
        self.given.iter().position(|n| *n == name).map(|i| &x[i + 2])
    }

    fn arrays<'a>(&self, x: &'a [Vec<f64>]) -> reference::Inputs<'a, f64> {
        let find = |name| self.find(x, name).map(Vec::as_slice);
        reference::Inputs {
            lens: self.lens,
            channels: self.channels,
            taps: self.taps,
            silu: self.silu,
            x: &x[0],
            weight: &x[1],
            bias: find("bias"),
            residual: find("residual"),
            initial_state: find("initial_state"),
        }
    }
}

impl ModuleOp for Conformance {
    fn name(&self) -> &'static str {
        "short_conv"
    }

    fn cases(&self) -> Vec<String> {
        let name = |v: &Variant| {
            let Variant { lens, channels, taps, silu, given, .. } = v;
            format!("sequences {lens:?}, D {channels}, W {taps}, silu {silu}, {given:?}")
        };
        VARIANTS.iter().map(name).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let (v, normal) = (&VARIANTS[case], Fill::Normal(1.0));
        let rows = [1, v.lens.iter().sum(), v.channels];
        let mut all = vec![
            ModuleInput::token("x", &rows, normal),
            ModuleInput::shared("weight", &[v.channels, 1, v.taps], normal),
        ];
        all.extend(v.given.iter().map(|&name| match name {
            "bias" => ModuleInput::shared(name, &[v.channels], normal),
            "residual" => ModuleInput::token(name, &rows, normal),
            _ => ModuleInput::token(name, &[v.lens.len(), v.channels, v.taps], normal),
        }));
        all
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let v = &VARIANTS[case];
        let seqs = PackedSeqs::from_lens(v.lens);
        let out = short_conv(&ConvArgs {
            bias: v.find(x, "bias"),
            activation: v.silu.then_some(Activation::Silu),
            residual: v.find(x, "residual"),
            initial_state: v.find(x, "initial_state"),
            seqs: Some(&seqs),
            final_state: v.last,
            ..ConvArgs::new(&x[0], &x[1])
        })?;
        Ok([Some(out.y), out.final_state].into_iter().flatten().collect())
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (y, last) = reference::forward(&VARIANTS[case].arrays(x));
        [Some(y), Some(last).filter(|_| VARIANTS[case].last)].into_iter().flatten().collect()
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d_out: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let v = &VARIANTS[case];
        let none = vec![0.0; v.lens.len() * v.channels * v.taps];
        let g = reference::backward(&v.arrays(x), &d_out[0], d_out.get(1).unwrap_or(&none));
        let mut all = vec![g.x, g.weight];
        all.extend(v.given.iter().map(|&name| match name {
            "bias" => g.bias.clone(),
            "residual" => g.residual.clone(),
            _ => g.initial_state.clone(),
        }));
        all
    }
}
