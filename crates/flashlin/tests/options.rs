//! Named options of the forward pass and of configs: each acts, and none acts by accident.

mod common;

use common::*;
use flashlin::{Config, DType, Device, ForwardOptions, Input, Logits, Model, Tokens};
use flashlin_ops::{Mode, PackedSeqs};
use flashlin_tensor::{Tensor, Var, no_grad};
use serde_json::{Value, json};

fn run(m: &Model, input: &Input, opts: &ForwardOptions) -> flashlin::Output {
    no_grad(|| m.forward(input, None, opts)).unwrap()
}

#[test]
fn last_logits_hidden_states_and_embeds() {
    let docs = [tokens(1, 5), tokens(2, 1), tokens(3, 8)];
    for (name, keys) in variants() {
        let m = model(&keys);
        let input = Input::packed(&docs).unwrap();
        let all = run(&m, &input, &options(Mode::Auto)).logits.unwrap().into_tensor();
        let last = run(&m, &input, &ForwardOptions { logits: Logits::Last(2), ..options(Mode::Auto) });
        let last = last.logits.unwrap().into_tensor();
        assert_eq!(last.dims(), [3, 2, VOCAB]);
        assert_close(&name, &last.select(0, 0).unwrap(), &all.select(0, 0).unwrap().narrow(0, 3, 2).unwrap());
        assert_close(
            &name,
            &last.select(0, 2).unwrap(),
            &all.select(0, 0).unwrap().narrow(0, 12, 2).unwrap(),
        );
        assert!(
            last.select(0, 1).unwrap().select(0, 0).unwrap().to_f64_vec().unwrap().iter().all(|x| *x == 0.0)
        );

        let out = run(&m, &input, &ForwardOptions { hidden_states: true, ..options(Mode::Auto) });
        assert_eq!(out.hidden_states.len(), m.blocks().len() + 1);
        let embeds = Input { tokens: Tokens::Embeds(out.hidden_states[0].clone()), ..input.clone() };
        let same = run(&m, &embeds, &options(Mode::Auto)).logits.unwrap().into_tensor();
        assert_close(&name, &same, &all);
    }
}

#[test]
fn recomputation_gives_the_same_gradients() {
    let ids = tokens(4, 70);
    for (name, keys) in variants() {
        let m = model(&keys);
        let input = Input::row(&ids).unwrap();
        let labels =
            Tensor::from_vec(ids.iter().map(|&t| i64::from(t)).collect::<Vec<_>>(), &[1, 70]).unwrap();
        let input = input.with_labels(labels);
        let grads = |checkpoint_layers| {
            let opts = ForwardOptions { checkpoint_layers, logits: Logits::None, ..options(Mode::Chunk) };
            m.forward(&input, None, &opts).unwrap().loss.unwrap().backward().unwrap()
        };
        let (plain, again) = (grads(false), grads(true));
        for p in m.params() {
            let (a, b) = (plain.get_param(p), again.get_param(p));
            let (a, b) = (a.unwrap_or_else(|| panic!("{name} {}", p.name())), b.unwrap());
            assert_eq!(a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap(), "{name} {}", p.name());
        }
    }
}

#[test]
fn losses_do_not_cross_documents_and_agree_with_logits() {
    let docs = [tokens(5, 6), tokens(6, 9)];
    let (_, keys) = &variants()[8];
    let m = model(keys);
    let input = Input::packed(&docs).unwrap();
    let Tokens::Ids(ids) = input.tokens.clone() else { panic!() };
    let fused = ForwardOptions { logits: Logits::None, ..options(Mode::Auto) };
    let out = run(&m, &input.clone().with_labels(ids.clone()), &fused);
    assert_eq!(out.loss_tokens, 5 + 8);
    assert!(out.logits.is_none());
    let full = run(&m, &input.clone().with_labels(ids), &options(Mode::Auto));
    let (a, b) =
        (out.loss.unwrap().tensor().to_scalar().unwrap(), full.loss.unwrap().tensor().to_scalar().unwrap());
    let logits = full.logits.unwrap().into_tensor().to_f64_vec().unwrap();
    let flat: Vec<u32> = docs.concat();
    let by_hand: f64 = (0..15)
        .filter(|&i| i != 5 && i != 14)
        .map(|i| {
            let row = &logits[i * VOCAB..][..VOCAB];
            let max = row.iter().copied().fold(f64::MIN, f64::max);
            max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - row[flat[i + 1] as usize]
        })
        .sum::<f64>()
        / 13.0;
    assert!((a - b).abs() < 1e-5 && (a - by_hand).abs() < 1e-5, "{a} {b} {by_hand}");
}

