//! The operators in the conformance suite.

use flashlin_tensor::{Result, Var};

use super::reference::{self, Dims};
use super::{DeltaProductArgs, DplrArgs, Settings, delta_product, dplr};
use crate::conformance::{
    Arrays, Case, Fill, Input, Number, Outcome, Outputs, SequenceOp, Shape, Traced, Vars, dot, trace,
};
use crate::{RecurrentState, SeqOutput};

/// [`delta_product`] for the conformance suite.
#[derive(Clone, Copy, Debug)]
pub struct Product;

/// [`dplr`] with and without a decay for the conformance suite.
#[derive(Clone, Copy, Debug)]
pub struct Generalised;

/// Factor on the output in the suite: not the default, so that a forgotten scale shows.
const SCALE: f64 = 0.3;
const L2_EPS: f64 = 1e-6;
const SHAPES: [Shape; 3] =
    [Shape { h: 2, hv: 2, k: 8, v: 8 }, Shape { h: 1, hv: 2, k: 5, v: 9 }, Shape { h: 2, hv: 2, k: 1, v: 2 }];

/// (name, steps, gate, activations inside)
const PRODUCTS: [(&str, usize, bool, bool); 3] =
    [("gated, 2 steps", 2, true, false), ("3 steps", 3, false, false), ("layer", 2, true, true)];

fn dims(case: &Case, t: usize) -> Dims {
    let Shape { h, hv, k, v } = case.shape;
    Dims { t, h, hv, k, v }
}

fn settings<'a>(case: &'a Case, initial: Option<&'a RecurrentState>) -> Settings<'a> {
    Settings {
        scale: Some(SCALE),
        initial_state: initial,
        output_final_state: true,
        seqs: case.packed.as_ref(),
        layout: case.layout,
        mode: case.mode,
        chunk_size: case.chunk_size,
    }
}

fn initial(case: &Case, vars: &Vars) -> Option<RecurrentState> {
    vars.find("initial_state").map(|v| RecurrentState { value: v.clone(), layout: case.layout })
}

fn outputs(out: SeqOutput) -> Outputs {
    Outputs { o: out.o, state: out.final_state.map(|s| s.value) }
}

/// Values and gradients of a reference over all sequences of a case: `one(inputs, first token, tokens, initial state)`.
fn traced<F>(case: &Case, x: &Arrays, d_o: &[f64], d_state: &[f64], names: &[&'static str], one: F) -> Outcome
where
    F: Fn(&[&[Traced]], usize, usize, Option<&[Traced]>) -> [Vec<Traced>; 2],
{
    let present: Vec<&'static str> = names.iter().copied().filter(|n| x.find(n).is_some()).collect();
    let mut all: Vec<Vec<f64>> = present.iter().map(|n| x.get(n).to_vec()).collect();
    all.extend(x.find("initial_state").map(<[f64]>::to_vec));
    let size = case.shape.hv * case.shape.k * case.shape.v;
    let formula = |vars: &[Vec<_>]| {
        let inputs: Vec<&[_]> = vars[..present.len()].iter().map(Vec::as_slice).collect();
        let mut out = [Vec::new(), Vec::new()];
        for (n, (start, len)) in case.spans().into_iter().enumerate() {
            let h0 = vars.get(present.len()).map(|h| &h[n * size..][..size]);
            let [o, state] = one(&inputs, start, len, h0);
            out[0].extend(o);
            out[1].extend(state);
        }
        out.into_iter().collect()
    };
    let (values, grads) = trace(&all, &[d_o.to_vec(), d_state.to_vec()], formula);
    let mut outcome = Outcome { o: values[0].clone(), state: values[1].clone(), ..Outcome::default() };
    let keys = present.iter().copied().chain(x.find("initial_state").map(|_| "initial_state"));
    outcome.grads.extend(keys.zip(grads));
    outcome
}

/// Rows of the tokens `start .. start + len` of an array with `width` numbers a token.
fn rows<N>(x: &[N], width: usize, start: usize, len: usize) -> &[N] {
    &x[start * width..][..len * width]
}

fn normalised<N: Number>(x: &[N], width: usize, on: bool) -> Vec<N> {
    let one = |row: &[N]| {
        let length = (dot(row, row) + N::of(L2_EPS)).sqrt();
        row.iter().map(|&x| if on { x / length } else { x }).collect::<Vec<_>>()
    };
    x.chunks(width).flat_map(one).collect()
}

/// Keys short enough to keep the recurrence stable.
fn keys(k: usize) -> Fill {
    Fill::Uniform(-(k as f64).powf(-0.5), (k as f64).powf(-0.5))
}

impl SequenceOp for Product {
    fn name(&self) -> &'static str {
        "delta_product"
    }

    fn variants(&self) -> Vec<&'static str> {
        PRODUCTS.iter().map(|p| p.0).collect()
    }

    fn shapes(&self) -> Vec<Shape> {
        SHAPES.to_vec()
    }

    fn chunk_sizes(&self) -> Vec<usize> {
        vec![16, 32]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let (_, n, gate, inside) = PRODUCTS[case.variant];
        let s = case.shape;
        let key = if inside && s.k > 1 { Fill::Normal(1.0) } else { keys(s.k) };
        let beta = if inside { Fill::Normal(1.0) } else { Fill::Uniform(0.0, 1.0) };
        let mut all = vec![
            Input::token(case, "q", &[s.h, s.k], Fill::Normal(1.0)),
            Input::token(case, "k", &[n, s.h, s.k], key),
            Input::token(case, "v", &[n, s.hv, s.v], Fill::Normal(1.0)),
            Input::token(case, "beta", &[n, s.hv], beta),
        ];
        if gate {
            all.push(Input::precise_token(case, "g", &[s.hv], Fill::LogDecay));
        }
        all
    }

    fn run(&self, case: &Case, vars: &Vars) -> Result<Outputs> {
        let (_, n, _, inside) = PRODUCTS[case.variant];
        let flat = |name| -> Result<Var> {
            let x = vars.get(name);
            let dims: Vec<usize> =
                [case.b, case.t * n].into_iter().chain(x.dims()[3..].iter().copied()).collect();
            x.reshape(&dims)
        };
        let (k, v, beta) = (flat("k")?, flat("v")?, flat("beta")?);
        let first = initial(case, vars);
        let out = delta_product(DeltaProductArgs {
            g: vars.find("g"),
            beta_sigmoid: inside,
            allow_neg_eigval: inside,
            qk_l2norm: inside && case.shape.k > 1,
            settings: settings(case, first.as_ref()),
            ..DeltaProductArgs::new(vars.get("q"), &k, &v, &beta, n)
        })?;
        Ok(outputs(out))
    }

    fn reference(&self, case: &Case, x: &Arrays, d_o: &[f64], d_state: &[f64]) -> Outcome {
        let (_, n, gate, inside) = PRODUCTS[case.variant];
        let s = case.shape;
        traced(case, x, d_o, d_state, &["q", "k", "v", "beta", "g"], |x, start, len, h0| {
            let norm = inside && s.k > 1;
            let beta: Vec<_> = rows(x[3], n * s.hv, start, len)
                .iter()
                .map(|&b| if inside { b.sigmoid() * Number::of(2.0) } else { b })
                .collect();
            let (o, state) = reference::Product {
                dims: dims(case, len),
                n,
                q: &normalised(rows(x[0], s.h * s.k, start, len), s.k, norm),
                k: &normalised(rows(x[1], n * s.h * s.k, start, len), s.k, norm),
                v: rows(x[2], n * s.hv * s.v, start, len),
                beta: &beta,
                g: gate.then(|| rows(x[4], s.hv, start, len)),
                h0,
                scale: SCALE,
            }
            .forward();
            [o, state]
        })
    }
}

