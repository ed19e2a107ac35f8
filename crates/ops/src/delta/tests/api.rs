//! The typed API beyond the conformance suite: strides of any kind, empty inputs, single gradients, and what it refuses.

use flashlin_tensor::{DType, Device, Philox, Result, Tensor, Var};

use crate::delta::{DeltaArgs, DeltaGate, GateActivation, delta_rule};
use crate::gate::DecayGate;
use crate::{Mode, PackedSeqs, RecurrentState, SeqOutput, StateLayout};

fn noise(n: usize, seed: u64) -> Vec<f64> {
    let rng = Philox::new(seed, 0);
    (0..n as u64).map(|i| 2.0 * rng.uniform(i) - 1.0).collect()
}

/// One call of a gated rule with normalised keys and a logit for beta.
#[derive(Clone, Copy)]
struct Setup {
    /// B T H HV K V
    dims: [usize; 6],
    erase: bool,
}

const PLAIN: Setup = Setup { dims: [2, 5, 1, 2, 3, 2], erase: false };

const Q: usize = 0;
const V: usize = 2;
const STATE: usize = 4;
const GATE: usize = 5;

impl Setup {
    /// Random q, k, v, beta, state, gate and erase key (possibly empty), in f64.
    fn values(&self) -> Vec<Tensor> {
        let [b, t, h, hv, k, v] = self.dims;
        let shapes = [
            vec![b, t, h, k],
            vec![b, t, h, k],
            vec![b, t, hv, v],
            vec![b, t, hv],
            vec![b, hv, k, v],
            vec![b, t, hv],
            if self.erase { vec![b, t, h, k] } else { vec![0] },
        ];
        let make = |(i, dims): (usize, Vec<usize>)| {
            let mut x = noise(dims.iter().product(), i as u64 + 31);
            if i == GATE {
                x.iter_mut().for_each(|g| *g = -g.abs());
            }
            Tensor::from_vec(x, &dims).unwrap()
        };
        shapes.into_iter().enumerate().map(make).collect()
    }

    fn run(&self, x: &[Var]) -> Result<SeqOutput> {
        let state = RecurrentState { value: x[STATE].clone(), layout: StateLayout::KV };
        delta_rule(DeltaArgs {
            erase: self.erase.then_some(&x[6]),
            beta_sigmoid: true,
            qk_l2norm: true,
            initial_state: Some(&state),
            output_final_state: true,
            mode: Mode::Chunk,
            chunk_size: 16,
            ..DeltaArgs::gated_delta_rule(&x[Q], &x[1], &x[V], &x[GATE], &x[3])
        })
    }

    /// Output, final state and all gradients for random output weights.
    fn all(&self, values: &[Tensor]) -> Vec<Vec<f64>> {
        let x: Vec<Var> = values.iter().cloned().map(Var::leaf).collect();
        let out = self.run(&x).unwrap();
        let state = out.final_state.unwrap().value;
        let weight = |v: &Var, seed| Tensor::from_vec(noise(v.tensor().numel(), seed), v.dims()).unwrap();
        let roots = vec![(&out.o, weight(&out.o, 91)), (&state, weight(&state, 92))];
        let grads = Var::backward_with(roots).unwrap();
        let mut all = vec![out.o.tensor().to_f64_vec().unwrap(), state.tensor().to_f64_vec().unwrap()];
        all.extend(x.iter().map(|v| grads.get(v).map_or(Vec::new(), |g| g.to_f64_vec().unwrap())));
        all
    }
}

#[test]
fn strided_inputs_equal_contiguous_ones() {
    let s = Setup { dims: [2, 20, 2, 2, 8, 8], ..PLAIN };
    let values = s.values();
    let want = s.all(&values);
    // Heads before tokens, and the keys' channels not innermost.
    let mut strided = values.clone();
    for i in [0, 2] {
        strided[i] = values[i].transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap();
    }
    strided[1] = values[1].transpose(2, 3).unwrap().contiguous().unwrap().transpose(2, 3).unwrap();
    strided[GATE] = values[GATE].transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap();
    assert!(strided[..3].iter().all(|t| !t.is_contiguous()));
    assert_eq!(s.all(&strided), want);
}

#[test]
fn empty_input_passes_the_state_on() {
    let s = Setup { dims: [2, 0, 1, 2, 3, 2], ..PLAIN };
    let values = s.values();
    let got = s.all(&values);
    assert_eq!(got[1], values[STATE].to_f64_vec().unwrap());
    assert_eq!(got[2 + STATE], noise(24, 92));
    let none = Setup { dims: [0, 4, 1, 2, 3, 2], ..PLAIN };
    let x: Vec<Var> = none.values().into_iter().map(Var::constant).collect();
    assert_eq!(none.run(&x).unwrap().o.dims(), [0, 4, 2, 2]);
}

#[test]
fn only_what_is_asked_for_gets_a_gradient() {
    let s = Setup { erase: true, ..PLAIN };
    let values = s.values();
    let all = s.all(&values);
    for i in 0..7 {
        let x: Vec<Var> = values
            .iter()
            .enumerate()
            .map(|(j, t)| if i == j { Var::leaf(t.clone()) } else { Var::constant(t.clone()) })
            .collect();
        let out = s.run(&x).unwrap();
        let state = out.final_state.unwrap().value;
        let weight = |v: &Var, seed| Tensor::from_vec(noise(v.tensor().numel(), seed), v.dims()).unwrap();
        let roots = vec![(&out.o, weight(&out.o, 91)), (&state, weight(&state, 92))];
        let g = Var::backward_with(roots).unwrap();
        assert_eq!(g.get(&x[i]).unwrap().to_f64_vec().unwrap(), all[2 + i], "input {i}");
    }
}

