//! Models of which no reference computed right numbers, a second time: from their papers' formulas, one token after another on plain f64 numbers,
//! with nothing of the library but its weights. Gradients are compared with differences along random directions.

mod common;

use std::collections::BTreeMap;

use common::*;
use flashlin::{
    DType, Device, ForwardOptions, Init, Input, Layer, LayerCtx, Model, Tokens,
    modules::{BasedAttention, PolynomialOptions, RebasedAttention},
};
use flashlin_ops::{Mode, PackedSeqs};
use flashlin_tensor::{Philox, Var};
use serde_json::{Value, json};

type Rows = Vec<Vec<f64>>;

/// Weights by name: dims and values.
struct Weights(BTreeMap<String, (Vec<usize>, Vec<f64>)>);

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn plus(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

fn times(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).collect()).collect()
}

fn each(x: &Rows, f: impl Fn(f64) -> f64) -> Rows {
    x.iter().map(|r| r.iter().map(|&x| f(x)).collect()).collect()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::MIN, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - most).exp()).collect();
    let total: f64 = e.iter().sum();
    e.iter().map(|e| e / total).collect()
}

impl Weights {
    fn of(model: &Model) -> Weights {
        let one = |p: &std::sync::Arc<flashlin_tensor::Parameter>| {
            (p.name().to_string(), (p.dims(), p.tensor().to_f64_vec().unwrap()))
        };
        Weights(model.params().iter().map(one).collect())
    }

    fn vec(&self, name: &str) -> &[f64] {
        &self.0.get(name).unwrap_or_else(|| panic!("no weight {name}")).1
    }

    fn linear(&self, name: &str, x: &Rows) -> Rows {
        let (dims, w) = &self.0[&format!("{name}.weight")];
        let bias = self.0.get(&format!("{name}.bias")).map(|b| &b.1);
        let one = |r: &[f64], o: usize| dot(&w[o * dims[1]..][..dims[1]], r) + bias.map_or(0.0, |b| b[o]);
        x.iter().map(|r| (0..dims[0]).map(|o| one(r, o)).collect()).collect()
    }

    fn rms(&self, name: &str, x: &Rows, eps: f64) -> Rows {
        let w = self.vec(&format!("{name}.weight"));
        let one = |r: &Vec<f64>| {
            let scale = (dot(r, r) / r.len() as f64 + eps).sqrt();
            r.iter().enumerate().map(|(i, x)| x / scale * w[i % w.len()]).collect()
        };
        x.iter().map(one).collect()
    }

    /// Per head.
    fn rms_heads(&self, name: &str, x: &Rows, heads: usize, eps: f64) -> Rows {
        let one = |r: &Vec<f64>| {
            let parts: Rows = r.chunks(r.len() / heads).map(<[f64]>::to_vec).collect();
            self.rms(name, &parts, eps).concat()
        };
        x.iter().map(one).collect()
    }

    /// Causal convolution, then silu.
    fn conv(&self, name: &str, x: &Rows) -> Rows {
        let (dims, w) = &self.0[&format!("{name}.weight")];
        let (taps, bias) = (dims[2], self.0.get(&format!("{name}.bias")).map(|b| &b.1));
        let one = |t: usize, c: usize| {
            let sum: f64 = (0..taps)
                .filter(|i| t + 1 + i >= taps)
                .map(|i| w[c * taps + i] * x[t + 1 + i - taps][c])
                .sum();
            silu(sum + bias.map_or(0.0, |b| b[c]))
        };
        (0..x.len()).map(|t| (0..x[t].len()).map(|c| one(t, c)).collect()).collect()
    }

    fn mlp(&self, at: &str, x: &Rows) -> Rows {
        let gate = each(&self.linear(&format!("{at}.gate_proj"), x), silu);
        self.linear(&format!("{at}.down_proj"), &times(&gate, &self.linear(&format!("{at}.up_proj"), x)))
    }

    fn embed(&self, ids: &[u32]) -> Rows {
        let (dims, w) = &self.0["model.embeddings.weight"];
        ids.iter().map(|&i| w[i as usize * dims[1]..][..dims[1]].to_vec()).collect()
    }

    fn head(&self, x: &Rows, eps: f64) -> Rows {
        let x = self.rms("model.norm", x, eps);
        let name = if self.0.contains_key("lm_head.weight") { "lm_head" } else { "model.embeddings" };
        self.linear(name, &x)
    }
}