#[test]
fn half_precision_models_stay_close() {
    let ids = tokens(7, 80);
    for (name, keys) in variants() {
        let m = model(&keys);
        let want = logits(&m, &Input::row(&ids).unwrap(), None, Mode::Chunk);
        for dtype in [DType::BF16, DType::F16] {
            let half = Model::new(m.config(), dtype, &Device::Cpu, 0).unwrap();
            for (p, q) in half.params().iter().zip(m.params()) {
                p.set(q.tensor().to_dtype(p.dtype()).unwrap()).unwrap();
            }
            let out = logits(&half, &Input::row(&ids).unwrap(), None, Mode::Chunk);
            assert_eq!(out.dtype(), dtype);
            let e = error(&out, &want);
            // Which blocks NSA selects may turn on rounding.
            let selects = name.starts_with("nsa");
            let bound = if dtype == DType::BF16 { 8e-2 } else { 1e-2 } * if selects { 4.0 } else { 1.0 };
            assert!(e < bound, "{name} {dtype}: {e}");
        }
    }
}

/// Changing a key of a family changes the logits (weights equal wherever shapes allow).
#[test]
fn options_act() {
    let base = |family: &str| {
        json!({"model_type": family, "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB, "initializer_range": 0.2,
               "intermediate_size": 48, "num_heads": if family == "rwkv7" { Value::Null } else { 2.into() }})
    };
    let gdn = |k: Value| (json!({"head_dim": 16}), k);
    let latent = |_: Value| json!({"q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 8, "qk_nope_head_dim": 6, "qk_head_dim": 14, "v_head_dim": 10});
    let nsa = json!({"num_kv_heads": 1, "head_dim": 8, "block_size": 3, "block_counts": 3, "window_size": 2});
    let hybrid = |k: Value| {
        let mut a = json!({"layers": [0], "num_heads": 4, "num_kv_heads": 4});
        for (key, v) in k.as_object().unwrap() {
            a[key] = v.clone();
        }
        json!({"attn": a})
    };
    let cases: Vec<(&str, (Value, Value))> = vec![
        ("gla", (json!({}), json!({"clamp_min": -0.01}))),
        ("gla", (json!({}), json!({"feature_map": "relu"}))),
        ("gla", (json!({}), json!({"norm_eps": 0.5}))),
        ("delta_net", (json!({}), json!({"allow_neg_eigval": true}))),
        ("delta_net", (json!({}), json!({"qk_norm": "sum"}))),
        ("delta_net", (json!({}), json!({"qk_activation": "relu"}))),
        ("gated_deltanet", gdn(json!({"allow_neg_eigval": true}))),
        ("gated_deltanet", gdn(json!({"output_gate_activation": "sigmoid"}))),
        ("gated_deltanet", gdn(json!({"tie_word_embeddings": true}))),
        ("kda", gdn(json!({"lower_bound": -2.0}))),
        ("gated_deltaproduct", gdn(json!({"allow_neg_eigval": true}))),
        ("gated_deltaproduct", gdn(json!({"use_forget_gate": true}))),
        ("gated_deltaproduct", gdn(json!({"num_householder": 2}))),
        ("comba", gdn(json!({"use_output_correction": false}))),
        ("comba", gdn(json!({"use_inner_decay": false}))),
        ("comba", gdn(json!({"correction_factor": 0.02}))),
        ("rwkv6", (json!({}), json!({"norm_first": false}))),
        ("rwkv6", (json!({}), json!({"norm_bias": false}))),
        ("rwkv6", (json!({}), json!({"hidden_act": "relu"}))),
        ("rwkv7", gdn(json!({"norm_first": false}))),
        ("rwkv7", gdn(json!({"value_dim": 64}))),
        ("rwkv7", gdn(json!({"gate_low_rank_dim": null}))),
        ("mesa_net", gdn(json!({"lambda_lower_bound": 0.9}))),
        ("mesa_net", gdn(json!({"max_cg_step_training": 1}))),
        ("mesa_net", gdn(json!({"use_output_gate": true}))),
        ("path_attn", (json!({}), json!({"use_forget_gate": true}))),
        ("path_attn", (json!({}), json!({"use_w_shortconv": false}))),
        ("path_attn", (json!({}), json!({"use_low_rank_w": false}))),
        ("nsa", (nsa.clone(), json!({"block_size": 5}))),
        ("nsa", (nsa.clone(), json!({"block_counts": 4}))),
        ("nsa", (nsa.clone(), json!({"window_size": 4}))),
        ("nsa", (nsa, json!({"rope_theta": 50.0}))),
        ("transformer", (json!({}), json!({"window_size": 3}))),
        ("transformer", (json!({}), json!({"rope_theta": 50.0}))),
        ("transformer", (json!({}), json!({"qk_norm": true}))),
        ("linear_attn", (json!({}), json!({"feature_map": "relu"}))),
        ("linear_attn", (json!({}), json!({"norm_q": true}))),
        ("linear_attn", (json!({}), json!({"norm_k": true}))),
        ("linear_attn", (json!({}), json!({"norm_feature_map": true}))),
        ("linear_attn", (json!({}), json!({"tie_feature_map_qk": true}))),
        ("lightnet", (json!({"expand_ratio": 16}), json!({"use_short_conv": true}))),
        ("hgrn2", (json!({"num_heads": null, "expand_ratio": 16}), json!({"expand_ratio": 8}))),
        ("gsa", (json!({"num_slots": 4}), json!({"gate_logit_normalizer": 1.0}))),
        ("gsa", (json!({"num_slots": 4}), json!({"feature_map": "relu"}))),
        ("gsa", (json!({"num_slots": 4}), json!({"num_slots": 5}))),
        ("abc", (json!({"num_slots": 4}), json!({"clamp_max": 0.01}))),
        ("abc", (json!({"num_slots": 4}), json!({"clamp_min": -0.01}))),
        ("abc", (json!({"num_slots": 4}), json!({"use_rope": false}))),
        ("forgetting_transformer", (json!({}), json!({"window_size": 3}))),
        ("forgetting_transformer", (json!({}), json!({"use_output_gate": true}))),
        ("mla", (latent(json!({})), json!({"window_size": 3}))),
        ("mla", (latent(json!({})), json!({"rope_theta": 50.0}))),
        ("mla", (latent(json!({})), json!({"q_lora_rank": null}))),
        (
            "mla",
            (
                latent(json!({})),
                json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale_all_dim": 1.0}}),
            ),
        ),
        ("gla", (hybrid(json!({})), hybrid(json!({"window_size": 3})))),
        ("gla", (hybrid(json!({})), hybrid(json!({"rope_theta": 50.0})))),
        ("gla", (hybrid(json!({})), hybrid(json!({"num_kv_heads": 2})))),
        ("gla", (hybrid(json!({})), hybrid(json!({"num_heads": 8, "num_kv_heads": 8})))),
        ("gla", (hybrid(json!({})), hybrid(json!({"layers": [1]})))),
        ("gla", (hybrid(json!({})), hybrid(json!({"qkv_bias": true})))),
    ];
    let ids = Input::row(&tokens(8, 20)).unwrap();
    for (family, (first, second)) in cases {
        let build = |extra: &Value, then: &Value| {
            let mut keys = base(family);
            for more in [extra, then] {
                for (k, v) in more.as_object().unwrap() {
                    keys[k] = v.clone();
                }
            }
            logits(&model(&keys), &ids, None, Mode::Auto)
        };
        let (a, b) = (build(&first, &json!({})), build(&first, &second));
        assert!(error(&b, &a) > 1e-4, "{family}: {second} changed nothing");
    }
}

#[test]
fn hints_change_nothing() {
    let ids = Input::row(&tokens(9, 20)).unwrap();
    let keys = json!({"model_type": "gated_deltanet", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": VOCAB, "num_heads": 2, "head_dim": 16});
    let want = logits(&model(&keys), &ids, None, Mode::Auto);
    for (k, v) in [
        ("attn_mode", json!("fused_recurrent")),
        ("fuse_norm", json!(false)),
        ("fuse_swiglu", json!(false)),
        ("fuse_cross_entropy", json!(false)),
        ("max_position_embeddings", json!(8)),
        ("use_cache", json!(false)),
        ("pad_token_id", json!(0)),
    ] {
        let mut changed = keys.clone();
        changed[k] = v;
        let got = logits(&model(&changed), &ids, None, Mode::Auto);
        assert_eq!(got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap(), "{k}");
    }
}

#[test]
fn parameter_statistics_follow_the_initialisation() {
    let stats = |t: &Tensor| {
        let v = t.to_f64_vec().unwrap();
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        (mean, (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64).sqrt())
    };
    // Uniform in +-bound; Glorot's bound with the peer's gain.
    let uniform = |bound: f64| bound / 3f64.sqrt();
    let glorot = |p: &[usize]| uniform(2f64.powf(-2.5) * (6.0 / (p[0] + p[1]) as f64).sqrt());
    let families = [
        ("gla", json!({"num_heads": 4})),
        ("retnet", json!({"num_heads": 4})),
        ("delta_net", json!({"num_heads": 4})),
        ("gated_deltanet", json!({"num_heads": 4})),
        ("kda", json!({"num_heads": 4})),
        ("mamba2", json!({})),
        ("transformer", json!({"num_heads": 4})),
        ("linear_attn", json!({"num_heads": 4})),
        ("lightnet", json!({})),
        ("hgrn", json!({})),
        ("hgrn2", json!({})),
        ("gsa", json!({"feature_map": "t2r"})),
        ("abc", json!({})),
        ("forgetting_transformer", json!({"num_heads": 4})),
        ("mla", json!({"num_heads": 2})),
        ("mamba", json!({})),
        ("samba", json!({"attn": null, "rescale_prenorm_residual": true})),
        ("gated_deltaproduct", json!({"num_heads": 4, "use_forget_gate": true})),
        ("comba", json!({"num_heads": 4})),
        ("log_linear_mamba2", json!({})),
        ("mesa_net", json!({"num_heads": 4})),
        ("path_attn", json!({"num_heads": 4})),
        ("nsa", json!({"num_heads": 4})),
        ("rodimus", json!({"block_type": "rodimus", "bos_token_id": 1, "eos_token_id": 2})),
        ("mom", json!({"head_dim": 64})),
    ];
    for (family, own) in families {
        let mut keys = json!({"model_type": family, "hidden_size": 256, "num_hidden_layers": 2, "vocab_size": 1000, "initializer_range": 0.006});
        keys.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let m = Model::new(
            &Config::from_json(keys.as_object().unwrap().clone()).unwrap(),
            DType::F32,
            &Device::Cpu,
            3,
        )
        .unwrap();
        for p in m.params() {
            let name = p.name();
            let (mean, std) = stats(&p.tensor());
            let dims = p.dims();
            let selective = ["mamba", "samba"].contains(&family);
            let memory = family == "mom" && name.contains(".attn.");
            let spread = match name.rsplit_once("mixer.").map(|(_, n)| n) {
                Some("conv1d.weight" | "conv1d.bias") if selective => Some(uniform(0.5)),
                Some("dt_proj.weight") => Some(uniform(0.25)),
                Some("out_proj.weight") if family == "samba" => Some(uniform(1.0 / (512f64 * 2.0).sqrt())),
                Some(
                    "g_gate_proj.weight"
                    | "tau_gate_proj.weight"
                    | "i_gate_proj.0.weight"
                    | "i_gate_proj.1.weight",
                ) => Some(glorot(&dims)),
                _ => None,
            };
            let spread = match dims.len() {
                2 if memory => Some(glorot(&dims)),
                3 if memory => Some(uniform(0.5)),
                _ => spread,
            };
            if let Some(want) = spread {
                assert!(
                    mean.abs() < 0.15 * want && (std / want - 1.0).abs() < 0.1,
                    "{family} {name}: {mean} {std} {want}"
                );
                continue;
            }
            if name.ends_with("tau_gate_proj.bias") {
                let p: Vec<f64> =
                    p.tensor().to_f64_vec().unwrap().iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
                assert!(p.iter().all(|p| *p > 1.0 / 16.1 && *p < 0.901), "{family} {name}");
                continue;
            }
            if name.ends_with("lower_bounds") {
                assert_eq!((mean, std), (0.0, 0.0), "{family} {name}");
                continue;
            }
            if name.ends_with("norm.weight")
                || (dims.len() == 1 && (name.ends_with(".1.weight") || name.ends_with("residual_weight")))
                || name.ends_with("norm_f.weight")
                || name.contains("norm_swish_gate")
                || name.ends_with(".D")
                || name.ends_with(".L")
                || name.ends_with(".decay")
            {
                assert_eq!((mean, std), (1.0, 0.0), "{family} {name}");
            } else if name.ends_with(".bias")
                && !name.ends_with("dt_proj.bias")
                && !name.ends_with("g_gate_proj.bias")
            {
                assert_eq!((mean, std), (0.0, 0.0), "{family} {name}");
            } else if name.ends_with("A_log") {
                let from_zero = ["gated_deltanet", "gated_deltaproduct", "comba", "mom"].contains(&family);
                let lo = if from_zero { f64::NEG_INFINITY } else { -1e-6 };
                assert!(
                    p.tensor().to_f64_vec().unwrap().iter().all(|a| *a >= lo && *a <= 16f64.ln() + 1e-6),
                    "{family} {name}"
                );
            } else if ["dt_bias", "dt_proj.bias", "g_gate_proj.bias"].iter().any(|n| name.ends_with(n)) {
                let step = |x: &f64| x.exp().ln_1p();
                let (lo, hi) = (1e-3 * 0.99, 0.1 * 1.01);
                assert!(
                    p.tensor().to_f64_vec().unwrap().iter().all(|x| step(x) > lo && step(x) < hi),
                    "{family} {name}"
                );
            } else if name.ends_with("mixer.out_proj.weight") && family.ends_with("mamba2") {
                // Uniform in +-1/sqrt(fan_in), over sqrt(layers).
                let branches = if family == "mamba2" { 2.0 } else { 4.0 };
                let want = 1.0 / (512f64 * branches).sqrt() / 3f64.sqrt();
                assert!((std / want - 1.0).abs() < 0.03, "{family} {name}: {std} {want}");
            } else if family == "log_linear_mamba2" && name.ends_with("down_proj.weight") {
                let want = 1.0 / (768f64 * 4.0).sqrt() / 3f64.sqrt();
                assert!((std / want - 1.0).abs() < 0.03, "{family} {name}: {std} {want}");
            } else if name.ends_with("lambda_params") {
                // lambda starts at 1: softplus of it is what the lower bound leaves.
                assert!(
                    (mean.exp().ln_1p() - 0.75).abs() < 1e-6 && std < 1e-6,
                    "{family} {name}: {mean} {std}"
                );
            } else {
                assert!(
                    mean.abs() < 5e-4 && (std / 0.006 - 1.0).abs() < 0.15,
                    "{family} {name}: {mean} {std}"
                );
            }
        }
    }
}

/// RWKV's own initialisation: ramps over channels and depth, orthogonal maps, zeros.
#[test]
fn rwkv_starts_as_published() {
    let build = |keys: Value| Model::new(&config(&keys), DType::F32, &Device::Cpu, 3).unwrap();
    let values = |m: &Model, name: &str| {
        let p = m.params().iter().find(|p| p.name().ends_with(name)).unwrap_or_else(|| panic!("{name}"));
        p.tensor().to_f64_vec().unwrap()
    };
    let near = |what: &str, x: f64, want: f64| assert!((x - want).abs() < 1e-5, "{what}: {x} {want}");
    let d = 128usize;
    let m = build(
        json!({"model_type": "rwkv7", "hidden_size": d, "num_hidden_layers": 4, "head_dim": 32, "vocab_size": 512,
        "decay_low_rank_dim": 16, "gate_low_rank_dim": 160}),
    );
    for layer in [0usize, 2] {
        let at = |name: &str| values(&m, &format!("layers.{layer}.{name}"));
        let (x_r, x_w, bias, x_k) =
            (at("attn.x_r"), at("attn.x_w"), at("attn.w_lora.lora.2.bias"), at("ffn.x_k"));
        let rest = 1.0 - layer as f64 / 4.0;
        for n in [0, 5, 77, 127] {
            near("x_r", x_r[n], 1.0 - (n as f64 / 128.0).powf(0.2 * rest));
            near("x_w", x_w[n], 1.0 - (n as f64 / 128.0).powf(0.9 * rest));
            near("ffn.x_k", x_k[n], 1.0 - (n as f64 / 128.0).powf(rest.powi(4)));
            let z = ((n % 32) as f64 - 15.5) / 15.5;
            let ramp = -6.0 + 6.0 * (n as f64 / 127.0).powf(1.0 + (layer as f64 / 3.0).powf(0.3));
            near("w bias", bias[n], ramp + 0.5 + 2.5 * z * z.abs());
        }
        near("g_norm", at("attn.g_norm.weight")[3], ((layer + 1) as f64 / 4.0).powf(0.7));
        for zero in
            ["attn.o_proj.weight", "ffn.value.weight", "attn.w_lora.lora.0.weight", "attn.g_norm.bias"]
        {
            assert!(at(zero).iter().all(|x| *x == 0.0), "{zero}");
        }
        // Rows of orthogonal matrices have one length, their gain.
        let gains =
            [("attn.r_proj.weight", d, 1.0), ("attn.k_proj.weight", d, 0.1), ("attn.v_proj.weight", d, 1.0)];
        for (name, width, gain) in gains {
            at(name)
                .chunks(width)
                .for_each(|row| near(name, row.iter().map(|x| x * x).sum::<f64>().sqrt(), gain));
        }
        let up = at("attn.g_lora.lora.2.weight");
        let row = up[..160].iter().map(|x| x * x).sum::<f64>().sqrt();
        near("g_lora", row, 0.1 * (160f64 / 128.0).sqrt());
    }
    assert!(m.params().iter().all(|p| !p.name().contains("layers.0.attn.v_lora")));
    assert!(values(&m, "embeddings.weight").iter().all(|x| x.abs() <= 1e-4));
    let column: f64 = values(&m, "lm_head.weight").iter().step_by(d).map(|x| x * x).sum();
    near("lm_head", column.sqrt(), 0.5 * 2.0);

    let m = build(
        json!({"model_type": "rwkv6", "hidden_size": d, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 512}),
    );
    let bound = 2f64.powf(-2.5) * (6.0 / (d + d / 2) as f64).sqrt();
    let r = values(&m, "layers.0.attn.r_proj.linear.weight");
    let most = r.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    assert!(most <= bound && most > 0.95 * bound, "{most} {bound}");
    for zero in ["attn.x_bias", "attn.bonus", "x_proj.0.mu", "w_proj.linear.lora.0.weight", "ffn.key.mu"] {
        assert!(values(&m, zero).iter().all(|x| *x == 0.0), "{zero}");
    }
    let key = values(&m, "layers.1.ffn.key.linear.weight");
    let std = (key.iter().map(|x| x * x).sum::<f64>() / key.len() as f64).sqrt();
    assert!((std / 0.02 - 1.0).abs() < 0.05, "{std}");
}

#[test]
fn a_mixer_runs_alone_with_a_mask_or_boundaries() {
    let (_, keys) = &variants()[8];
    let m = model(keys);
    let mixer = &m.blocks()[0].parts[0].layer;
    let x =
        flashlin_tensor::Philox::new(1, 0).randn(0.0, 1.0, &[2, 6, 32], DType::F32, &Device::Cpu).unwrap();
    let mask = Tensor::from_vec(vec![0u8, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], &[2, 6]).unwrap();
    let x = Var::constant(x);
    let y = flashlin::forward_masked(&**mixer, &x, &mask, Mode::Auto).unwrap();
    let alone = Var::constant(x.tensor().narrow(0, 0, 1).unwrap().narrow(1, 2, 4).unwrap());
    let want = mixer.forward(&alone, &mut flashlin::LayerCtx::stateless()).unwrap();
    assert_close("mask", &y.tensor().narrow(0, 0, 1).unwrap().narrow(1, 2, 4).unwrap(), want.tensor());
    let seqs = PackedSeqs::from_lens(&[4, 2]);
    let flat = Var::constant(x.tensor().narrow(0, 1, 1).unwrap());
    let mut ctx = flashlin::LayerCtx { seqs: Some(&seqs), ..flashlin::LayerCtx::stateless() };
    let y = mixer.forward(&flat, &mut ctx).unwrap();
    let want = mixer.forward(
        &Var::constant(flat.tensor().narrow(1, 4, 2).unwrap()),
        &mut flashlin::LayerCtx::stateless(),
    );
    assert_close("seqs", &y.tensor().narrow(1, 4, 2).unwrap(), want.unwrap().tensor());
}
