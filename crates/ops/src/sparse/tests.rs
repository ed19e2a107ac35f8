//! The suite, the choice of blocks by hand, and the statistics.

use flashlin_tensor::{DType, Device, Philox, Var};

use super::select::{Selection, pick};
use super::{NsaArgs, nsa};
use crate::PackedSeqs;

crate::module_conformance!(suite, crate::sparse::conform::Conformance);

#[test]
fn blocks_are_chosen_as_documented() {
    let s = |count| Selection { at: 0, rows: 1, keys: 100, block_size: 4, block_count: count };
    // Position 22 lies in block 5; complete before it: 0 .. 4.
    let p = [0.1, 0.2, 0.05, 0.3, 0.35];
    assert_eq!(pick(&s(4), 22, &p), [0, 3, 4, 5]);
    assert_eq!(pick(&s(5), 22, &p), [0, 1, 3, 4, 5]);
    assert_eq!(pick(&s(9), 22, &p), [0, 1, 2, 3, 4, 5]);
    assert_eq!(pick(&s(4), 1, &[]), [0]);
    assert_eq!(pick(&s(4), 5, &[1.0]), [0, 1]);
}

#[test]
fn statistics_count_what_was_read() {
    let random = |stream, dims: &[usize]| -> Var {
        Philox::new(8, stream).randn(0.0, 1.0, dims, DType::F32, &Device::Cpu).unwrap().into()
    };
    let (t, hq, h, d) = (300, 4, 2, 3);
    let (q, k, g) = (random(1, &[1, t, hq, d]), random(2, &[1, t, h, d]), random(3, &[1, t, hq]));
    let args = NsaArgs {
        block_size: 8,
        block_count: 4,
        window: Some(10),
        stats: true,
        ..NsaArgs::new(&q, &k, &k, [&g; 3])
    };
    let stats = nsa(&args).unwrap().stats.unwrap();
    assert_eq!(stats.query_blocks.len(), 2);
    let all: u64 = stats.query_blocks.iter().map(|b| b.causal).sum();
    assert_eq!(all, (t * (t + 1) / 2 * hq) as u64);
    let window: u64 = stats.query_blocks.iter().map(|b| b.window).sum();
    assert_eq!(window, ((1..=t).map(|n| n.min(10)).sum::<usize>() * hq) as u64);
    let last = stats.query_blocks[1];
    assert!(last.selected <= last.queries * 32 && last.blocks <= last.queries * 4);
    assert!(stats.selected_share() < 0.25 && stats.flops_share() < 0.5);
    assert!(nsa(&NsaArgs { stats: false, ..args }).unwrap().stats.is_none());
}

/// A cache's padded rows are the same keys packed.
#[test]
fn padded_rows_agree_with_packed_keys() {
    let random = |stream, dims: &[usize]| -> Var {
        Philox::new(9, stream).randn(0.0, 1.0, dims, DType::F64, &Device::Cpu).unwrap().into()
    };
    let (q, k, g) = (random(1, &[2, 3, 4, 3]), random(2, &[2, 9, 2, 3]), random(3, &[2, 3, 4]));
    let lens = [7, 9];
    let args =
        NsaArgs { block_size: 2, block_count: 3, window: Some(4), ..NsaArgs::new(&q, &k, &k, [&g; 3]) };
    let padded = nsa(&NsaArgs { kv_lens: Some(&lens), ..args }).unwrap().o;
    let row = |n: usize| k.narrow(0, n, 1).unwrap().narrow(1, 0, lens[n]).unwrap();
    let packed = Var::cat(&[&row(0), &row(1)], 1).unwrap();
    let (queries, keys) = (PackedSeqs::from_lens(&[3, 3]), PackedSeqs::from_lens(&lens));
    let flat = |x: &Var, rest: &[usize]| x.reshape(&[&[1, 6], rest].concat()).unwrap();
    let (q, g) = (flat(&q, &[4, 3]), flat(&g, &[4]));
    let args = NsaArgs {
        q: &q,
        k: &packed,
        v: &packed,
        gates: [&g; 3],
        seqs: Some(&queries),
        kv_seqs: Some(&keys),
        ..args
    };
    let want = nsa(&args).unwrap().o;
    assert_eq!(padded.tensor().to_f64_vec().unwrap(), want.tensor().to_f64_vec().unwrap());
    let beyond = [10, 9];
    assert!(nsa(&NsaArgs { kv_seqs: None, kv_lens: Some(&beyond), ..args }).is_err());
}
