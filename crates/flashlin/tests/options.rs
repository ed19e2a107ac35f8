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
            let bound = if dtype == DType::BF16 { 8e-2 } else { 1e-2 };
            assert!(e < bound, "{name} {dtype}: {e}");
        }
    }
}

/// Changing a key of a family changes the logits (weights equal wherever shapes allow).
#[test]
fn options_act() {
    let base = |family: &str| {
        json!({"model_type": family, "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB, "initializer_range": 0.2,
               "num_heads": 2, "intermediate_size": 48})
    };
    let gdn = |k: Value| (json!({"head_dim": 16}), k);
    let latent = |_: Value| json!({"q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 8, "qk_nope_head_dim": 6, "qk_head_dim": 14, "v_head_dim": 10});
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
            {
                assert_eq!((mean, std), (1.0, 0.0), "{family} {name}");
            } else if name.ends_with(".bias")
                && !name.ends_with("dt_proj.bias")
                && !name.ends_with("g_gate_proj.bias")
            {
                assert_eq!((mean, std), (0.0, 0.0), "{family} {name}");
            } else if name.ends_with("A_log") {
                let lo = if ["gated_deltanet", "mom"].contains(&family) { f64::NEG_INFINITY } else { -1e-6 };
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
            } else if name.ends_with("mixer.out_proj.weight") && family == "mamba2" {
                // Uniform in +-1/sqrt(fan_in), over sqrt(layers).
                let want = 1.0 / (512f64 * 2.0).sqrt() / 3f64.sqrt();
                assert!((std / want - 1.0).abs() < 0.03, "{family} {name}: {std} {want}");
            } else {
                assert!(
                    mean.abs() < 5e-4 && (std / 0.006 - 1.0).abs() < 0.15,
                    "{family} {name}: {mean} {std}"
                );
            }
        }
    }
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
