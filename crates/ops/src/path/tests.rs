//! The suite, and caches: any way of feeding a sequence gives the same.

use flashlin_tensor::{DType, Device, Philox, Var};

use super::{PathArgs, PathCache, path_attn};
use crate::PackedSeqs;

crate::module_conformance!(suite, crate::path::conform::Conformance);

fn random(stream: u64, dims: &[usize], std: f64) -> Var {
    Philox::new(8, stream).randn(0.0, std, dims, DType::F64, &Device::Cpu).unwrap().into()
}

#[test]
fn caches_continue_a_sequence_in_any_pieces() {
    let (t, hq, h, d, dv) = (23, 4, 2, 3, 5);
    let x = [
        random(1, &[2, t, hq, d], 1.0),
        random(2, &[2, t, h, d], 1.0),
        random(3, &[2, t, h, dv], 1.0),
        random(4, &[2, t, h, d], 0.3),
        random(5, &[2, t, h], 1.0).sigmoid().unwrap(),
        random(6, &[2, t, hq], 1.0).sigmoid().unwrap().neg().unwrap(),
    ];
    let run = |from: usize, n: usize, gated: bool, past: Option<&PathCache>| {
        let [q, k, v, w, beta, g] = x.each_ref().map(|x| x.narrow(1, from, n).unwrap());
        let args = PathArgs {
            g: gated.then_some(&g),
            past,
            output_cache: true,
            chunk_size: 4,
            ..PathArgs::new(&q, &k, &v, &w, &beta)
        };
        path_attn(&args).unwrap()
    };
    for gated in [false, true] {
        let whole = run(0, t, gated, None);
        for pieces in [vec![23], vec![1; 23], vec![9, 0, 1, 13]] {
            let (mut from, mut cache) = (0, None);
            for n in pieces {
                let out = run(from, n, gated, cache.as_ref());
                let want = whole.o.narrow(1, from, n).unwrap();
                let values = |x: &Var| x.tensor().to_f64_vec().unwrap();
                assert!(n == 0 || crate::conformance::relative_l2(&values(&out.o), &values(&want)) < 1e-12);
                (from, cache) = (from + n, out.cache);
            }
            assert_eq!(cache.unwrap().lens, [t, t]);
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let (q, k, beta) =
        (random(1, &[1, 4, 3, 2], 1.0), random(2, &[1, 4, 2, 2], 1.0), random(3, &[1, 4, 2], 1.0));
    let message = |a: &PathArgs<'_>| path_attn(a).err().unwrap().to_string();
    assert!(message(&PathArgs::new(&q, &k, &k, &k, &beta)).contains("multiple of 2"));
    let wrong = random(4, &[1, 4, 3], 1.0);
    assert!(message(&PathArgs::new(&k, &k, &k, &k, &wrong)).contains("beta"));
    let past =
        path_attn(&PathArgs { output_cache: true, ..PathArgs::new(&k, &k, &k, &k, &beta) }).unwrap().cache;
    let seqs = PackedSeqs::from_lens(&[1, 3]);
    let args = PathArgs { past: past.as_ref(), seqs: Some(&seqs), ..PathArgs::new(&k, &k, &k, &k, &beta) };
    assert!(message(&args).contains("past"));
}
