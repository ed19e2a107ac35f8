//! Slot attention as the conformance suite sees it: both forms, dense and packed.

use flashlin_tensor::Var;

use super::{SlotArgs, SlotState, reference, slot_attention};
use crate::{
    Mode, PackedSeqs, RecurrentState, Result, StateLayout,
    conformance::{Fill, ModuleInput, ModuleOp},
};

/// [`slot_attention`] from given states.
#[derive(Clone, Copy, Debug)]
pub struct Conformance;

/// Lengths of the sequences, packed or not, and the form.
const CASES: [(&[usize], bool, Mode); 4] = [
    (&[9, 9], false, Mode::Recurrent),
    (&[9, 9], false, Mode::Chunk),
    (&[5, 0, 67, 1], true, Mode::Chunk),
    (&[5, 0, 7, 1], true, Mode::Recurrent),
];
const HEADS: usize = 2;
/// K, V, M
const DIMS: [usize; 3] = [3, 5, 4];
const SCALE: f64 = 0.7;
const NAMES: [&str; 7] = ["q", "k", "v", "s", "g", "initial_keys", "initial_values"];

fn with<T>(case: usize, x: &[Vec<f64>], f: impl FnOnce(&reference::Inputs<f64>) -> T) -> T {
    let seqs: Vec<_> = PackedSeqs::from_lens(CASES[case].0).ranges().map(|r| (r.start, r.len())).collect();
    f(&reference::Inputs {
        seqs: &seqs,
        heads: HEADS,
        dims: DIMS,
        scale: SCALE,
        q: &x[0],
        k: &x[1],
        v: &x[2],
        s: &x[3],
        g: &x[4],
        keys: &x[5],
        values: &x[6],
    })
}

impl ModuleOp for Conformance {
    fn name(&self) -> &'static str {
        "slot_attention"
    }

    fn cases(&self) -> Vec<String> {
        CASES.iter().map(|(lens, packed, mode)| format!("{mode} {lens:?} packed {packed}")).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let (lens, packed, _) = CASES[case];
        let (n, total) = (lens.len(), lens.iter().sum::<usize>());
        let [b, t] = if packed { [1, total] } else { [n, lens[0]] };
        let [k, v, m] = DIMS;
        let (normal, h) = (Fill::Normal(1.0), HEADS);
        let all = [
            (vec![b, t, h, k], normal),
            (vec![b, t, h, k], normal),
            (vec![b, t, h, v], normal),
            (vec![b, t, h, m], Fill::Uniform(0.0, 1.0)),
            (vec![b, t, h, m], Fill::LogDecay),
            (vec![n, h, k, m], normal),
            (vec![n, h, m, v], normal),
        ];
        NAMES.into_iter().zip(all).map(|(name, (dims, fill))| ModuleInput::token(name, &dims, fill)).collect()
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let (lens, packed, mode) = CASES[case];
        let seqs = packed.then(|| PackedSeqs::from_lens(lens));
        let state = |v: &Var| -> Result<RecurrentState> {
            Ok(RecurrentState { value: v.to_dtype(v.dtype().accumulator())?, layout: StateLayout::KV })
        };
        let mut slots = SlotState { keys: state(&x[5])?, values: state(&x[6])? };
        let args = SlotArgs {
            scale: Some(SCALE),
            seqs: seqs.as_ref(),
            mode,
            ..SlotArgs::new(&x[0], &x[1], &x[2], &x[3], &x[4])
        };
        let o = slot_attention(&args, Some(&mut slots))?;
        Ok(vec![o, slots.keys.value, slots.values.value])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let out = with(case, x, reference::forward);
        vec![out.o, out.keys, out.values]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d: &[Vec<f64>]) -> Vec<Vec<f64>> {
        with(case, x, |x| reference::backward(x, [&d[0], &d[1], &d[2]])).into()
    }
}
