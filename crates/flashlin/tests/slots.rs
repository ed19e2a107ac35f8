//! Sequences in slots: they come, go and share steps, and none of it shows in their numbers.

mod common;

use common::*;
use flashlin::{ForwardOptions, Input, Logits, Model, ModelState};
use flashlin_tensor::no_grad;

const SLOTS: usize = 21;

/// Families whose steps are bit-exact in any company. MLA's are not: its decode step multiplies by matrices in batches, whose order of
/// summation follows the number of rows. Others have not been examined.
const EXACT: [&str; 14] = [
    "abc",
    "delta_net",
    "forgetting_transformer",
    "gated_deltanet",
    "gla",
    "gsa",
    "hgrn",
    "hgrn2",
    "kda",
    "lightnet",
    "linear_attn",
    "mamba2",
    "retnet",
    "transformer",
];

/// One step of the slots that have a token; logits of each, in order of the slots.
fn step(m: &Model, pool: &mut ModelState, next: &[Option<u32>]) -> Vec<Vec<f64>> {
    let pieces: Vec<Vec<u32>> = next.iter().map(|id| id.iter().copied().collect()).collect();
    let options = ForwardOptions { rows_alike: true, ..ForwardOptions::default() };
    let out = no_grad(|| m.forward(&Input::packed(&pieces).unwrap(), Some(pool), &options)).unwrap();
    let logits = out.logits.unwrap().into_tensor();
    (0..logits.dim(1)).map(|i| logits.narrow(1, i, 1).unwrap().to_f64_vec().unwrap()).collect()
}

/// The state after a prompt, made alone.
fn after(m: &Model, prompt: &[u32]) -> ModelState {
    let mut state = m.new_state(1).unwrap();
    let options = ForwardOptions { logits: Logits::Last(1), ..ForwardOptions::default() };
    no_grad(|| m.forward(&Input::row(prompt).unwrap(), Some(&mut state), &options)).unwrap();
    state
}

#[test]
fn a_sequence_in_a_slot_has_the_bits_that_it_has_alone() {
    for (name, keys) in variants() {
        if !EXACT.iter().any(|family| keys["model_type"] == *family) {
            println!("{name}: not examined");
            continue;
        }
        let m = model(&keys);
        let (prompt, next) = (tokens(1, 37), tokens(2, 6));
        let mut alone = m.new_state(1).unwrap();
        alone.put(0, &after(&m, &prompt), 0).unwrap();
        let want: Vec<_> = next.iter().map(|&id| step(&m, &mut alone, &[Some(id)]).remove(0)).collect();

        let mut pool = m.new_state(SLOTS).unwrap();
        // Others are there before it, come while it runs, pause, and leave; a longer one makes caches grow.
        for slot in (0..SLOTS).filter(|s| *s != 7 && *s != 9) {
            pool.put(slot, &after(&m, &tokens(10 + slot as u64, 3 + slot)), 0).unwrap();
        }
        let mut others = vec![Some(3); SLOTS];
        (others[7], others[9]) = (None, None);
        step(&m, &mut pool, &others);
        pool.put(7, &after(&m, &prompt), 0).unwrap();
        for (i, &id) in next.iter().enumerate() {
            if i == 2 {
                pool.put(9, &after(&m, &tokens(5, 90)), 0).unwrap();
                others[9] = Some(1);
            }
            if i == 4 {
                pool.release(0).unwrap();
                (0..SLOTS).filter(|s| *s != 7 && s % 3 > 0).for_each(|s| others[s] = None);
                others[0] = None;
            }
            let mut all = others.clone();
            all[7] = Some(id);
            let at = all[..7].iter().flatten().count();
            let got = step(&m, &mut pool, &all);
            assert!(got[at] == want[i], "{name}: step {i} among {} rows", got.len());
        }
        assert_eq!((pool.seen()[7], pool.seen()[0]), (43, 0));
    }
}

#[test]
fn states_of_other_models_and_rows_that_are_not_there_are_refused() {
    let all = variants();
    let (a, b) = (model(&all[0].1), model(&all[all.len() - 1].1));
    let mut pool = a.new_state(2).unwrap();
    assert!(pool.put(2, &a.new_state(1).unwrap(), 0).is_err());
    assert!(pool.put(0, &a.new_state(1).unwrap(), 1).is_err());
    assert!(pool.put(0, &b.new_state(1).unwrap(), 0).is_err());
    assert!(pool.release(5).is_err());
}
