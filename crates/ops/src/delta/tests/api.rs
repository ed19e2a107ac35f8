//! The typed API: gradients of everything against finite differences, splits, packing, modes, dtypes, strides, thread
//! counts, and what it refuses.

use flashlin_tensor::{DType, Device, Result, Tensor, Var};

use super::kernels::noise;
use crate::delta::{DeltaArgs, DeltaGate, EraseOrder, GateActivation, delta_rule};
use crate::gate::DecayGate;
use crate::{Mode, PackedSeqs, RecurrentState, SeqOutput, StateLayout};

/// Named inputs of one call in f64, and how to call with them.
#[derive(Clone)]
struct Setup {
    dims: [usize; 6], // B T H HV K V
    gate: Gate,
    beta_channel: bool,
    erase: bool,
    order: EraseOrder,
    l2norm: bool,
    sigmoid: bool,
    neg: bool,
    layout: StateLayout,
    mode: Mode,
    chunk: usize,
    cu: Option<Vec<usize>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Gate {
    None,
    Scalar(Option<DecayGate>),
    Channel(Option<DecayGate>),
}

const PLAIN: Setup = Setup {
    dims: [2, 5, 1, 2, 3, 2],
    gate: Gate::Scalar(None),
    beta_channel: false,
    erase: false,
    order: EraseOrder::AfterDecay,
    l2norm: true,
    sigmoid: true,
    neg: false,
    layout: StateLayout::KV,
    mode: Mode::Chunk,
    chunk: 16,
    cu: None,
};

const Q: usize = 0;
const V: usize = 2;
const BETA: usize = 3;
const STATE: usize = 4;
const GATE: usize = 5;

impl Setup {
    fn sequences(&self) -> usize {
        self.cu.as_ref().map_or(self.dims[0], |c| c.len() - 1)
    }

    /// Shapes of q, k, v, beta, state, gate, A_log, dt_bias, erase (the optional ones possibly empty).
    fn shapes(&self) -> Vec<Vec<usize>> {
        let [b, t, h, hv, k, v] = self.dims;
        let none = vec![0];
        let (gate, act, n) = match self.gate {
            Gate::None => (none.clone(), None, 1),
            Gate::Scalar(a) => (vec![b, t, hv], a, 1),
            Gate::Channel(a) => (vec![b, t, hv, k], a, k),
        };
        vec![
            vec![b, t, h, k],
            vec![b, t, h, k],
            vec![b, t, hv, v],
            if self.beta_channel { vec![b, t, hv, v] } else { vec![b, t, hv] },
            self.layout.dims(self.sequences(), hv, k, v).to_vec(),
            gate,
            if act.is_some() { vec![hv] } else { none.clone() },
            if act.is_some() { vec![hv * n] } else { none.clone() },
            if self.erase { vec![b, t, h, k] } else { none },
        ]
    }

    fn values(&self) -> Vec<Tensor> {
        let logits = matches!(self.gate, Gate::Scalar(Some(_)) | Gate::Channel(Some(_)));
        let make = |(i, dims): (usize, Vec<usize>)| {
            let mut x = noise(dims.iter().product(), i as u64 + 31);
            if i == GATE && !logits {
                x.iter_mut().for_each(|g| *g = -g.abs());
            }
            if i == BETA && !self.sigmoid {
                x.iter_mut().for_each(|b| *b = b.abs());
            }
            Tensor::from_vec(x, &dims).unwrap()
        };
        self.shapes().into_iter().enumerate().map(make).collect()
    }

    fn run(&self, x: &[Var]) -> Result<SeqOutput> {
        let state = RecurrentState { value: x[STATE].clone(), layout: self.layout };
        let seqs = self.cu.as_ref().map(|c| PackedSeqs::new(c, self.dims[1])).transpose()?;
        let activation = |a: Option<DecayGate>| {
            a.map(|formula| GateActivation { formula, a_log: Some(&x[6]), dt_bias: Some(&x[7]) })
        };
        delta_rule(DeltaArgs {
            erase: self.erase.then_some(&x[8]),
            erase_order: self.order,
            beta: Some(&x[BETA]),
            beta_sigmoid: self.sigmoid,
            allow_neg_eigval: self.neg,
            gate: match self.gate {
                Gate::None => DeltaGate::None,
                Gate::Scalar(a) => DeltaGate::Scalar { g: &x[GATE], activation: activation(a) },
                Gate::Channel(a) => DeltaGate::Channel { g: &x[GATE], activation: activation(a) },
            },
            qk_l2norm: self.l2norm,
            initial_state: Some(&state),
            output_final_state: true,
            seqs: seqs.as_ref(),
            layout: self.layout,
            mode: self.mode,
            chunk_size: self.chunk,
            ..DeltaArgs::new("delta_rule", &x[Q], &x[1], &x[V])
        })
    }

