use flashlin_tensor::{DType, Tensor, Var};

use super::*;
use crate::testing::*;

crate::module_conformance!(suite, super::conform::Conformance);

fn rotate(r: &Rotary, x: &Tensor, at: Positions) -> Tensor {
    let x = Var::constant(x.clone());
    r.apply(&x, &x, at).unwrap().0.into_tensor()
}

/// q . k of every pair of tokens, which may depend on the distance only.
fn scores(r: &Rotary, len: usize, offset: i64, max_len: usize) -> Vec<f64> {
    let one = |seed| {
        randn(seed, &[1, 1, 1, 16], DType::F64).expand(&[1, len, 1, 16]).unwrap().contiguous().unwrap()
    };
    let at = Positions { offset: Offset::Same(offset), max_len: Some(max_len), ..Positions::default() };
    let (q, k) = r.apply(&Var::constant(one(1)), &Var::constant(one(2)), at).unwrap();
    let flat = |v: Var| v.tensor().reshape(&[len, 16]).unwrap();
    flat(q).matmul(&flat(k).transpose(0, 1).unwrap()).unwrap().to_f64_vec().unwrap()
}

#[test]
fn scores_depend_on_the_distance_and_xpos_decays() {
    let plain = Rotary::new(16, 10_000.0).unwrap();
    let xpos = Rotary::new(16, 10_000.0).unwrap().scale_base(64.0).unwrap();
    for r in [&plain, &xpos] {
        let (a, b) = (scores(r, 12, 0, 40), scores(r, 12, 25, 40));
        assert!(relative_l2(&a, &b) < 1e-5);
        assert!(relative_l2(&[a[12 * 7 + 3]], &[a[12 * 9 + 5]]) < 1e-5);
    }
    // The factor of the pair i over a distance of 12 tokens is s_i^(12/64).
    let one =
        Var::constant(Tensor::ones(&[1, 13, 1, 16], DType::F64, &flashlin_tensor::Device::Cpu).unwrap());
    let (q, _) = xpos.apply(&one, &one, Positions { max_len: Some(0), ..Positions::default() }).unwrap();
    let q = q.tensor().to_f64_vec().unwrap();
    for i in 0..8 {
        let norm = (q[12 * 16 + i].powi(2) + q[12 * 16 + i + 8].powi(2)).sqrt() / 2f64.sqrt();
        let want = ((2.0 * i as f64 + 6.4) / 22.4).powf(12.0 / 64.0);
        assert!((norm - want).abs() < 1e-12, "{norm} {want}");
    }
}

#[test]
fn half_precision_positions_coincide_as_they_used_to() {
    let r = Rotary::new(4, 10_000.0).unwrap().position_dtype(DType::BF16).unwrap();
    let x = randn(1, &[1, 1, 1, 4], DType::F32);
    let at = |p| Positions { offset: Offset::Same(p), ..Positions::default() };
    close("1995 rounds to 1992", &rotate(&r, &x, at(1995)), &rotate(&r, &x, at(1992)), 0.0);
}

#[test]
fn wrong_arguments_are_named() {
    assert!(Rotary::new(7, 1e4).is_err() && Rotary::new(0, 1e4).is_err() && Rotary::new(8, 0.0).is_err());
    let r = Rotary::new(8, 1e4).unwrap();
    let (x, y) = (
        Var::constant(randn(1, &[2, 3, 1, 8], DType::F32)),
        Var::constant(randn(1, &[2, 3, 1, 7], DType::F32)),
    );
    assert!(r.apply(&x, &y, Positions::default()).unwrap_err().to_string().contains("`k`"));
    let at = Positions { offset: Offset::Each(&[1]), ..Positions::default() };
    assert!(r.apply(&x, &x, at).unwrap_err().to_string().contains("offset"));
    let empty = Var::constant(randn(1, &[2, 0, 1, 8], DType::F32));
    assert_eq!(r.apply(&empty, &empty, Positions::default()).unwrap().0.dims(), [2, 0, 1, 8]);
}
