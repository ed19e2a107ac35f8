//! Decoding steps on a pool of states equal the recurrence, slot by slot.

use flashlin_tensor::{DType, Tensor, Var};

use crate::delta::{DeltaArgs, DeltaGate, DeltaStep, GateActivation, StepInputs, delta_rule};
use crate::gate::DecayGate;
use crate::testing::{close, randn};
use crate::{Mode, RecurrentState, StateLayout};

const R: usize = 3;
const SLOTS: [usize; R] = [4, 0, 2];

/// Decodes 5 tokens of 3 requests in a pool of 5 slots, and compares with one call.
fn check(layout: StateLayout, channel: bool, [h, hv, k, v]: [usize; 4], dtype: DType) {
    let t = 5;
    let make = |seed, dims: &[usize]| Var::constant(randn(seed, dims, dtype));
    let (q, key, val) = (make(1, &[R, t, h, k]), make(2, &[R, t, h, k]), make(3, &[R, t, hv, v]));
    let beta = make(4, &[R, t, hv]);
    let g = if channel { make(5, &[R, t, hv, k]) } else { make(5, &[R, t, hv]) };
    let a_log = Var::constant(randn(6, &[hv], DType::F32));
    let activation =
        Some(GateActivation { formula: DecayGate::Softplus, a_log: Some(&a_log), dt_bias: None });
    let gate = if channel {
        DeltaGate::Channel { g: &g, activation }
    } else {
        DeltaGate::Scalar { g: &g, activation }
    };
    let args = DeltaArgs {
        gate,
        qk_l2norm: true,
        beta_sigmoid: true,
        beta: Some(&beta),
        layout,
        output_final_state: true,
        mode: Mode::Recurrent,
        ..DeltaArgs::new("gated_delta_rule", &q, &key, &val)
    };
    let mut pool = randn(7, &layout.dims(5, hv, k, v), DType::F32).to_vec::<f32>().unwrap();
    let untouched = pool.clone();
    let size = hv * k * v;
    let picked: Vec<f32> = SLOTS.iter().flat_map(|&s| untouched[s * size..][..size].to_vec()).collect();
    let first = Tensor::from_vec(picked, &layout.dims(R, hv, k, v)).unwrap();
    let first = RecurrentState { value: Var::constant(first), layout };
    let whole = delta_rule(DeltaArgs { initial_state: Some(&first), ..args }).unwrap();

    let mut step = DeltaStep::new(&args, 5).unwrap();
    assert_eq!(step.pool_len(), pool.len());
    for i in 0..t {
        let at = |x: &Var| x.tensor().narrow(1, i, 1).unwrap();
        let (q, key, val, beta, g) = (at(&q), at(&key), at(&val), at(&beta), at(&g));
        let x = StepInputs { q: &q, k: &key, v: &val, erase: None, beta: Some(&beta), gate: Some(&g) };
        let mut out = vec![f32::NAN; R * hv * v];
        step.run(&x, &mut pool, &SLOTS, &mut out).unwrap();
        let want = whole.o.tensor().narrow(1, i, 1).unwrap();
        let got = Tensor::from_vec(out, want.dims()).unwrap().to_dtype(dtype).unwrap();
        close("o", &got, &want, 1e-6);
    }
    let want = whole.final_state.unwrap().value.into_tensor();
    for (row, slot) in SLOTS.into_iter().enumerate() {
        let got = Tensor::from_slice(&pool[slot * size..][..size], &layout.dims(1, hv, k, v)).unwrap();
        close("state", &got, &want.narrow(0, row, 1).unwrap(), 1e-6);
    }
    for slot in [1, 3] {
        assert_eq!(
            pool[slot * size..][..size],
            untouched[slot * size..][..size],
            "slot {slot} is not in use"
        );
    }
}

#[test]
fn steps_equal_one_call() {
    for layout in [StateLayout::KV, StateLayout::VK] {
        for channel in [false, true] {
            check(layout, channel, [1, 2, 6, 16], DType::F32);
            check(layout, channel, [2, 2, 5, 7], DType::BF16);
        }
    }
    // Large enough to go to several threads.
    check(StateLayout::KV, false, [4, 4, 96, 96], DType::F32);
}

#[test]
fn refusals_name_the_argument() {
    let z = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &flashlin_tensor::Device::Cpu).unwrap();
    let (q, v, b) = (z(&[2, 1, 1, 4]), z(&[2, 1, 1, 4]), z(&[2, 1, 1]));
    let (qv, vv, bv) = (Var::constant(q.clone()), Var::constant(v.clone()), Var::constant(b.clone()));
    let mut step = DeltaStep::new(&DeltaArgs::delta_rule(&qv, &qv, &vv, &bv), 3).unwrap();
    let x = StepInputs { q: &q, k: &q, v: &v, erase: None, beta: Some(&b), gate: None };
    let (mut pool, mut out) = (vec![0f32; 48], vec![0f32; 8]);
    assert!(step.run(&x, &mut pool, &[2, 0], &mut out).is_ok());
    let mut says = |x: StepInputs<'_>, n: usize, slots: &[usize], word: &str| {
        let message = step.run(&x, &mut pool[..n], slots, &mut out).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    };
    says(x, 48, &[1, 1], "`slots` holds 1 twice");
    says(x, 48, &[1, 3], "`slots` holds 3");
    says(x, 48, &[1], "`q` has shape [2, 1, 1, 4], expected [1, 1, 1, 4]");
    says(x, 47, &[0, 1], "`pool`");
    says(StepInputs { beta: None, ..x }, 48, &[0, 1], "`beta`");
    says(StepInputs { gate: Some(&b), ..x }, 48, &[0, 1], "`g`");
    let wide = Var::constant(z(&[2, 1, 1, 4]).to_dtype(DType::F64).unwrap());
    assert!(DeltaStep::new(&DeltaArgs::delta_rule(&wide, &wide, &wide, &bv), 3).is_err());
}