impl SequenceOp for Generalised {
    fn name(&self) -> &'static str {
        "dplr"
    }

    fn variants(&self) -> Vec<&'static str> {
        vec!["dplr", "iplr"]
    }

    fn shapes(&self) -> Vec<Shape> {
        SHAPES.to_vec()
    }

    fn chunk_sizes(&self) -> Vec<usize> {
        vec![16, 64]
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let s = case.shape;
        // |a| |b| < 1/2, so that IPLR, which has no decay, stays bounded.
        let narrow = Fill::Uniform(-0.7 * (s.k as f64).powf(-0.5), 0.7 * (s.k as f64).powf(-0.5));
        let mut all = vec![
            Input::token(case, "q", &[s.h, s.k], Fill::Normal(1.0)),
            Input::token(case, "k", &[s.h, s.k], keys(s.k)),
            Input::token(case, "v", &[s.hv, s.v], Fill::Normal(1.0)),
            Input::token(case, "a", &[s.h, s.k], narrow),
            Input::token(case, "b", &[s.h, s.k], narrow),
        ];
        if case.variant == 0 {
            all.push(Input::precise_token(case, "g", &[s.hv, s.k], Fill::LogDecay));
        }
        all
    }

    fn run(&self, case: &Case, vars: &Vars) -> Result<Outputs> {
        let first = initial(case, vars);
        let get = |name| vars.get(name);
        let out = dplr(DplrArgs {
            g: vars.find("g"),
            settings: settings(case, first.as_ref()),
            ..DplrArgs::new(get("q"), get("k"), get("v"), get("a"), get("b"))
        })?;
        Ok(outputs(out))
    }

    fn reference(&self, case: &Case, x: &Arrays, d_o: &[f64], d_state: &[f64]) -> Outcome {
        let s = case.shape;
        traced(case, x, d_o, d_state, &["q", "k", "v", "a", "b", "g"], |x, start, len, h0| {
            let key = |i: usize| rows(x[i], s.h * s.k, start, len);
            let (o, state) = reference::Generalised {
                dims: dims(case, len),
                q: key(0),
                k: key(1),
                v: rows(x[2], s.hv * s.v, start, len),
                a: key(3),
                b: key(4),
                g: x.get(5).map(|g| rows(g, s.hv * s.k, start, len)),
                h0,
                scale: SCALE,
            }
            .forward();
            [o, state]
        })
    }
}
