use flashlin_tensor::{DType, Device, Tensor, Var};

use super::*;
use crate::testing::*;

struct Case {
    lens: Vec<usize>,
    d: usize,
    w: usize,
    silu: bool,
    bias: bool,
    residual: bool,
    state: bool,
}

fn case(lens: &[usize], d: usize, w: usize, bits: u8) -> Case {
    let bit = |i: u8| bits >> i & 1 == 1;
    Case { lens: lens.to_vec(), d, w, silu: bit(0), bias: bit(1), residual: bit(2), state: bit(3) }
}

impl Case {
    fn inputs(&self, d: DType) -> Vec<Tensor> {
        let total = self.lens.iter().sum();
        vec![
            randn(1, &[1, total, self.d], d),
            randn(2, &[self.d, 1, self.w], d),
            randn(3, &[self.d], d),
            randn(4, &[1, total, self.d], d),
            randn(5, &[self.lens.len(), self.d, self.w], d),
        ]
    }

    fn run(&self, v: &[Var]) -> Vec<Var> {
        let seqs = PackedSeqs::from_lens(&self.lens);
        let out = short_conv(&ConvArgs {
            bias: self.bias.then_some(&v[2]),
            activation: self.silu.then_some(Activation::Silu),
            residual: self.residual.then_some(&v[3]),
            initial_state: self.state.then_some(&v[4]),
            seqs: Some(&seqs),
            final_state: true,
            ..ConvArgs::new(&v[0], &v[1])
        })
        .unwrap();
        vec![out.y, out.final_state.unwrap()]
    }

    /// Output and final state in f64 from the definition, one token at a time with a list of past inputs.
    fn expected(&self, t: &[Tensor]) -> (Vec<f64>, Vec<f64>) {
        let [x, w, b, r, s] = [0, 1, 2, 3, 4].map(|i| t[i].to_f64_vec().unwrap());
        let (d, taps) = (self.d, self.w);
        let (mut y, mut last) = (vec![0.0; x.len()], vec![0.0; s.len()]);
        let mut start = 0;
        for (n, &len) in self.lens.iter().enumerate() {
            for c in 0..d {
                let at = (n * d + c) * taps;
                let mut past: Vec<f64> = if self.state { s[at..at + taps].to_vec() } else { vec![0.0; taps] };
                for t in start..start + len {
                    past.push(x[t * d + c]);
                    let z: f64 =
                        past[past.len() - taps..].iter().zip(&w[c * taps..]).map(|(a, b)| a * b).sum();
                    let z = z + if self.bias { b[c] } else { 0.0 };
                    let z = if self.silu { z / (1.0 + (-z).exp()) } else { z };
                    y[t * d + c] = z + if self.residual { r[t * d + c] } else { 0.0 };
                }
                last[at..at + taps].copy_from_slice(&past[past.len() - taps..]);
            }
            start += len;
        }
        (y, last)
    }
}

fn cases() -> Vec<Case> {
    vec![
        case(&[70, 0, 3, 1, 64, 65], 9, 4, 0b1111),
        case(&[5, 2, 0, 1], 130, 4, 0b1001),
        case(&[9], 3, 1, 0b1110),
        case(&[1, 2, 3, 7, 0], 5, 3, 0b1011),
        case(&[4, 6], 8, 2, 0b0001),
        case(&[3, 12], 4, 7, 0b1101),
        case(&[0, 0], 4, 4, 0b1111),
        case(&[], 4, 4, 0b0011),
    ]
}

#[test]
fn matches_the_definition_in_every_dtype() {
    for c in cases() {
        for d in [DType::F64, DType::F32, DType::BF16, DType::F16] {
            let t = c.inputs(d);
            let (y, last) = c.expected(&t);
            let v: Vec<Var> = t.iter().cloned().map(Var::constant).collect();
            let out = c.run(&v);
            assert_eq!(out[0].dtype(), d);
            close("y", out[0].tensor(), &Tensor::from_vec(y.clone(), t[0].dims()).unwrap(), tolerance(d));
            close("state", out[1].tensor(), &Tensor::from_vec(last, t[4].dims()).unwrap(), 0.0);
            let v: Vec<Var> =
                t.iter().map(|t| Var::constant(if t.rank() == 3 { strided(t) } else { t.clone() })).collect();
            close("strided", c.run(&v)[0].tensor(), &Tensor::from_vec(y, t[0].dims()).unwrap(), tolerance(d));
        }
    }
}

#[test]
fn gradients_match_differences() {
    for c in cases() {
        grad_check(&|v| c.run(v), &c.inputs(DType::F64));
    }
}

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

#[test]
fn bits_do_not_depend_on_threads() {
    let c = case(&[200, 130], 40, 4, 0b1111);
    let t = c.inputs(DType::F32);
    same_bits_on_any_threads(|| {
        let v: Vec<Var> = t.iter().cloned().map(Var::constant).collect();
        let mut all: Vec<Tensor> = c.run(&v).into_iter().map(Var::into_tensor).collect();
        all.extend(gradients(&|v| c.run(v), &t));
        all
    });
}