/// Rotates halves of `x` by position.
fn rope(x: &[f64], position: usize, theta: f64) -> Vec<f64> {
    let half = x.len() / 2;
    let angle = |i: usize| position as f64 / theta.powf(2.0 * i as f64 / x.len() as f64);
    let first = (0..half).map(|i| x[i] * angle(i).cos() - x[half + i] * angle(i).sin());
    let second = (0..half).map(|i| x[half + i] * angle(i).cos() + x[i] * angle(i).sin());
    first.chain(second).collect()
}

/// Mean next-token cross entropy.
fn cross_entropy(logits: &Rows, ids: &[u32]) -> f64 {
    let n = ids.len() - 1;
    (0..n).map(|t| -softmax(&logits[t])[ids[t + 1] as usize].ln()).sum::<f64>() / n as f64
}

/// A model in f64 with noisy weights.
fn noisy(keys: &Value) -> Model {
    let m = Model::new(&config(keys), DType::F64, &Device::Cpu, 3).unwrap();
    for p in m.params() {
        let noise = Philox::named(7, p.name()).randn(0.0, 0.2, &p.dims(), p.dtype(), &Device::Cpu).unwrap();
        p.set(p.tensor().add(&noise).unwrap()).unwrap();
    }
    m
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    let d: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (d / dot(b, b)).sqrt()
}

/// Logits in both forms, the loss, and every parameter's gradient along a random direction.
fn compare(keys: &Value, definition: impl Fn(&Weights, &[u32]) -> (Rows, f64)) {
    let m = noisy(keys);
    let ids = tokens(5, 70);
    let (want, want_loss) = definition(&Weights::of(&m), &ids);
    for mode in [Mode::Chunk, Mode::Recurrent] {
        let got = logits(&m, &Input::row(&ids).unwrap(), None, mode).to_f64_vec().unwrap();
        let error = far(&got, &want.concat());
        // Tables of rotary embeddings are f32.
        assert!(error < 1e-6, "{mode}: logits differ by {error:e}");
    }
    let input = Input::row(&ids).unwrap();
    let Tokens::Ids(labels) = input.tokens.clone() else { panic!() };
    let options = ForwardOptions { mode: Mode::Chunk, ..ForwardOptions::default() };
    let loss = m.forward(&input.with_labels(labels), None, &options).unwrap().loss.unwrap();
    // Losses are f32.
    let got = loss.tensor().to_scalar().unwrap();
    assert!((got - want_loss).abs() < 1e-6 * want_loss, "loss {got}, expected {want_loss}");
    let grads = loss.backward().unwrap();
    for p in m.params() {
        let right = p.tensor();
        let direction =
            Philox::named(9, p.name()).randn(0.0, 1.0, &p.dims(), p.dtype(), &Device::Cpu).unwrap();
        let moved = |by: f64| {
            p.set(right.add(&direction.affine(by, 0.0).unwrap()).unwrap()).unwrap();
            definition(&Weights::of(&m), &ids).1
        };
        // Small: lengths of short keys under a root bend sharply.
        let step = 1e-6;
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        p.set(right.clone()).unwrap();
        let grad = grads.get_param(p).unwrap_or_else(|| panic!("no gradient of {}", p.name()));
        let got = dot(&grad.to_f64_vec().unwrap(), &direction.to_f64_vec().unwrap());
        assert!((got - slope).abs() < 1e-5 * slope.abs().max(1e-2), "{}: {got} {slope}", p.name());
    }
}

