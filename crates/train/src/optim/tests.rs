use flashlin_tensor::Philox;

use super::*;

/// AdamW as the paper writes it, in f64, without anything fused.
struct Naive {
    w: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    t: i32,
}

impl Naive {
    fn new(w: &Tensor) -> Naive {
        let w = w.to_f64_vec().unwrap();
        Naive { m: vec![0.0; w.len()], v: vec![0.0; w.len()], t: 0, w }
    }

    fn step(&mut self, g: &[f64], lr: f64, decay: f64, c: &OptimConfig) {
        self.t += 1;
        let [b1, b2] = c.betas;
        for i in 0..g.len() {
            self.w[i] -= lr * decay * self.w[i];
            self.m[i] = b1 * self.m[i] + (1.0 - b1) * g[i];
            self.v[i] = b2 * self.v[i] + (1.0 - b2) * g[i] * g[i];
            let (m, v) = (self.m[i] / (1.0 - b1.powi(self.t)), self.v[i] / (1.0 - b2.powi(self.t)));
            self.w[i] -= lr * m / (v.sqrt() + c.eps);
        }
    }
}

fn random(name: &str, dims: &[usize], dtype: DType) -> Tensor {
    Philox::named(7, name).randn(0.0, 1.0, dims, dtype, &Device::Cpu).unwrap()
}

type State = Vec<(String, Tensor)>;

/// Sizes around and above a block, so that both the serial and the parallel path run.
const DIMS: [&[usize]; 4] = [&[3], &[130, 127], &[1], &[5, 7, 2]];

fn params(dtype: DType) -> Vec<Arc<Parameter>> {
    let make = |(i, d): (usize, &&[usize])| {
        Arc::new(Parameter::new(format!("p{i}"), random(&format!("w{i}"), d, dtype)))
    };
    DIMS.iter().enumerate().map(make).collect()
}

fn gradients(params: &[Arc<Parameter>], step: usize, scale: f64) -> Gradients {
    let mut g = Gradients::default();
    for p in params {
        let t = random(&format!("g{}{step}", p.name()), &p.dims(), DType::F32).affine(scale, 0.0).unwrap();
        g.set_param(p, t).unwrap();
    }
    g
}

fn loss() -> Tensor {
    Tensor::full(1.0, &[], DType::F32, &Device::Cpu).unwrap()
}

fn relative(a: &[f64], b: &[f64]) -> f64 {
    let d: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (d / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn follows_a_naive_f64_adamw() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let params = params(dtype);
        let config = OptimConfig { max_norm: 20.0, ..OptimConfig::default() };
        let mut naive: Vec<Naive> = params.iter().map(|p| Naive::new(&p.tensor())).collect();
        let mut adam = AdamW::new(&config, &params, |name| name != "p2").unwrap();
        for step in 0..8 {
            // Steps alternate between clipped and not.
            let grads = gradients(&params, step, if step % 2 == 0 { 1.0 } else { 0.01 });
            let lr = 1e-2 / (step + 1) as f64;
            let all: Vec<Vec<f64>> =
                params.iter().map(|p| grads.get_param(p).unwrap().to_f64_vec().unwrap()).collect();
            let norm = all.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
            let clip = (20.0 / norm).min(1.0);
            let seen = adam.step(&grads, lr, &loss()).unwrap().read().unwrap();
            assert!((seen.grad_norm / norm - 1.0).abs() < 1e-12 && (seen.clip / clip - 1.0).abs() < 1e-6);
            assert_eq!((seen.applied, seen.clip < 1.0), (true, step % 2 == 0));
            for ((n, g), p) in naive.iter_mut().zip(&all).zip(&params) {
                let g: Vec<f64> = g.iter().map(|g| g * clip).collect();
                n.step(&g, lr, if p.name() == "p2" { 0.0 } else { config.weight_decay }, &config);
            }
        }
        for (i, (n, p)) in naive.iter().zip(&params).enumerate() {
            let master = adam.slots[i].master.clone().unwrap_or(p.tensor());
            let error = relative(&master.to_f64_vec().unwrap(), &n.w);
            assert!(error < 2e-6, "{dtype} {}: {error}", p.name());
            // The parameter is the master weight, rounded.
            let rounded = master.to_dtype(dtype).unwrap();
            assert_eq!(rounded.as_bytes().unwrap(), p.tensor().as_bytes().unwrap());
        }
    }
}

fn bits(params: &[Arc<Parameter>]) -> Vec<Vec<u8>> {
    params.iter().map(|p| p.tensor().as_bytes().unwrap().to_vec()).collect()
}

