//! The family as the conformance suite sees it.

use std::collections::BTreeMap;

use super::reference;
use super::{
    DecayArgs, decay_attention, gla, lightning_attn, linear_attn, retention, rwkv6, simple_gla, ssd,
};
use crate::conformance::{Arrays, Case, Fill, Input, Outcome, Outputs, SequenceOp, Vars};
use flashlin_tensor::DType;

use crate::{RecurrentState, Result};

/// [`decay_attention`] with every combination of gates that a model uses, and the rest of the kinds.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

/// Variant name, and the optional inputs it has (`gk/h`: gk with the heads of q). A variant that has an operator's name is
/// run through that operator.
const VARIANTS: &[(&str, &[&str])] = &[
    ("linear_attn", &[]),
    ("retention", &[]),
    ("lightning_attn", &[]),
    ("constant", &["g_gamma"]),
    ("simple_gla", &["g"]),
    ("ssd", &["g"]),
    ("gla", &["gk"]),
    ("gla grouped", &["gk/h"]),
    ("gla kv", &["gk", "gv"]),
    ("gv", &["gv"]),
    ("g gv", &["g", "gv"]),
    ("all gates", &["g", "g_gamma", "gk", "gv"]),
    ("rwkv6", &["gk", "bonus"]),
    ("bonus only", &["bonus"]),
    ("g gv bonus", &["g", "gv", "bonus"]),
];

/// Factor on q in the suite: not the default, so that a forgotten scale shows.
const SCALE: f64 = 0.3;

/// Layer and layers of lightning attention.
const LAYER: (usize, usize) = (1, 4);

impl Conformance {
    /// The decay that an operator fixes for its heads, from the papers' formulas.
    fn fixed_decay(case: &Case) -> Option<Vec<f64>> {
        let heads = case.shape.hv;
        // As the operator rounds it.
        let rounded = |g: f64| if case.accumulator() == DType::F64 { g } else { g as f32 as f64 };
        let of = |f: &dyn Fn(f64) -> f64| Some((0..heads).map(|h| rounded(f(h as f64))).collect());
        match VARIANTS[case.variant].0 {
            "retention" => of(&|h| (1.0 - 2f64.powf(-5.0 - h)).ln()),
            "lightning_attn" => {
                let rest = 1.0 - LAYER.0 as f64 / LAYER.1 as f64;
                of(&|h| -8.0 * h / heads as f64 * rest)
            }
            _ => None,
        }
    }

    fn has(case: &Case, input: &str) -> bool {
        VARIANTS[case.variant].1.contains(&input)
    }
}

impl SequenceOp for Conformance {
    fn name(&self) -> &'static str {
        "decay"
    }

    fn variants(&self) -> Vec<&'static str> {
        VARIANTS.iter().map(|v| v.0).collect()
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let s = case.shape;
        let normal = Fill::Normal(1.0);
        let mut all = vec![
            Input::token(case, "q", &[s.h, s.k], normal),
            Input::token(case, "k", &[s.h, s.k], normal),
            Input::token(case, "v", &[s.hv, s.v], normal),
        ];
        if Self::has(case, "g") {
            all.push(Input::precise_token(case, "g", &[s.hv], Fill::LogDecay));
        }
        if Self::has(case, "g_gamma") {
            all.push(Input::shared(case, "g_gamma", &[s.hv], Fill::LogDecay));
        }
        if Self::has(case, "gk") {
            all.push(Input::precise_token(case, "gk", &[s.hv, s.k], Fill::LogDecay));
        }
        if Self::has(case, "gk/h") {
            all.push(Input::token(case, "gk", &[s.h, s.k], Fill::LogDecay));
        }
        if Self::has(case, "gv") {
            all.push(Input::precise_token(case, "gv", &[s.hv, s.v], Fill::LogDecay));
        }
        if Self::has(case, "bonus") {
            all.push(Input::shared(case, "bonus", &[s.h, s.k], normal));
        }
        all
    }

    fn run(&self, case: &Case, vars: &Vars) -> Result<Outputs> {
        let state = |v: &flashlin_tensor::Var| RecurrentState { value: v.clone(), layout: case.layout };
        let initial = vars.find("initial_state").map(state);
        let args = DecayArgs {
            g: vars.find("g"),
            g_gamma: vars.find("g_gamma"),
            gk: vars.find("gk"),
            gv: vars.find("gv"),
            bonus: vars.find("bonus"),
            scale: Some(SCALE),
            initial_state: initial.as_ref(),
            output_final_state: true,
            seqs: case.packed.as_ref(),
            layout: case.layout,
            mode: case.mode,
            chunk_size: case.chunk_size,
            ..DecayArgs::new(vars.get("q"), vars.get("k"), vars.get("v"))
        };
        let out = match VARIANTS[case.variant].0 {
            "linear_attn" => linear_attn(args),
            "retention" => retention(args),
            "lightning_attn" => lightning_attn(args, LAYER.0, LAYER.1),
            "simple_gla" => simple_gla(args),
            "gla" => gla(args),
            "rwkv6" => rwkv6(args),
            "ssd" => ssd(args),
            _ => decay_attention(args),
        }?;
        Ok(Outputs { o: out.o, state: out.final_state.map(|s| s.value) })
    }

    fn reference(&self, case: &Case, x: &Arrays, d_o: &[f64], d_state: &[f64]) -> Outcome {
        let (spans, fixed) = (case.spans(), Self::fixed_decay(case));
        let inputs = reference::Inputs {
            seqs: &spans,
            heads: case.shape.h,
            value_heads: case.shape.hv,
            key_dim: case.shape.k,
            value_dim: case.shape.v,
            scale: SCALE,
            q: x.get("q"),
            k: x.get("k"),
            v: x.get("v"),
            g: x.find("g"),
            g_gamma: x.find("g_gamma").or(fixed.as_deref()),
            gk: x.find("gk"),
            gv: x.find("gv"),
            u: x.find("bonus"),
            h0: x.find("initial_state"),
        };
        let (o, state) = reference::forward(&inputs);
        let g = reference::backward(&inputs, d_o, Some(d_state));
        let mut grads = BTreeMap::from([("q", g.q), ("k", g.k), ("v", g.v)]);
        let g_gamma = g.g_gamma.filter(|_| fixed.is_none());
        let optional = [("g", g.g), ("g_gamma", g_gamma), ("gk", g.gk), ("gv", g.gv), ("bonus", g.u)];
        grads.extend(optional.into_iter().filter_map(|(name, grad)| Some((name, grad?))));
        if inputs.h0.is_some() {
            grads.insert("initial_state", g.h0);
        }
        Outcome { o, state, grads }
    }
}