#[test]
fn rodimus_plus() {
    let theta = 500.0;
    let keys = json!({"model_type": "rodimus", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": VOCAB, "expand_ratio": 6,
        "input_gate_low_rank": 5, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
        "ska_attn": {"num_heads": 2, "window_size": 9, "rope_theta": theta, "qk_norm": true, "qkv_bias": true}});
    let (eps, state, inner, heads, d) = (1e-5, 6, 32, 2, 8);
    compare(&keys, |w, ids| {
        let mut x = w.embed(ids);
        for l in 0..2 {
            let at = |name: &str| format!("model.layers.{l}.{name}");
            let n = w.rms(&at("mixer_norm"), &x, eps);
            let (h, gate) = (w.linear(&at("mixer.up_proj"), &n), w.linear(&at("mixer.gate_proj"), &n));
            let c = w.conv(&at("mixer.short_conv"), &h);
            let (q, k) = (w.linear(&at("mixer.q_proj"), &c), w.linear(&at("mixer.k_proj"), &c));
            let a = each(&w.linear(&at("mixer.g_gate_proj"), &c), softplus);
            let tau = each(&w.linear(&at("mixer.tau_gate_proj"), &c), sigmoid);
            let low = w.linear(&at("mixer.i_gate_proj.0"), &h);
            let v = times(&each(&w.linear(&at("mixer.i_gate_proj.1"), &low), sigmoid), &h);
            let mut s = vec![vec![0.0; inner]; state];
            let mut o = Vec::new();
            for t in 0..ids.len() {
                let length = dot(&k[t], &k[t]).sqrt();
                for i in 0..state {
                    let write = k[t][i] / length * a[t][i].powf(tau[t][i]);
                    for j in 0..inner {
                        s[i][j] = (-a[t][i] * tau[t][i]).exp() * s[i][j] + write * v[t][j];
                    }
                }
                let skip = w.vec(&at("mixer.residual_weight"));
                let read =
                    |j: usize| (0..state).map(|i| q[t][i] * s[i][j]).sum::<f64>() / (state as f64).sqrt();
                o.push((0..inner).map(|j| read(j) + skip[j] * c[t][j]).collect::<Vec<_>>());
            }
            let o = w.rms(&at("mixer.activation_norm"), &times(&o, &each(&gate, silu)), eps);
            x = plus(&x, &w.linear(&at("mixer.down_proj"), &o));

            let n = w.rms(&at("ska_attn_norm"), &x, eps);
            let q = w.rms_heads(&at("ska_attn.q_norm"), &w.linear(&at("ska_attn.q_proj"), &n), heads, 1e-5);
            let k = w.rms(&at("ska_attn.k_norm"), &w.linear(&at("ska_attn.k_proj"), &n), 1e-5);
            let v = w.linear(&at("ska_attn.v_proj"), &n);
            let k: Rows = k.iter().enumerate().map(|(t, k)| rope(k, t, theta)).collect();
            let mut o = Vec::new();
            for t in 0..ids.len() {
                let seen = t.saturating_sub(8)..t + 1;
                let of_head = |h: usize| -> Vec<f64> {
                    let q = rope(&q[t][h * d..][..d], t, theta);
                    let scores: Vec<f64> = seen.clone().map(|j| dot(&q, &k[j]) / (d as f64).sqrt()).collect();
                    let p = softmax(&scores);
                    (0..d).map(|c| seen.clone().zip(&p).map(|(j, p)| p * v[j][h * d + c]).sum()).collect()
                };
                o.push((0..heads).flat_map(of_head).collect::<Vec<_>>());
            }
            x = plus(&x, &w.linear(&at("ska_attn.o_proj"), &o));
            x = plus(&x, &w.mlp(&at("mlp"), &w.rms(&at("mlp_norm"), &x, eps)));
        }
        let logits = w.head(&x, eps);
        let loss = cross_entropy(&logits, ids);
        (logits, loss)
    });
}

/// A layer over two sequences, one of them empty at first, in f64: whole, packed, and token by token from a state.
fn polynomial(
    layer: &dyn Layer,
    init: &Init,
    heads: usize,
    weight: impl Fn(&Weights, &[f64], &[f64]) -> f64,
    eps: f64,
) {
    let (hidden, n) = (12, 40);
    let weights = Weights(
        init.params()
            .iter()
            .map(|p| (p.name().to_string(), (p.dims(), p.tensor().to_f64_vec().unwrap())))
            .collect(),
    );
    let x = Philox::new(4, 4).randn(0.0, 1.0, &[1, n, hidden], DType::F64, &Device::Cpu).unwrap();
    let rows: Rows = x.to_f64_vec().unwrap().chunks(hidden).map(<[f64]>::to_vec).collect();
    let seqs = PackedSeqs::from_lens(&[25, 0, 15]);
    let mut want = Vec::new();
    for range in seqs.ranges() {
        let x: Rows = rows[range].to_vec();
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| weights.linear(name, &x));
        let cut = |row: &[f64], h: usize| row.chunks(row.len() / heads).nth(h).unwrap().to_vec();
        let mut o: Rows = Vec::new();
        for t in 0..x.len() {
            let of_head = |h: usize| -> Vec<f64> {
                let p: Vec<f64> = (0..=t).map(|j| weight(&weights, &cut(&q[t], h), &cut(&k[j], h))).collect();
                let values: Rows = v.iter().map(|v| cut(v, h)).collect();
                let total: f64 = p.iter().sum::<f64>() + eps;
                (0..values[0].len())
                    .map(|c| p.iter().zip(&values).map(|(p, v)| p * v[c]).sum::<f64>() / total)
                    .collect()
            };
            o.push((0..heads).flat_map(of_head).collect());
        }
        want.extend(weights.linear("o_proj", &o).concat());
    }
    for mode in [Mode::Chunk, Mode::Recurrent] {
        let mut ctx = LayerCtx { seqs: Some(&seqs), mode, ..LayerCtx::stateless() };
        let got = layer.forward(&Var::constant(x.clone()), &mut ctx).unwrap();
        let error = far(&got.tensor().to_f64_vec().unwrap(), &want);
        assert!(error < 1e-10, "{}: {mode}: {error:e}", layer.describe());
    }
    let mut state = flashlin::LayerState::zeros(layer.state_spec(), 1, &Device::Cpu).unwrap();
    for t in 0..25 {
        let mut ctx = LayerCtx { seen: &[t], state: Some(&mut state), ..LayerCtx::stateless() };
        let got = layer.forward(&Var::constant(x.narrow(1, t, 1).unwrap()), &mut ctx).unwrap();
        let error = far(&got.tensor().to_f64_vec().unwrap(), &want[t * hidden..][..hidden]);
        assert!(error < 1e-10, "{}: token {t}: {error:e}", layer.describe());
    }
}

