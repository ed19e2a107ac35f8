use flashlin_tensor::{DType, Device, Tensor, Var};

use super::*;
use crate::testing::*;

crate::module_conformance!(suite, super::conform::Conformance);

#[test]
fn a_split_sequence_continues_from_its_state() {
    let (x, w) = (randn(1, &[2, 11, 6], DType::F64), Var::constant(randn(2, &[6, 4], DType::F64)));
    let run = |x: Tensor, state: Option<&Var>| {
        let x = Var::constant(x);
        short_conv(&ConvArgs { initial_state: state, final_state: true, ..ConvArgs::new(&x, &w) }).unwrap()
    };
    let whole = run(x.clone(), None);
    for cut in 0..=11 {
        let a = run(x.narrow(1, 0, cut).unwrap(), None);
        let b = run(x.narrow(1, cut, 11 - cut).unwrap(), a.final_state.as_ref());
        let y = Tensor::cat(&[a.y.tensor(), b.y.tensor()], 1).unwrap();
        close("y", &y, whole.y.tensor(), 1e-14);
        close("state", b.final_state.unwrap().tensor(), whole.final_state.as_ref().unwrap().tensor(), 0.0);
    }
}

#[test]
fn decode_steps_equal_the_whole_and_touch_only_their_slots() {
    for w in [1, 2, 3, 4, 6] {
        let (x, weight) = (randn(1, &[2, 5, 7], DType::F32), randn(2, &[7, 1, w], DType::F32));
        let (bias, res) = (randn(3, &[7], DType::F32), randn(4, &[2, 5, 7], DType::F32));
        let [xv, wv, bv, rv] = [&x, &weight, &bias, &res].map(|t| Var::constant(t.clone()));
        let args =
            ConvArgs { bias: Some(&bv), residual: Some(&rv), final_state: true, ..ConvArgs::new(&xv, &wv) };
        let whole = short_conv(&args).unwrap();
        let mut pool = Tensor::zeros(&[4, 7, w], DType::F32, &Device::Cpu).unwrap();
        let mut ys = Vec::new();
        for t in 0..5 {
            let (xt, rt) = (x.narrow(1, t, 1).unwrap(), res.narrow(1, t, 1).unwrap());
            let mut y = Tensor::empty(&[2, 1, 7], DType::F32, &Device::Cpu).unwrap();
            let step = ConvStep {
                x: &xt,
                weight: &weight,
                bias: Some(&bias),
                activation: Some(Activation::Silu),
                residual: Some(&rt),
                slots: Some(&[3, 1]),
            };
            conv_step(&step, &mut pool, &mut y).unwrap();
            ys.push(y);
        }
        close("y", &Tensor::cat(&ys.iter().collect::<Vec<_>>(), 1).unwrap(), whole.y.tensor(), 1e-6);
        let last = whole.final_state.unwrap().into_tensor();
        close("slot 3", &pool.narrow(0, 3, 1).unwrap(), &last.narrow(0, 0, 1).unwrap(), 0.0);
        close("slot 1", &pool.narrow(0, 1, 1).unwrap(), &last.narrow(0, 1, 1).unwrap(), 0.0);
        assert_eq!(pool.select(0, 0).unwrap().sum_squares().unwrap(), 0.0);
        assert_eq!(pool.select(0, 2).unwrap().sum_squares().unwrap(), 0.0);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let (x, w) =
        (Var::constant(randn(1, &[2, 3, 4], DType::F32)), Var::constant(randn(1, &[4, 4], DType::F32)));
    let bad = |args: ConvArgs, word: &str| {
        let e = short_conv(&args).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    };
    bad(ConvArgs::new(&x, &Var::constant(randn(1, &[5, 4], DType::F32))), "weight");
    bad(ConvArgs { activation: Some(Activation::Relu), ..ConvArgs::new(&x, &w) }, "silu");
    bad(ConvArgs { initial_state: Some(&x), ..ConvArgs::new(&x, &w) }, "initial_state");
    let seqs = PackedSeqs::from_lens(&[6]);
    bad(ConvArgs { seqs: Some(&seqs), ..ConvArgs::new(&x, &w) }, "batch of 1");
    let (xt, mut out) = (randn(1, &[2, 4], DType::F32), randn(1, &[2, 4], DType::F32));
    let mut pool = randn(1, &[2, 4, 4], DType::F32);
    for (slots, word) in [(&[0, 2][..], "row 2"), (&[1, 1], "twice"), (&[0], "entries")] {
        let step = ConvStep {
            x: &xt,
            weight: w.tensor(),
            bias: None,
            activation: None,
            residual: None,
            slots: Some(slots),
        };
        let e = conv_step(&step, &mut pool, &mut out).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    }
}
