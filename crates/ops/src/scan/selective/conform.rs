//! The selective scan as the conformance suite sees it.

use flashlin_tensor::Var;

use super::{NAMES, SelectiveArgs, reference, selective_scan};
use crate::{
    Result,
    conformance::{Fill, ModuleInput, ModuleOp},
    scan::conform::{LAYOUTS, Layout},
};

/// [`selective_scan`]: all inputs and the fewest, groups, packed and dense, with and without states.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

struct Variant {
    layout: usize,
    channels: usize,
    state: usize,
    groups: Option<usize>,
    /// Skip, gate and bias.
    extras: bool,
    softplus: bool,
}

const VARIANTS: [Variant; 4] = [
    Variant { layout: 0, channels: 3, state: 4, groups: None, extras: false, softplus: false },
    Variant { layout: 1, channels: 20, state: 3, groups: None, extras: true, softplus: true },
    Variant { layout: 2, channels: 6, state: 2, groups: Some(2), extras: true, softplus: true },
    Variant { layout: 3, channels: 4, state: 1, groups: Some(1), extras: false, softplus: true },
];

impl Variant {
    fn layout(&self) -> &'static Layout {
        const ALL: &[Layout] = &LAYOUTS;
        &ALL[self.layout]
    }

    /// Which of the inputs there are.
    fn has(&self) -> [bool; 9] {
        let e = self.extras;
        [true, true, true, true, true, e, e, e, self.layout().state]
    }

    /// All inputs in their order from those that there are.
    fn all<'a, T>(&self, x: &'a [T]) -> [Option<&'a T>; 9] {
        let mut rest = x.iter();
        self.has().map(|has| if has { rest.next() } else { None })
    }

    fn reference<T>(&self, x: &[Vec<f64>], f: impl FnOnce(&reference::Inputs<'_, f64>) -> T) -> T {
        let [u, delta, a, b, c, d, z, delta_bias, h0] = self.all(x).map(|v| v.map(Vec::as_slice));
        let zero = vec![0.0; self.layout().lens.len() * self.channels * self.state];
        let spans = self.layout().spans();
        let get = |v: Option<&'_ [f64]>| v.map(<[f64]>::to_vec).unwrap_or_default();
        let [u, delta, a, b, c] = [u, delta, a, b, c].map(get);
        f(&reference::Inputs {
            seqs: &spans,
            channels: self.channels,
            state: self.state,
            groups: self.groups.unwrap_or(1),
            u: &u,
            delta: &delta,
            a: &a,
            b: &b,
            c: &c,
            d,
            z,
            delta_bias,
            softplus: self.softplus,
            h0: h0.unwrap_or(&zero),
        })
    }
}

impl ModuleOp for Conformance {
    fn name(&self) -> &'static str {
        "selective_scan"
    }

    fn cases(&self) -> Vec<String> {
        let name = |v: &Variant| format!("{}, groups {:?}, extras {}", v.layout().name, v.groups, v.extras);
        VARIANTS.iter().map(name).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let v = &VARIANTS[case];
        let ([b, t], n) = (v.layout().batch(), v.layout().lens.len());
        let (d, s) = (v.channels, v.state);
        let by_token = [b, t, d];
        let shared = match v.groups {
            Some(g) => vec![b, t, g, s],
            None => vec![b, t, s],
        };
        let step = if v.softplus { Fill::Normal(1.0) } else { Fill::Uniform(0.05, 1.0) };
        let normal = Fill::Normal(1.0);
        let all = [
            (&by_token[..], normal),
            (&by_token[..], step),
            (&[d, s][..], Fill::Uniform(-2.0, -0.05)),
            (&shared[..], normal),
            (&shared[..], normal),
            (&[d][..], normal),
            (&by_token[..], normal),
            (&[d][..], normal),
            (&[n, d, s][..], normal),
        ];
        let token = [true, true, false, true, true, false, true, false, true];
        let make = |(i, (dims, fill)): (usize, (&[usize], Fill))| match token[i] {
            true => ModuleInput::token(NAMES[i], dims, fill),
            false => ModuleInput::shared(NAMES[i], dims, fill),
        };
        all.into_iter().enumerate().map(make).zip(v.has()).filter(|(_, has)| *has).map(|(x, _)| x).collect()
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let v = &VARIANTS[case];
        let [.., d, z, delta_bias, initial_state] = v.all(x);
        let seqs = v.layout().seqs();
        let args = SelectiveArgs {
            d,
            z,
            delta_bias,
            initial_state,
            delta_softplus: v.softplus,
            seqs: seqs.as_ref(),
            ..SelectiveArgs::new(&x[0], &x[1], &x[2], &x[3], &x[4])
        };
        let out = selective_scan(&args)?;
        Ok(vec![out.o, out.final_state])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (y, last, _) = VARIANTS[case].reference(x, reference::forward);
        vec![y, last]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let v = &VARIANTS[case];
        let g = v.reference(x, |x| reference::backward(x, &d[0], &d[1]));
        let all = [g.u, g.delta, g.a, g.b, g.c, g.d, g.z, g.delta_bias, g.h0];
        all.into_iter().zip(v.has()).filter(|(_, has)| *has).map(|(g, _)| g).collect()
    }
}
