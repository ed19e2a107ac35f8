//! A state is a value: any way of feeding a sequence gives the same logits, rows do not influence each other, and
//! padding changes nothing.

mod common;

use common::*;
use flashlin::{Input, Logits, Model, ModelState};
use flashlin_ops::{Mode, PackedSeqs};
use flashlin_tensor::{Tensor, no_grad};

fn each(f: impl Fn(&str, &Model)) {
    for (name, keys) in variants() {
        f(&name, &model(&keys));
    }
}

fn feed(m: &Model, ids: &[u32], state: &mut ModelState, pieces: &[usize], mode: Mode) -> Tensor {
    let mut parts = Vec::new();
    let mut at = 0;
    for &n in pieces {
        parts.push(logits(m, &Input::row(&ids[at..at + n]).unwrap(), Some(state), mode));
        at += n;
    }
    assert_eq!(at, ids.len());
    Tensor::cat(&parts.iter().collect::<Vec<_>>(), 1).unwrap()
}

#[test]
fn pieces_and_single_tokens_equal_one_pass() {
    let ids = tokens(1, 75);
    each(|name, m| {
        let whole = logits(m, &Input::row(&ids).unwrap(), None, Mode::Chunk);
        assert_close(
            &format!("{name} recurrent"),
            &logits(m, &Input::row(&ids).unwrap(), None, Mode::Recurrent),
            &whole,
        );
        for (pieces, mode) in [
            (vec![75], Mode::Chunk),
            (vec![1, 2, 0, 64, 8], Mode::Auto),
            (vec![10, 65], Mode::Chunk),
            (vec![1; 75], Mode::Auto),
        ] {
            let mut state = m.new_state(1).unwrap();
            let out = feed(m, &ids, &mut state, &pieces, mode);
            assert_close(&format!("{name} {} pieces", pieces.len()), &out, &whole);
            assert_eq!(state.seen(), [75]);
        }
    });
}

#[test]
fn forks_are_independent() {
    let ids = tokens(2, 40);
    each(|name, m| {
        let mut state = m.new_state(1).unwrap();
        feed(m, &ids[..30], &mut state, &[30], Mode::Auto);
        let mut fork = state.fork().unwrap();
        feed(m, &tokens(9, 5), &mut fork, &[5], Mode::Auto);
        let after = feed(m, &ids[30..], &mut state, &[10], Mode::Auto);
        let whole = logits(m, &Input::row(&ids).unwrap(), None, Mode::Auto);
        assert_close(name, &after, &whole.narrow(1, 30, 10).unwrap());
    });
}

#[test]
fn states_restore_from_their_named_tensors() {
    let ids = tokens(3, 33);
    each(|name, m| {
        let mut state = m.new_state(1).unwrap();
        feed(m, &ids[..20], &mut state, &[20], Mode::Auto);
        let saved: Vec<(String, Tensor)> =
            state.named().into_iter().map(|(n, t)| (n, t.value.tensor().copy().unwrap())).collect();
        let mut other = m.new_state(1).unwrap();
        let load =
            |n: &str, _: &flashlin::StateSpec| Ok(saved.iter().find(|(k, _)| k == n).unwrap().1.clone());
        other.restore(state.seen().to_vec(), load).unwrap();
        let a = feed(m, &ids[20..], &mut state, &[13], Mode::Auto);
        let b = feed(m, &ids[20..], &mut other, &[13], Mode::Auto);
        assert_eq!(a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap(), "{name}");
    });
}

#[test]
fn packed_sequences_equal_separate_ones() {
    let docs = [tokens(4, 17), tokens(5, 0), tokens(6, 70), tokens(7, 3)];
    each(|name, m| {
        for mode in [Mode::Chunk, Mode::Recurrent] {
            let packed = logits(m, &Input::packed(&docs).unwrap(), None, mode);
            let mut at = 0;
            for doc in &docs {
                let alone = logits(m, &Input::row(doc).unwrap(), None, mode);
                assert_close(&format!("{name} {mode}"), &packed.narrow(1, at, doc.len()).unwrap(), &alone);
                at += doc.len();
            }
        }
    });
}

#[test]
fn batch_rows_do_not_influence_each_other_even_with_a_state() {
    let rows = [tokens(8, 12), tokens(9, 12), tokens(10, 12)];
    each(|name, m| {
        let flat: Vec<i64> = rows.iter().flatten().map(|&t| i64::from(t)).collect();
        let batch = Tensor::from_vec(flat, &[3, 12]).unwrap();
        let mut state = m.new_state(3).unwrap();
        let first = logits(m, &Input::ids(batch.narrow(1, 0, 7).unwrap()), Some(&mut state), Mode::Auto);
        let last = logits(m, &Input::ids(batch.narrow(1, 7, 5).unwrap()), Some(&mut state), Mode::Auto);
        let both = Tensor::cat(&[&first, &last], 1).unwrap();
        for (r, row) in rows.iter().enumerate() {
            let alone = logits(m, &Input::row(row).unwrap(), None, Mode::Auto);
            assert_close(&format!("{name} row {r}"), &both.narrow(0, r, 1).unwrap(), &alone);
        }
        // Rows can be taken out and go on alone.
        let mut two = state.select(&[2, 0]).unwrap();
        let next = Tensor::from_vec(vec![5i64, 6], &[2, 1]).unwrap();
        let out = logits(m, &Input::ids(next), Some(&mut two), Mode::Auto);
        let alone: Vec<u32> = rows[2].iter().copied().chain([5]).collect();
        let want = logits(m, &Input::row(&alone).unwrap(), None, Mode::Auto).narrow(1, 12, 1).unwrap();
        assert_close(name, &out.narrow(0, 0, 1).unwrap(), &want);
    });
}