    /// Output, final state and all gradients for random output weights.
    fn all(&self, values: &[Tensor], dtype: DType) -> Vec<Vec<f64>> {
        let leaf = |(i, t): (usize, &Tensor)| {
            let wide = i == STATE || (6..8).contains(&i);
            Var::leaf(t.to_dtype(if wide { dtype.accumulator() } else { dtype }).unwrap())
        };
        let x: Vec<Var> = values.iter().enumerate().map(leaf).collect();
        let out = self.run(&x).unwrap();
        let state = out.final_state.unwrap();
        assert_eq!(state.layout, self.layout);
        let weight = |dims: &[usize], dtype: DType, seed| {
            let w = Tensor::from_vec(noise(dims.iter().product(), seed), dims).unwrap();
            w.to_dtype(dtype).unwrap()
        };
        let [_, _, _, hv, k, v] = self.dims;
        let kv = weight(&StateLayout::KV.dims(self.sequences(), hv, k, v), state.value.dtype(), 92);
        let on_state = if self.layout == StateLayout::VK { kv.transpose(2, 3).unwrap() } else { kv };
        let roots = vec![(&out.o, weight(out.o.dims(), out.o.dtype(), 91)), (&state.value, on_state)];
        let grads = Var::backward_with(roots).unwrap();
        let mut all = vec![out.o.tensor().to_f64_vec().unwrap(), state.value.tensor().to_f64_vec().unwrap()];
        all.extend(x.iter().map(|v| grads.get(v).map_or(Vec::new(), |g| g.to_f64_vec().unwrap())));
        all
    }
}

fn near(a: &[Vec<f64>], b: &[Vec<f64>], tol: f64) {
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.len(), b.len(), "value {i}");
        let norm = b.iter().map(|x| x * x).sum::<f64>().sqrt();
        let diff = a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
        assert!(diff <= tol * (norm + 1e-30), "value {i}: {:e}", diff / norm);
    }
}

fn check_differences(s: &Setup) {
    let values = s.values();
    let got = s.all(&values, DType::F64);
    let loss = |values: &[Tensor]| {
        let x: Vec<Var> = values.iter().cloned().map(Var::constant).collect();
        let out = s.run(&x).unwrap();
        let dot = |t: &Tensor, seed| -> f64 {
            t.to_f64_vec().unwrap().iter().zip(noise(t.numel(), seed)).map(|(a, b)| a * b).sum()
        };
        let state = out.final_state.unwrap().value.into_tensor();
        let state = if s.layout == StateLayout::VK { state.transpose(2, 3).unwrap() } else { state };
        dot(out.o.tensor(), 91) + dot(&state, 92)
    };
    for (i, value) in values.iter().enumerate() {
        if value.numel() == 0 {
            continue;
        }
        let base = value.to_vec::<f64>().unwrap();
        for j in 0..base.len() {
            let at = |eps: f64| {
                let mut x = base.clone();
                x[j] += eps;
                let mut values = values.clone();
                values[i] = Tensor::from_vec(x, value.dims()).unwrap();
                loss(&values)
            };
            let want = (at(1e-5) - at(-1e-5)) / 2e-5;
            let got = got[2 + i][j];
            assert!((got - want).abs() < 2e-7 * (1.0 + want.abs()), "input {i}[{j}]: {got} {want}");
        }
    }
}

#[test]
fn every_gradient_matches_finite_differences() {
    let (soft, low) = (Some(DecayGate::Softplus), Some(DecayGate::LowerBound(-5.0)));
    let gates = [
        Gate::None,
        Gate::Scalar(None),
        Gate::Scalar(soft),
        Gate::Channel(None),
        Gate::Channel(soft),
        Gate::Channel(low),
    ];
    for (i, gate) in gates.into_iter().enumerate() {
        for mode in [Mode::Chunk, Mode::Recurrent] {
            check_differences(&Setup { gate, mode, beta_channel: i % 2 == 1, neg: i % 3 == 0, ..PLAIN });
        }
    }
    let order = EraseOrder::BeforeDecay;
    check_differences(&Setup { erase: true, order, layout: StateLayout::VK, sigmoid: false, ..PLAIN });
    check_differences(&Setup {
        erase: true,
        l2norm: false,
        cu: Some(vec![0, 0, 3, 5]),
        dims: [1, 5, 2, 2, 3, 2],
        ..PLAIN
    });
}

#[test]
fn modes_chunk_sizes_and_layouts_agree() {
    for gate in [Gate::None, Gate::Scalar(None), Gate::Channel(Some(DecayGate::Softplus))] {
        let base = Setup { gate, dims: [2, 71, 1, 2, 20, 12], ..PLAIN };
        let values = base.values();
        let want = base.all(&values, DType::F64);
        for mode in [Mode::Chunk, Mode::Recurrent, Mode::Auto] {
            for chunk in [16, 32, 64] {
                near(&Setup { mode, chunk, ..base.clone() }.all(&values, DType::F64), &want, 1e-11);
                near(&Setup { mode, chunk, ..base.clone() }.all(&values, DType::F32), &want, 4e-6);
            }
        }
        let swapped = Setup { layout: StateLayout::VK, ..base.clone() };
        let mut turned = values.clone();
        turned[STATE] = values[STATE].transpose(2, 3).unwrap();
        assert!(!turned[STATE].is_contiguous());
        let mut got = swapped.all(&turned, DType::F64);
        let dims = swapped.shapes()[STATE].clone();
        for i in [1, 2 + STATE] {
            let t = Tensor::from_vec(got[i].clone(), &dims).unwrap().transpose(2, 3).unwrap();
            got[i] = t.to_f64_vec().unwrap();
        }
        near(&got, &want, 1e-12);
    }
}

