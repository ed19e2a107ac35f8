//! Small models of every family, with every option on somewhere, and what the tests share.
#![allow(dead_code)]

use flashlin::{Config, DType, Device, ForwardOptions, Input, Model, ModelState};
use flashlin_ops::Mode;
use flashlin_tensor::{Philox, Tensor, no_grad};
use serde_json::{Value, json};

pub const VOCAB: usize = 61;

/// (name, keys): each family plain, and with its options turned.
pub fn variants() -> Vec<(String, Value)> {
    let hybrid = json!([{"layers": [1], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": true, "window_size": 9, "rope_theta": 500.0}]);
    let list = [
        ("gla", json!({"num_heads": 2})),
        (
            "gla",
            json!({"num_heads": 4, "num_kv_heads": 2, "use_short_conv": true, "feature_map": "relu", "clamp_min": -0.03, "expand_k": 1.0}),
        ),
        (
            "gla",
            json!({"num_heads": 2, "use_output_gate": false, "elementwise_affine": false, "attn": hybrid}),
        ),
        ("retnet", json!({"num_heads": 2})),
        (
            "retnet",
            json!({"num_heads": 4, "num_kv_heads": 2, "use_short_conv": true, "feature_map": "silu", "fuse_norm": false, "attn": hybrid}),
        ),
        ("delta_net", json!({"num_heads": 2})),
        (
            "delta_net",
            json!({"num_heads": 2, "qk_norm": "sum", "qk_activation": "elu", "use_gate": true, "allow_neg_eigval": true, "attn": hybrid}),
        ),
        (
            "delta_net",
            json!({"num_heads": 2, "use_short_conv": false, "use_beta": false, "qk_activation": "relu"}),
        ),
        ("gated_deltanet", json!({"num_heads": 2, "head_dim": 16})),
        (
            "gated_deltanet",
            json!({"num_heads": 2, "num_v_heads": 4, "head_dim": 12, "expand_v": 1.5, "allow_neg_eigval": true, "tie_word_embeddings": true, "attn": hybrid}),
        ),
        (
            "gated_deltanet",
            json!({"num_heads": 2, "head_dim": 16, "use_gate": false, "use_short_conv": false}),
        ),
        ("kda", json!({"num_heads": 2, "head_dim": 16})),
        (
            "kda",
            json!({"num_heads": 1, "num_v_heads": 2, "head_dim": 20, "expand_v": 0.5, "safe_gate": true, "lower_bound": -5.0, "allow_neg_eigval": true, "attn": hybrid}),
        ),
        ("mamba2", json!({"head_dim": 16, "state_size": 12})),
        (
            "mamba2",
            json!({"head_dim": 16, "state_size": 8, "n_groups": 2, "use_bias": true, "D_has_hdim": true, "norm_before_gate": true, "dt_limit": [0.01, 0.5]}),
        ),
        (
            "mamba2",
            json!({"head_dim": 32, "state_size": 8, "rmsnorm": false, "use_conv_bias": false, "residual_in_fp32": false}),
        ),
        ("transformer", json!({"num_heads": 4})),
        (
            "transformer",
            json!({"num_heads": 4, "num_kv_heads": 2, "qk_norm": true, "qkv_bias": true, "window_size": 7, "rope_theta": 100.0}),
        ),
    ];
    let base =
        json!({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB, "initializer_range": 0.2});
    list.into_iter()
        .enumerate()
        .map(|(i, (family, keys))| {
            let mut all = base.clone();
            all["model_type"] = family.into();
            if family != "mamba2" {
                all["intermediate_size"] = json!(48);
            }
            for (k, v) in keys.as_object().unwrap() {
                all[k] = v.clone();
            }
            (format!("{family}#{i}"), all)
        })
        .collect()
}

pub fn config(keys: &Value) -> Config {
    Config::from_json(keys.as_object().unwrap().clone()).unwrap()
}

pub fn model(keys: &Value) -> Model {
    let m = Model::new(&config(keys), DType::F32, &Device::Cpu, 11).unwrap();
    // Norm weights and biases away from their neutral start, so that every parameter matters.
    for p in m.params() {
        let rng = Philox::named(5, p.name());
        let noise = rng.randn(0.0, 0.1, &p.dims(), p.dtype(), &Device::Cpu).unwrap();
        p.set(p.tensor().add(&noise).unwrap()).unwrap();
    }
    m
}

pub fn tokens(seed: u64, n: usize) -> Vec<u32> {
    let rng = Philox::new(seed, 3);
    (0..n as u64).map(|i| rng.below(i, VOCAB as u64) as u32).collect()
}

pub fn options(mode: Mode) -> ForwardOptions {
    ForwardOptions { mode, ..ForwardOptions::default() }
}

pub fn logits(m: &Model, input: &Input, state: Option<&mut ModelState>, mode: Mode) -> Tensor {
    no_grad(|| m.forward(input, state, &options(mode))).unwrap().logits.unwrap().into_tensor()
}

/// Relative L2 error; NaN counts as infinite.
pub fn error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
    let d: f64 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
    let n: f64 = b.iter().map(|y| y * y).sum();
    let e = (d / n.max(1e-30)).sqrt();
    if e.is_finite() { e } else { f64::INFINITY }
}

pub fn assert_close(what: &str, a: &Tensor, b: &Tensor) {
    let e = error(a, b);
    assert!(e <= 1e-5, "{what}: relative error {e:.2e}");
}