#[test]
fn a_step_that_is_not_finite_changes_nothing_and_is_counted() {
    let params = params(DType::BF16);
    let mut adam = AdamW::new(&OptimConfig::default(), &params, |_| true).unwrap();
    adam.step(&gradients(&params, 0, 1.0), 1e-2, &loss()).unwrap();
    let (before, state) = (bits(&params), adam.state());
    let state: Vec<Vec<u8>> = state[1..].iter().map(|(_, t)| t.as_bytes().unwrap().to_vec()).collect();
    for (round, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        let mut grads = gradients(&params, 1, 1.0);
        let mut g = grads.get_param(&params[1]).unwrap().copy().unwrap();
        g.as_mut_slice::<f32>().unwrap()[130 * 127 - 1] = bad;
        grads.set_param(&params[1], g).unwrap();
        let seen = adam.step(&grads, 1e-2, &loss()).unwrap().read().unwrap();
        let row = round as u64 + 1;
        assert_eq!(
            (seen.applied, seen.applied_steps, seen.skipped_steps, seen.skipped_in_a_row),
            (false, 1, row, row)
        );
    }
    let nan = Tensor::full(f64::NAN, &[], DType::F32, &Device::Cpu).unwrap();
    let seen = adam.step(&gradients(&params, 1, 1.0), 1e-2, &nan).unwrap().read().unwrap();
    assert_eq!((seen.applied, seen.skipped_steps), (false, 4));
    assert_eq!(bits(&params), before);
    let now: Vec<Vec<u8>> = adam.state()[1..].iter().map(|(_, t)| t.as_bytes().unwrap().to_vec()).collect();
    assert_eq!(now, state);
    let seen = adam.step(&gradients(&params, 1, 1.0), 1e-2, &loss()).unwrap().read().unwrap();
    assert_eq!((seen.applied_steps, seen.skipped_steps, seen.skipped_in_a_row), (2, 4, 0));
    // Asked not to skip, it does not.
    let blind = OptimConfig { skip_non_finite: false, ..OptimConfig::default() };
    let mut adam = AdamW::new(&blind, &params, |_| true).unwrap();
    assert!(adam.step(&gradients(&params, 1, 1.0), 1e-2, &nan).unwrap().read().unwrap().applied);
    assert_ne!(bits(&params), before);
}

#[test]
fn saved_state_continues_with_the_same_bits_and_any_thread_count() {
    for dtype in [DType::F32, DType::BF16] {
        let run = |threads: usize, from: usize, adam: &mut AdamW, params: &[Arc<Parameter>]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                for step in from..6 {
                    adam.step(&gradients(params, step, 1.0), 1e-2, &loss()).unwrap();
                }
            });
        };
        let whole = params(dtype);
        let mut adam = AdamW::new(&OptimConfig::default(), &whole, |_| true).unwrap();
        run(1, 0, &mut adam, &whole);

        let halves = params(dtype);
        let mut first = AdamW::new(&OptimConfig::default(), &halves, |_| true).unwrap();
        for step in 0..3 {
            first.step(&gradients(&halves, step, 1.0), 1e-2, &loss()).unwrap();
        }
        let (state, weights) = (first.state(), halves.iter().map(|p| p.tensor()));
        let again: Vec<_> = weights.map(|w| w.copy().unwrap()).collect();
        let again: Vec<_> =
            again.into_iter().zip(&halves).map(|(w, p)| Arc::new(Parameter::new(p.name(), w))).collect();
        let mut second = AdamW::new(&OptimConfig::default(), &again, |_| true).unwrap();
        second.load_state(state).unwrap();
        run(3, 3, &mut second, &again);
        assert_eq!(bits(&again), bits(&whole), "{dtype}");
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name() {
    let params = params(DType::BF16);
    let mut adam = AdamW::new(&OptimConfig::default(), &params, |_| true).unwrap();
    let refused = |adam: &mut AdamW, change: &dyn Fn(&mut State)| {
        let mut state = adam.state();
        change(&mut state);
        adam.load_state(state).unwrap_err().to_string()
    };
    assert!(refused(&mut adam, &|s| drop(s.pop())).contains("`master.p3` is missing"));
    assert!(
        refused(&mut adam, &|s| s[1].1 = Tensor::zeros(&[4], DType::F32, &Device::Cpu).unwrap())
            .contains("`mean.p0`")
    );
    assert!(
        refused(&mut adam, &|s| s.push(("mean.x".into(), s[1].1.clone()))).contains("`mean.x` belongs to no")
    );
    let wide = [Arc::new(Parameter::new("w", Tensor::zeros(&[2], DType::F64, &Device::Cpu).unwrap()))];
    let e = AdamW::new(&OptimConfig::default(), &wide, |_| true).err().unwrap().to_string();
    assert!(e.contains("`w` is f64"), "{e}");
}

#[test]
fn a_parameter_without_a_gradient_stays() {
    let params = params(DType::F32);
    let mut grads = gradients(&params, 0, 1.0);
    grads.take_param(&params[1]);
    let before = bits(&params);
    let mut adam = AdamW::new(&OptimConfig::default(), &params, |_| true).unwrap();
    adam.step(&grads, 1e-2, &loss()).unwrap();
    let after = bits(&params);
    assert_eq!(before[1], after[1]);
    assert!([0, 2, 3].iter().all(|&i| before[i] != after[i]));
}