#[test]
fn half_precision_is_computed_in_f32() {
    for dtype in [DType::BF16, DType::F16] {
        for gate in [Gate::Scalar(Some(DecayGate::Softplus)), Gate::Channel(None)] {
            let s = Setup { gate, dims: [1, 40, 1, 2, 16, 16], ..PLAIN };
            let mut values = s.values();
            for (i, v) in values.iter_mut().enumerate() {
                if i != STATE && !(6..8).contains(&i) {
                    *v = v.to_dtype(dtype).unwrap().to_dtype(DType::F64).unwrap();
                }
            }
            // Weights are rounded to the output's dtype, so those of o differ from the f64 run's by one rounding.
            near(
                &s.all(&values, dtype),
                &s.all(&values, DType::F64),
                if dtype == DType::BF16 { 6e-3 } else { 8e-4 },
            );
        }
    }
}

#[test]
fn pieces_continue_and_packed_equals_separate() {
    for gate in [Gate::Scalar(None), Gate::Channel(None)] {
        let s = Setup { gate, dims: [1, 50, 1, 2, 8, 8], ..PLAIN };
        let x: Vec<Var> = s.values().into_iter().map(Var::constant).collect();
        let whole = s.run(&x).unwrap();
        let cut = |from: usize, len: usize, state: &Var| {
            let part = |(i, v): (usize, &Var)| match i {
                STATE => state.clone(),
                6.. => v.clone(),
                _ => v.narrow(1, from, len).unwrap(),
            };
            let x: Vec<Var> = x.iter().enumerate().map(part).collect();
            Setup { dims: [1, len, 1, 2, 8, 8], ..s.clone() }.run(&x).unwrap()
        };
        let (mut state, mut parts) = (x[STATE].clone(), Vec::new());
        for (from, len) in [(0, 17), (17, 0), (17, 1), (18, 32)] {
            let out = cut(from, len, &state);
            state = out.final_state.unwrap().value;
            parts.push(out.o);
        }
        let joined = Var::cat(&parts.iter().collect::<Vec<_>>(), 1).unwrap();
        let f = |v: &Var| v.tensor().to_f64_vec().unwrap();
        near(&[f(&joined), f(&state)], &[f(&whole.o), f(&whole.final_state.unwrap().value)], 1e-12);

        let cu = vec![0, 17, 17, 18, 50];
        let packed = Setup { cu: Some(cu.clone()), ..s.clone() };
        let values = packed.values();
        let y: Vec<Var> = values.iter().cloned().map(Var::constant).collect();
        let all = packed.run(&y).unwrap();
        for n in 0..4 {
            let part = |(i, v): (usize, &Var)| match i {
                STATE => v.narrow(0, n, 1).unwrap(),
                6.. => v.clone(),
                _ => v.narrow(1, cu[n], cu[n + 1] - cu[n]).unwrap(),
            };
            let alone: Vec<Var> = y.iter().enumerate().map(part).collect();
            let out = Setup { dims: [1, cu[n + 1] - cu[n], 1, 2, 8, 8], ..s.clone() }.run(&alone).unwrap();
            let o = all.o.narrow(1, cu[n], cu[n + 1] - cu[n]).unwrap();
            let last = all.final_state.as_ref().unwrap().value.narrow(0, n, 1).unwrap();
            assert_eq!(f(&o), f(&out.o));
            assert_eq!(f(&last), f(&out.final_state.unwrap().value));
        }
    }
}

#[test]
fn strided_inputs_equal_contiguous_ones() {
    let s = Setup { dims: [2, 20, 2, 2, 8, 8], gate: Gate::Scalar(None), ..PLAIN };
    let values = s.values();
    let want = s.all(&values, DType::F64);
    // Heads before tokens, and the keys' channels not innermost.
    let mut strided = values.clone();
    for i in [0, 2] {
        strided[i] = values[i].transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap();
    }
    strided[1] = values[1].transpose(2, 3).unwrap().contiguous().unwrap().transpose(2, 3).unwrap();
    strided[GATE] = values[GATE].transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap();
    assert!(strided[..3].iter().all(|t| !t.is_contiguous()));
    assert_eq!(s.all(&strided, DType::F64), want);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let s = Setup { dims: [2, 100, 1, 3, 20, 20], gate: Gate::Channel(Some(DecayGate::Softplus)), ..PLAIN };
    let values = s.values();
    let with = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| s.all(&values, DType::F32))
    };
    assert_eq!(with(1), with(5));
}

#[test]
fn empty_input_passes_the_state_on() {
    let s = Setup { dims: [2, 0, 1, 2, 3, 2], ..PLAIN };
    let values = s.values();
    let got = s.all(&values, DType::F64);
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
    let all = s.all(&values, DType::F64);
    for i in [0, 1, 2, 3, 4, 5, 8] {
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