fn noise(init: &Init) {
    for p in init.params() {
        let noise = Philox::named(7, p.name()).randn(0.0, 0.4, &p.dims(), p.dtype(), &Device::Cpu).unwrap();
        p.set(p.tensor().add(&noise).unwrap()).unwrap();
    }
}

#[test]
fn based() {
    let options = PolynomialOptions { heads: 3, kv_heads: 3, features: 5, ..BasedAttention::DEFAULT };
    let init = Init::new(DType::F64, Device::Cpu, 1, 0.3);
    let layer = BasedAttention::new(&init, 12, &options).unwrap();
    noise(&init);
    let weight = |_: &Weights, q: &[f64], k: &[f64]| {
        let s = dot(q, k) / 5f64.sqrt();
        1.0 + s + s * s / 2.0
    };
    polynomial(&layer, &init, 3, weight, 1e-12);
    assert!(BasedAttention::new(&init, 12, &PolynomialOptions { kv_heads: 5, ..options }).is_err());
}

#[test]
fn rebased() {
    let options = PolynomialOptions { heads: 2, kv_heads: 2, features: 6, ..RebasedAttention::DEFAULT };
    for [gamma, beta, normalize] in
        [[true, true, true], [true, true, false], [false, false, true], [true, false, false]]
    {
        let init = Init::new(DType::F64, Device::Cpu, 1, 0.3);
        let layer = RebasedAttention::new(&init, 12, &options, [gamma, beta, normalize]).unwrap();
        noise(&init);
        let phi = |w: &Weights, x: &[f64]| -> Vec<f64> {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
            let plain = |x: f64| if normalize { (x - mean) / (var + 1e-5).sqrt() } else { x };
            let one = |(i, &x): (usize, &f64)| {
                let g = if gamma { w.vec("feature_map.gamma")[i] } else { 1.0 };
                plain(x) * g + if beta { w.vec("feature_map.beta")[i] } else { 0.0 }
            };
            x.iter().enumerate().map(one).collect()
        };
        let weight = |w: &Weights, q: &[f64], k: &[f64]| dot(&phi(w, q), &phi(w, k)).powi(2) / 6.0;
        polynomial(&layer, &init, 2, weight, 1e-5);
    }
}

/// The gated delta rule of one sequence, head by head: q, k, v, b, a by token.
fn delta(w: &Weights, at: &str, heads: usize, [q, k, v, b, a]: [&Rows; 5]) -> Rows {
    let (dk, dv) = (q.first().map_or(1, |r| r.len() / heads), v.first().map_or(1, |r| r.len() / heads));
    let unit = |x: &[f64]| -> Vec<f64> {
        let length = (dot(x, x) + 1e-6).sqrt();
        x.iter().map(|x| x / length).collect()
    };
    let mut state = vec![vec![vec![0.0; dv]; dk]; heads];
    let mut out = Vec::new();
    for t in 0..q.len() {
        let mut row = Vec::new();
        for (h, s) in state.iter_mut().enumerate() {
            let (q, k) = (unit(&q[t][h * dk..][..dk]), unit(&k[t][h * dk..][..dk]));
            let rate = w.vec(&format!("{at}.A_log"))[h].exp();
            let keep = (-rate * softplus(a[t][h] + w.vec(&format!("{at}.dt_bias"))[h])).exp();
            let beta = sigmoid(b[t][h]);
            for j in 0..dv {
                s.iter_mut().for_each(|r| r[j] *= keep);
                let held: f64 = (0..dk).map(|i| k[i] * s[i][j]).sum();
                let write = beta * (v[t][h * dv + j] - held);
                (0..dk).for_each(|i| s[i][j] += k[i] * write);
                row.push((0..dk).map(|i| q[i] * s[i][j]).sum::<f64>() / (dk as f64).sqrt());
            }
        }
        out.push(row);
    }
    out
}