#[test]
fn gradients_from_one_output_alone() {
    let s = PLAIN;
    let x: Vec<Var> = s.values().into_iter().map(Var::leaf).collect();
    let out = s.run(&x).unwrap();
    let g = out.final_state.unwrap().value.sum_all().unwrap().backward().unwrap();
    assert!(g.get(&x[Q]).unwrap().to_f64_vec().unwrap().iter().all(|&x| x == 0.0));
    assert!(g.get(&x[V]).unwrap().to_f64_vec().unwrap().iter().any(|&x| x != 0.0));
}

#[test]
fn refusals_name_the_argument() {
    let z = |dims: &[usize]| Var::constant(Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap());
    let (q, k, v) = (z(&[1, 4, 2, 8]), z(&[1, 4, 2, 8]), z(&[1, 4, 4, 6]));
    let (beta, g) = (z(&[1, 4, 4]), z(&[1, 4, 4]));
    let ok = DeltaArgs::gated_delta_rule(&q, &k, &v, &g, &beta);
    assert!(delta_rule(ok).is_ok());
    let fails = |args: DeltaArgs<'_>, words: &[&str]| {
        let message = delta_rule(args).unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
    };
    let bad = z(&[1, 4, 2, 7]);
    fails(DeltaArgs { k: &bad, ..ok }, &["gated_delta_rule", "`k`", "[1, 4, 2, 7]", "[1, 4, 2, 8]"]);
    fails(DeltaArgs { erase: Some(&bad), ..ok }, &["`erase`", "[1, 4, 2, 7]"]);
    let bad = z(&[1, 4, 3, 6]);
    fails(DeltaArgs { v: &bad, ..ok }, &["`v`", "multiple of the 2"]);
    let bad = z(&[1, 4, 2]);
    fails(DeltaArgs { beta: Some(&bad), ..ok }, &["`beta`", "[1, 4, 4]", "[1, 4, 4, 6]"]);
    fails(DeltaArgs { gate: DeltaGate::Scalar { g: &bad, activation: None }, ..ok }, &["`g`", "[1, 4, 2]"]);
    fails(
        DeltaArgs { gate: DeltaGate::Channel { g: &g, activation: None }, ..ok },
        &["`g`", "[B, T, HV, K]"],
    );
    fails(DeltaArgs { chunk_size: 48, ..ok }, &["`chunk_size`", "48", "16, 32 or 64"]);
    fails(DeltaArgs { scale: Some(f64::NAN), ..ok }, &["`scale`", "NaN"]);
    let activation = |formula| Some(GateActivation { formula, a_log: None, dt_bias: None });
    let gate = |formula| DeltaGate::Scalar { g: &g, activation: activation(formula) };
    fails(DeltaArgs { gate: gate(DecayGate::Softplus), ..ok }, &["`a_log`", "missing"]);
    fails(DeltaArgs { gate: gate(DecayGate::LowerBound(1.0)), ..ok }, &["`lower_bound`", "1"]);
    assert!(delta_rule(DeltaArgs { gate: gate(DecayGate::LowerBound(-5.0)), ..ok }).is_ok());
    let bias = z(&[3]);
    let act = GateActivation { formula: DecayGate::LowerBound(-5.0), a_log: None, dt_bias: Some(&bias) };
    fails(
        DeltaArgs { gate: DeltaGate::Scalar { g: &g, activation: Some(act) }, ..ok },
        &["`dt_bias`", "[3]", "[4]"],
    );
    let half = Var::constant(q.tensor().to_dtype(DType::BF16).unwrap());
    fails(DeltaArgs { q: &half, ..ok }, &["`q`", "bf16", "f32"]);
    let ints = Var::constant(Tensor::zeros(&[1, 4, 4], DType::I64, &Device::Cpu).unwrap());
    fails(DeltaArgs { beta: Some(&ints), ..ok }, &["`beta`", "i64"]);

    let state = |dims: &[usize], layout| RecurrentState { value: z(dims), layout };
    let wrong = state(&[1, 4, 8, 6], StateLayout::VK);
    fails(DeltaArgs { initial_state: Some(&wrong), ..ok }, &["`initial_state`", "layout vk", "kv"]);
    let wrong = state(&[2, 4, 8, 6], StateLayout::KV);
    fails(
        DeltaArgs { initial_state: Some(&wrong), ..ok },
        &["`initial_state`", "[2, 4, 8, 6]", "[1, 4, 8, 6]"],
    );
    let wrong = state(&[1, 4, 6, 8], StateLayout::KV);
    fails(DeltaArgs { initial_state: Some(&wrong), ..ok }, &["`initial_state`", "[N, H, K, V]"]);
    let seqs = PackedSeqs::from_lens(&[2, 1]);
    fails(DeltaArgs { seqs: Some(&seqs), ..ok }, &["`cu_seqlens`", "ends at 3"]);
}
