//! Slot attention in the conformance suite, and ABC against the paper's formula.

use flashlin_tensor::{DType, Device, Tensor, Var};

use super::*;
use crate::testing::{close, randn};

crate::module_conformance!(suite, crate::slots::conform::Conformance);

/// ABC as its paper has it, without any recurrence: slots are averages of all tokens so far, weighted by e^x.
fn paper(lens: &[usize], [k, v, m]: [usize; 3], [q, keys, values, x]: [&[f64]; 4], scale: f64) -> Vec<f64> {
    let mut out = Vec::new();
    let mut start = 0;
    for &len in lens {
        for t in start..start + len {
            let average = |of: &[f64], width: usize, slot: usize| -> Vec<f64> {
                let weight = |i: usize| x[i * m + slot].exp();
                let total: f64 = (start..=t).map(weight).sum();
                let one = |c: usize| (start..=t).map(|i| weight(i) * of[i * width + c]).sum::<f64>() / total;
                (0..width).map(one).collect()
            };
            let score = |slot: usize| {
                let key = average(keys, k, slot);
                (scale * (0..k).map(|c| q[t * k + c] * key[c]).sum::<f64>()).exp()
            };
            let scores: Vec<f64> = (0..m).map(score).collect();
            let total: f64 = scores.iter().sum();
            let read = |c: usize| (0..m).map(|j| scores[j] / total * average(values, v, j)[c]).sum::<f64>();
            out.extend((0..v).map(read));
        }
        start += len;
    }
    out
}

#[test]
fn abc_is_the_papers_and_continues_anywhere() {
    let (dims @ [k, v, m], lens) = ([3, 5, 4], [40usize, 0, 30]);
    let of = |seed, d| randn(seed, &[1, 70, 1, d], DType::F64);
    let all = [of(1, k), of(2, k), of(3, v), of(4, m).affine(3.0, 0.0).unwrap()];
    let data = all.each_ref().map(|t| t.to_f64_vec().unwrap());
    let want = paper(&lens, dims, data.each_ref().map(|d| &d[..]), 0.6);
    let want = Tensor::from_vec(want, &[1, 70, 1, v]).unwrap();

    let run = |x: &[Var; 4], seqs: &PackedSeqs, before: Option<(SlotState, Var, Vec<bool>)>| {
        let (mut slots, z, seen) = before.unwrap_or_else(|| {
            let zero = |r, c| Tensor::zeros(&[3, 1, r, c], DType::F64, &Device::Cpu).unwrap().into();
            let state = |r, c| RecurrentState { value: zero(r, c), layout: StateLayout::KV };
            let z = Tensor::full(7.0, &[3, m], DType::F64, &Device::Cpu).unwrap().into();
            (SlotState { keys: state(k, m), values: state(m, v) }, z, vec![false; 3])
        });
        let running = running_softmax(&x[3], Some((&z, &seen)), Some(seqs)).unwrap();
        let args = SlotArgs {
            scale: Some(0.6),
            seqs: Some(seqs),
            ..SlotArgs::new(&x[0], &x[1], &x[2], &running.share, &running.log_decay)
        };
        let o = slot_attention(&args, Some(&mut slots)).unwrap();
        (o, slots, running.state)
    };
    let vars = all.each_ref().map(|t| Var::constant(t.clone()));
    let whole = PackedSeqs::from_lens(&lens);
    close("whole", run(&vars, &whole, None).0.tensor(), &want, 1e-12);
    // The first sequence in two pieces, the third in one and nothing.
    let piece = |from: usize, n: usize| vars.each_ref().map(|x| x.narrow(1, from, n).unwrap());
    let (first, slots, z) = run(&piece(0, 25), &PackedSeqs::from_lens(&[25, 0, 0]), None);
    let rest = PackedSeqs::from_lens(&[15, 0, 30]);
    let (second, ..) = run(&piece(25, 45), &rest, Some((slots, z, vec![true, false, false])));
    let both = Var::cat(&[&first, &second], 1).unwrap();
    close("pieces", both.tensor(), &want, 1e-12);
}

#[test]
fn running_softmax_refuses_what_does_not_fit() {
    let x = Var::constant(randn(1, &[2, 3, 4], DType::F32));
    let z = Var::constant(randn(2, &[2, 4], DType::F32));
    assert!(running_softmax(&x, Some((&z, &[true])), None).unwrap_err().to_string().contains("1 rows"));
    assert!(running_softmax(&z, None, None).unwrap_err().to_string().contains("[B, T, ..]"));
    let out = running_softmax(&x, None, None).unwrap();
    assert_eq!(out.state.dims(), [2, 4]);
}