fn mom(keys: Value, memories: usize, topk: usize, heads: usize) {
    let flag = |key: &str, default: bool| keys.get(key).map_or(default, |v| v.as_bool().unwrap());
    let (shared, single, gated) =
        (flag("shared_mem", true), flag("single_kv_proj", false), flag("use_output_gate", true));
    let (eps, scale) = (1e-6, 0.3);
    compare(&keys, |w, ids| {
        let mut x = w.embed(ids);
        let (mut counts, mut means, mut rows) = (vec![0.0; memories], vec![0.0; memories], 0.0);
        for l in 0..2 {
            let at = |name: &str| format!("model.layers.{l}.attn.{name}");
            let n = w.rms(&format!("model.layers.{l}.attn_norm"), &x, eps);
            let scores: Rows = w.linear(&at("gate"), &n).iter().map(|r| softmax(r)).collect();
            let chosen = |t: usize| -> Vec<usize> {
                let rank = |e: usize| (0..memories).filter(|&o| scores[t][o] > scores[t][e]).count();
                (0..memories).filter(|&e| rank(e) < topk).collect()
            };
            let run = |x: &Rows, of: &dyn Fn(&str) -> String| {
                let conv = |name: &str, x: &Rows| w.conv(&at(&format!("{name}_conv1d")), x);
                let q = conv("q", &w.linear(&at("q_proj"), x));
                let k = conv("k", &w.linear(&of("k"), x));
                let v = conv("v", &w.linear(&of("v"), x));
                let (b, a) = (w.linear(&of("b"), x), w.linear(&of("a"), x));
                delta(w, at("").trim_end_matches('.'), heads, [&q, &k, &v, &b, &a])
            };
            let of_shared = |name: &str| at(&format!("shared_{name}"));
            let mut o = match shared {
                true => run(&n, &of_shared),
                false => vec![vec![0.0; w.0[&at("o_proj.weight")].0[1]]; ids.len()],
            };
            for e in 0..memories {
                let list: Vec<usize> = (0..ids.len()).filter(|&t| chosen(t).contains(&e)).collect();
                let entries: Rows = list.iter().map(|&t| n[t].clone()).collect();
                let of_memory =
                    |name: &str| if single { of_shared(name) } else { at(&format!("{name}_proj.{e}")) };
                for (&t, row) in list.iter().zip(run(&entries, &of_memory)) {
                    let share = scores[t][e] / chosen(t).iter().map(|&o| scores[t][o]).sum::<f64>();
                    o[t].iter_mut().zip(row).for_each(|(o, r)| *o += share * r);
                    counts[e] += 1.0;
                }
            }
            for r in &scores {
                rows += 1.0;
                means.iter_mut().zip(r).for_each(|(m, p)| *m += p);
            }
            let mut o = w.rms_heads(&at("o_norm"), &o, heads, eps);
            if gated {
                o = times(&o, &each(&w.linear(&at("g_proj"), &n), silu));
            }
            x = plus(&x, &w.linear(&at("o_proj"), &o));
            let n = w.rms(&format!("model.layers.{l}.mlp_norm"), &x, eps);
            x = plus(&x, &w.mlp(&format!("model.layers.{l}.mlp"), &n));
        }
        let logits = w.head(&x, eps);
        let balance = memories as f64 * dot(&counts, &means) / (rows * rows);
        let loss = cross_entropy(&logits, ids) + scale * balance;
        (logits, loss)
    });
}

#[test]
fn mixture_of_memories() {
    let keys = |extra: Value| {
        let mut keys = json!({"model_type": "mom", "hidden_size": 12, "num_hidden_layers": 2, "vocab_size": VOCAB, "num_heads": 2, "head_dim": 4,
            "expand_v": 1.5, "intermediate_size": 10, "initializer_range": 0.2, "aux_loss_scale": 0.3});
        keys.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        keys
    };
    mom(keys(json!({})), 4, 2, 2);
    mom(keys(json!({"num_memories": 3, "topk": 1, "shared_mem": false, "use_output_gate": false})), 3, 1, 2);
    mom(keys(json!({"num_memories": 3, "single_kv_proj": true, "shared_mem": false})), 3, 2, 2);
}
