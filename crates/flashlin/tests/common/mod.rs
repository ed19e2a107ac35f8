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
        ("gated_deltaproduct", json!({"num_heads": 2, "head_dim": 16, "num_householder": 2})),
        (
            "gated_deltaproduct",
            json!({"num_heads": 2, "num_v_heads": 4, "head_dim": 12, "expand_v": 1.5, "num_householder": 3, "use_forget_gate": true, "allow_neg_eigval": true, "use_short_conv": false, "attn": hybrid}),
        ),
        ("comba", json!({"num_heads": 2, "head_dim": 16})),
        (
            "comba",
            json!({"num_heads": 2, "num_v_heads": 4, "head_dim": 12, "expand_v": 1.5, "use_inner_decay": false, "use_output_gate": false, "attn": hybrid}),
        ),
        ("rwkv6", json!({"num_heads": 2, "proj_low_rank_dim": 8, "gate_low_rank_dim": 8})),
        (
            "rwkv6",
            json!({"num_heads": 2, "expand_k": 1.0, "expand_v": 2.0, "norm_first": false, "norm_bias": false, "hidden_act": "relu", "proj_low_rank_dim": 4, "gate_low_rank_dim": 8, "attn": hybrid}),
        ),
        (
            "rwkv7",
            json!({"head_dim": 16, "decay_low_rank_dim": 8, "gate_low_rank_dim": 8, "a_low_rank_dim": 8}),
        ),
        (
            "rwkv7",
            json!({"head_dim": null, "num_heads": 4, "value_dim": 64, "fuse_norm": false, "norm_first": false, "norm_bias": false, "gate_low_rank_dim": null, "attn": {"layers": [0], "num_heads": 2}}),
        ),
        ("mesa_net", json!({"num_heads": 2, "head_dim": 16})),
        (
            "mesa_net",
            json!({"num_heads": 2, "head_dim": 12, "use_output_gate": true, "lambda_lower_bound": 0.5, "attn": hybrid}),
        ),
        ("log_linear_mamba2", json!({"head_dim": 16, "state_size": 12})),
        (
            "log_linear_mamba2",
            json!({"head_dim": 16, "state_size": 8, "n_groups": 2, "use_bias": true, "D_has_hdim": true, "norm_before_gate": true, "dt_limit": [0.01, 0.5]}),
        ),
        ("path_attn", json!({"num_heads": 4})),
        (
            "path_attn",
            json!({"num_heads": 4, "num_kv_heads": 2, "use_forget_gate": true, "use_w_shortconv": false, "use_low_rank_w": false}),
        ),
        (
            "nsa",
            json!({"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "block_size": 8, "block_counts": 3, "window_size": 9}),
        ),
        (
            "nsa",
            json!({"num_heads": 4, "num_kv_heads": null, "head_dim": 6, "block_size": 5, "block_counts": 4, "window_size": 0, "qkv_bias": true, "rope_theta": 100.0}),
        ),
        ("transformer", json!({"num_heads": 4})),
        (
            "transformer",
            json!({"num_heads": 4, "num_kv_heads": 2, "qk_norm": true, "qkv_bias": true, "window_size": 7, "rope_theta": 100.0}),
        ),
        // Features that are not negative: where weights cancel, the output norm amplifies rounding beyond what the tests allow.
        ("linear_attn", json!({"num_heads": 2, "feature_map": "t2r"})),
        (
            "linear_attn",
            json!({"num_heads": 4, "num_kv_heads": 2, "feature_map": "hedgehog", "tie_feature_map_qk": true, "norm_feature_map": true, "expand_k": 0.5}),
        ),
        (
            "linear_attn",
            json!({"num_heads": 2, "feature_map": "elu", "norm_q": true, "norm_k": true, "attn": hybrid}),
        ),
        ("linear_attn", json!({"num_heads": 2, "feature_map": "dpfp", "expand_k": 0.5})),
        ("lightnet", json!({"expand_ratio": 16, "gate_low_rank_dim": 8})),
        (
            "lightnet",
            json!({"num_heads": 4, "expand_ratio": 12, "gate_low_rank_dim": 8, "use_short_conv": true, "elementwise_affine": false, "attn": hybrid}),
        ),
        ("hgrn", json!({})),
        (
            "hgrn",
            json!({"expand_ratio": 1.5, "use_lower_bound": false, "use_short_conv": true, "attn": hybrid}),
        ),
        ("hgrn2", json!({"expand_ratio": 16})),
        (
            "hgrn2",
            json!({"expand_ratio": null, "num_heads": 4, "use_short_conv": true, "use_lower_bound": false, "attn": hybrid}),
        ),
        ("gsa", json!({"num_heads": 2, "num_slots": 8})),
        (
            "gsa",
            json!({"num_heads": 4, "num_kv_heads": 2, "num_slots": 5, "use_short_conv": true, "feature_map": "t2r", "expand_v": 1.5, "attn": hybrid}),
        ),
        ("abc", json!({"num_heads": 2, "num_slots": 8})),
        (
            "abc",
            json!({"num_heads": 2, "num_slots": null, "use_short_conv": true, "use_rope": false, "clamp_min": -0.5, "clamp_max": 0.5}),
        ),
        ("forgetting_transformer", json!({"num_heads": 4})),
        (
            "forgetting_transformer",
            json!({"num_heads": 4, "num_kv_heads": 2, "qk_norm": true, "qkv_bias": true, "use_output_gate": true, "window_size": 7}),
        ),
        (
            "mla",
            json!({"num_heads": 2, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 8, "qk_nope_head_dim": 6, "qk_head_dim": 14, "v_head_dim": 10}),
        ),
        (
            "mla",
            json!({"num_heads": 2, "q_lora_rank": null, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "qk_head_dim": null, "v_head_dim": 10, "window_size": 7}),
        ),
        ("mamba", json!({"state_size": 4})),
        (
            "mamba",
            json!({"state_size": 3, "intermediate_size": 40, "dt_rank": 5, "use_bias": true, "use_conv_bias": false, "hidden_act": "gelu", "residual_in_fp32": true}),
        ),
        ("samba", json!({"state_size": 4, "attn": {"layers": [1], "num_heads": 2, "window_size": 9}})),
        ("rodimus", json!({"block_type": "rodimus", "expand_ratio": 8})),
        ("mom", json!({"num_heads": 2, "head_dim": 8})),
        (
            "mom",
            json!({"num_heads": 2, "head_dim": 8, "expand_v": 1.5, "num_memories": 3, "topk": 1, "shared_mem": false, "use_output_gate": false, "use_short_conv": false, "attn": hybrid}),
        ),
        ("mom", json!({"num_heads": 1, "head_dim": 8, "num_memories": 3, "single_kv_proj": true})),
        (
            "rodimus",
            json!({"expand_ratio": 8, "ska_attn": {"num_heads": 2, "window_size": 9, "qk_norm": true, "qkv_bias": true}, "use_short_conv": false, "tie_word_embeddings": false}),
        ),
    ];
    let base =
        json!({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB, "initializer_range": 0.2});
    list.into_iter()
        .enumerate()
        .map(|(i, (family, keys))| {
            let mut all = base.clone();
            all["model_type"] = family.into();
            if family != "mamba" && !family.ends_with("mamba2") {
                all["intermediate_size"] = json!(48);
            }
            if family == "rodimus" {
                (all["bos_token_id"], all["eos_token_id"]) = (json!(1), json!(2));
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

/// What differs between ways of computing the same: rounding, and for MesaNet what its iterative solver leaves.
pub fn assert_close(what: &str, a: &Tensor, b: &Tensor) {
    let e = error(a, b);
    let tolerance = if what.starts_with("mesa_net") { 5e-3 } else { 1e-5 };
    assert!(e <= tolerance, "{what}: relative error {e:.2e}");
}