/// A padded batch of the given rows; `left` puts the padding before the tokens.
fn padded(rows: &[Vec<u32>], len: usize, left: bool) -> (Tensor, Tensor) {
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for r in rows {
        let pad = len - r.len();
        let (before, after) = if left { (pad, 0) } else { (0, pad) };
        ids.extend(
            std::iter::repeat_n(0i64, before)
                .chain(r.iter().map(|&t| i64::from(t)))
                .chain(std::iter::repeat_n(0, after)),
        );
        mask.extend(
            std::iter::repeat_n(0u8, before).chain(r.iter().map(|_| 1)).chain(std::iter::repeat_n(0, after)),
        );
    }
    (Tensor::from_vec(ids, &[rows.len(), len]).unwrap(), Tensor::from_vec(mask, &[rows.len(), len]).unwrap())
}

#[test]
fn padding_on_either_side_changes_nothing() {
    let rows = [tokens(11, 9), tokens(12, 14), tokens(13, 1)];
    each(|name, m| {
        let mut grads = Vec::new();
        for left in [false, true] {
            let (ids, mask) = padded(&rows, 14, left);
            let mut state = m.new_state(3).unwrap();
            let input = Input { mask: Some(mask.clone()), ..Input::ids(ids.clone()) };
            let out = logits(m, &input, Some(&mut state), Mode::Auto);
            assert_eq!(state.seen(), [9, 14, 1]);
            for (r, row) in rows.iter().enumerate() {
                let alone = logits(m, &Input::row(row).unwrap(), None, Mode::Auto);
                let start = if left { 14 - row.len() } else { 0 };
                let here = out.narrow(0, r, 1).unwrap().narrow(1, start, row.len()).unwrap();
                assert_close(&format!("{name} left {left} row {r}"), &here, &alone);
            }
            // Generation goes on from the state as if there had been no padding.
            let next = Tensor::from_vec(vec![1i64, 2, 3], &[3, 1]).unwrap();
            let step = logits(m, &Input::ids(next), Some(&mut state), Mode::Auto);
            let alone: Vec<u32> = rows[0].iter().copied().chain([1]).collect();
            let want = logits(m, &Input::row(&alone).unwrap(), None, Mode::Auto).narrow(1, 9, 1).unwrap();
            assert_close(&format!("{name} step"), &step.narrow(0, 0, 1).unwrap(), &want);

            let input = Input { mask: Some(mask), ..Input::ids(ids.clone()) }.with_labels(ids);
            let opts = flashlin::ForwardOptions { logits: Logits::None, ..options(Mode::Auto) };
            let out = m.forward(&input, None, &opts).unwrap();
            assert_eq!(out.loss_tokens, 8 + 13, "labels of padding do not count");
            grads.push(out.loss.unwrap().backward().unwrap());
        }
        let packed = Input::packed(&rows).unwrap();
        let ids = match &packed.tokens {
            flashlin::Tokens::Ids(t) => t.clone(),
            other => panic!("{other:?}"),
        };
        let opts = flashlin::ForwardOptions { logits: Logits::None, ..options(Mode::Auto) };
        let want =
            m.forward(&packed.with_labels(ids), None, &opts).unwrap().loss.unwrap().backward().unwrap();
        for p in m.params() {
            for g in &grads {
                if let Some(want) = want.get_param(p) {
                    assert_close(&format!("{name} grad {}", p.name()), g.get_param(p).unwrap(), want);
                }
            }
        }
    });
}

#[test]
fn a_recurrent_state_does_not_grow() {
    let ids = tokens(14, 90);
    for (name, keys) in variants() {
        let m = model(&keys);
        let mut state = m.new_state(1).unwrap();
        feed(&m, &ids[..30], &mut state, &[5; 6], Mode::Auto);
        let before = state.bytes();
        feed(&m, &ids[30..], &mut state, &[5; 12], Mode::Auto);
        let after = state.bytes();
        let softmax = ["transformer", "forgetting_transformer", "mla", "path_attn", "nsa"];
        let hybrid = ["attn", "ska_attn"].iter().any(|key| keys.get(key).is_some());
        let attention = softmax.iter().any(|family| name.starts_with(family)) || hybrid;
        let windowed = (keys.get("window_size").is_some() && !name.starts_with("nsa"))
            || keys.get("ska_attn").is_some()
            || keys.get("attn").is_some_and(|a| a.to_string().contains("window_size"));
        match (attention, windowed) {
            (false, _) => assert_eq!(after, before, "{name}"),
            (true, true) => assert!(after <= 2 * before, "{name}: {before} -> {after}"),
            (true, false) => assert!(after > before, "{name}"),
        }
    }
}

#[test]
fn states_that_do_not_fit_are_errors() {
    let (_, keys) = &variants()[0];
    let m = model(keys);
    let mut state = m.new_state(2).unwrap();
    let one = Input::row(&[1, 2]).unwrap();
    let msg = no_grad(|| m.forward(&one, Some(&mut state), &options(Mode::Auto))).unwrap_err().to_string();
    assert!(msg.contains("2 rows"), "{msg}");
    let bad = Input { seqs: Some(PackedSeqs::from_lens(&[1])), ..Input::row(&[1, 2]).unwrap() };
    assert!(m.forward(&bad, None, &options(Mode::Auto)).is_err());
    let msg = m.forward(&Input::row(&[61]).unwrap(), None, &options(Mode::Auto)).unwrap_err().to_string();
    assert!(msg.contains("61"), "{msg}");
}
