use proptest::prelude::Strategy;
use serde_json::{Value, json};

use super::*;
use crate::REGISTRY;

fn parse(v: Value) -> Result<Config> {
    let Value::Object(map) = v else { panic!("not an object") };
    Config::from_json(map)
}

fn message(v: Value) -> String {
    parse(v.clone()).err().unwrap_or_else(|| panic!("{v} was accepted")).to_string()
}

#[test]
fn defaults_are_the_peers() {
    let c = parse(json!({"model_type": "gated_deltanet"})).unwrap();
    assert_eq!((c.base().num_hidden_layers, c.base().hidden_size, c.base().norm_eps), (21, 2048, 1e-6));
    let c = parse(json!({"model_type": "mamba2"})).unwrap();
    assert_eq!((c.base().num_hidden_layers, c.base().norm_eps), (48, 1e-5));
    let c = parse(json!({"model_type": "retnet"})).unwrap();
    assert_eq!(c.base().mlp_size(), 256 * 11);
    assert_eq!(c.base().eos_token_ids(), [2]);
}

#[test]
fn unknown_keys_are_errors_with_the_nearest_name() {
    let msg = message(json!({"model_type": "gla", "expand_kk": 0.5}));
    assert!(msg.contains("expand_kk") && msg.contains("`expand_k`"), "{msg}");
    let msg = message(json!({"model_type": "mamba2", "attn": {"layers": [0], "num_heads": 2}}));
    assert!(msg.contains("attn"), "{msg}");
    assert!(
        parse(json!({"model_type": "gla", "some_new_flag": null})).is_ok(),
        "an unset key asks for nothing"
    );
    let msg = message(json!({"model_type": "gla", "attnres_block_size": 4}));
    assert!(msg.contains("not supported"), "{msg}");
    let msg = message(json!({"hidden_size": 4}));
    assert!(msg.contains("model_type"), "{msg}");
}

#[test]
fn both_spellings_are_read_and_must_agree() {
    let own = |v: Value| format!("{:?}", parse(v).unwrap().typed());
    assert!(own(json!({"model_type": "gla", "exapnd_k": 0.25})).contains("expand_k: 0.25"));
    let m = own(
        json!({"model_type": "mamba2", "time_step_min": 0.002, "time_step_limit": [0.0, {"__float__": "Infinity"}]}),
    );
    assert!(m.contains("dt_min: 0.002"), "{m}");
    let msg = message(json!({"model_type": "mamba2", "time_step_min": 0.002, "dt_min": 0.003}));
    assert!(msg.contains("time_step_min") && msg.contains("dt_min"), "{msg}");
}

#[test]
fn impossible_sizes_are_named() {
    for (v, word) in [
        (json!({"model_type": "gla", "hidden_size": 0}), "hidden_size"),
        (json!({"model_type": "gla", "hidden_size": -4}), "hidden_size"),
        (json!({"model_type": "gla", "hidden_size": "many"}), "hidden_size"),
        (json!({"model_type": "gla", "num_heads": 3}), "expand_k"),
        (json!({"model_type": "gla", "num_heads": 0}), "heads"),
        (json!({"model_type": "gla", "num_kv_heads": 3}), "num_kv_heads"),
        (json!({"model_type": "gla", "feature_map": "cube"}), "feature_map"),
        (json!({"model_type": "gla", "hidden_act": "gelu"}), "hidden_act"),
        (json!({"model_type": "gla", "expand_k": 1e300}), "expand_k"),
        (json!({"model_type": "gla", "hidden_size": 8192, "num_heads": 4}), "expand_k"),
        (json!({"model_type": "gated_deltanet", "num_v_heads": 7}), "num_v_heads"),
        (json!({"model_type": "gated_deltanet", "expand_v": 0.3}), "expand_v"),
        (json!({"model_type": "gated_deltanet", "output_gate_activation": "relu"}), "output_gate_activation"),
        (json!({"model_type": "kda", "safe_gate": true}), "lower_bound"),
        (json!({"model_type": "kda", "lower_bound": 1.0}), "lower_bound"),
        (json!({"model_type": "kda", "lower_bound": -6.0, "safe_gate": true}), "lower_bound"),
        (json!({"model_type": "retnet", "feature_map": "sqrelu"}), "feature_map"),
        (json!({"model_type": "delta_net", "qk_norm": "l3"}), "qk_norm"),
        (json!({"model_type": "transformer", "num_heads": 5}), "num_heads"),
        (json!({"model_type": "transformer", "window_size": 0}), "window_size"),
        (json!({"model_type": "mamba2", "head_dim": 48}), "head_dim"),
        (json!({"model_type": "mamba2", "num_heads": 5}), "num_heads"),
        (json!({"model_type": "mamba2", "dt_limit": [1.0, 0.5]}), "dt_limit"),
        (json!({"model_type": "gla", "eos_token_id": "end"}), "eos_token_id"),
        (json!({"model_type": "gla", "fuse_linear_cross_entropy": true}), "fuse_linear_cross_entropy"),
        (json!({"model_type": "gla", "vocab_size": 300, "bos_token_id": 300}), "bos_token_id"),
        (json!({"model_type": "gla", "vocab_size": 300, "eos_token_id": [2, 300]}), "eos_token_id"),
        (json!({"model_type": "gla", "vocab_size": 300, "pad_token_id": 300}), "pad_token_id"),
        (json!({"model_type": "gla", "vocab_size": 300, "pad_token_id": -301}), "pad_token_id"),
    ] {
        let msg = message(v.clone());
        assert!(msg.contains(word), "{v}: {msg}");
    }
}

#[test]
fn hybrid_attention_specs_are_checked() {
    let with = |attn: Value| json!({"model_type": "gla", "num_hidden_layers": 4, "attn": attn});
    let c = parse(with(json!([{"layers": [1], "num_heads": 8}, {"layers": [3], "num_heads": 4, "num_kv_heads": 2, "window_size": 16, "qkv_bias": true, "rope_theta": 500.0}]))).unwrap();
    let specs = c.base().attention().unwrap();
    assert_eq!(specs[0].num_kv_heads, 8);
    assert_eq!(
        specs[1],
        AttentionSpec {
            layers: vec![3],
            num_heads: 4,
            num_kv_heads: 2,
            qkv_bias: true,
            window_size: Some(16),
            rope_theta: 500.0,
        }
    );
    for (attn, word) in [
        (json!({"num_heads": 8}), "layers"),
        (json!({"layers": [1]}), "num_heads"),
        (json!({"layers": [4], "num_heads": 8}), "0..4"),
        (json!([{"layers": [1], "num_heads": 8}, {"layers": [1], "num_heads": 8}]), "twice"),
        (json!({"layers": [1], "num_heads": 8, "num_kv_heads": 3}), "num_kv_heads"),
        (json!({"layers": [1], "num_heads": 8, "heads": 3}), "heads"),
        (json!({"layers": [1], "num_heads": 8, "rope_theta": -1.0}), "rope_theta"),
        (json!({"layers": [1], "num_heads": 7}), "num_heads"),
        (json!("yes"), "dict"),
    ] {
        let msg = message(with(attn.clone()));
        assert!(msg.contains(word), "{attn}: {msg}");
    }
}

#[test]
fn saving_keeps_every_key() {
    let raw = json!({"model_type": "gla", "hidden_size": 64, "num_hidden_layers": 1, "fuse_norm": false, "attn_mode": "fused_chunk", "architectures": ["GLAForCausalLM"], "transformers_version": "5.1"});
    assert_eq!(Value::Object(parse(raw.clone()).unwrap().to_json()), raw);
}

/// What a key of the peer means where that is easily got wrong; `tests/python/second.py` computes with all of these.
#[test]
fn keys_mean_what_the_peer_means() {
    let names = |v: Value| {
        let config = parse(v).unwrap();
        let model = crate::Model::blank(&config, crate::DType::F32, &crate::Device::Cpu).unwrap();
        model.params().iter().map(|p| format!("{} {:?}", p.name(), p.dims())).collect::<Vec<_>>().join(" ")
    };
    let small = |extra: Value| {
        let mut v = json!({"hidden_size": 48, "num_hidden_layers": 1, "vocab_size": 9, "num_heads": 2});
        v.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        v
    };
    let affine = |value: Value| names(small(json!({"model_type": "gla", "elementwise_affine": value})));
    assert!(affine(json!(true)).contains("g_norm") && !affine(json!(null)).contains("g_norm"));
    // 48 * (1 / 3) is a little less than 16 in binary.
    assert!(
        names(small(json!({"model_type": "gla", "expand_k": 1.0 / 3.0}))).contains("q_proj.weight [16, 48]")
    );
    let retnet =
        names(small(json!({"model_type": "retnet", "use_short_conv": true, "feature_map": "relu2"})));
    assert!(!retnet.contains("conv1d"), "{retnet}");
    assert!(parse(json!({"model_type": "kda", "lower_bound": -6.0})).is_ok());
}

#[test]
fn presets_are_valid() {
    for family in REGISTRY {
        for (name, mut keys) in family.presets() {
            keys.insert("model_type".into(), family.model_type().into());
            Config::from_json(keys).unwrap_or_else(|e| panic!("{} {name}: {e}", family.model_type()));
        }
    }
}

proptest::proptest! {
    #![proptest_config(crate::cases(300))]

    #[test]
    fn arbitrary_values_never_panic(
        family in 0..REGISTRY.len(),
        key in 0usize..64,
        value in proptest::prelude::prop_oneof![
            proptest::prelude::any::<i64>().prop_map(Value::from),
            proptest::prelude::any::<f64>().prop_map(Value::from),
            proptest::prelude::any::<bool>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            proptest::prelude::Just(Value::Null),
            proptest::prelude::Just(json!([1, {"layers": [0]}])),
            proptest::prelude::Just(json!({"layers": [0], "num_heads": 0})),
        ],
    ) {
        let family = REGISTRY[family];
        let keys = family.keys();
        let mut map = Map::new();
        map.insert("model_type".into(), family.model_type().into());
        map.insert(keys[key % keys.len()].name.into(), value);
        let _ = Config::from_json(map);
    }

    /// Bytes of a file: a valid configuration with damage, through parsing and checks to the error's text.
    #[test]
    fn damaged_files_never_panic(
        family in 0..REGISTRY.len(),
        preset in 0usize..4,
        damages in proptest::prelude::prop::collection::vec((proptest::prelude::any::<proptest::prelude::prop::sample::Index>(), 0usize..12), 0..6),
    ) {
        let family = REGISTRY[family];
        let presets = family.presets();
        let mut keys = presets[preset % presets.len()].1.clone();
        keys.insert("model_type".into(), family.model_type().into());
        keys.insert("attn".into(), json!([{"layers": [0], "num_heads": 2, "window_size": 5}]));
        let mut bytes = serde_json::to_vec(&keys).unwrap();
        for (at, how) in damages {
            let i = at.index(bytes.len());
            match how {
                0 => bytes.truncate(i.max(1)),
                1 => bytes[i] = 0xff,
                2 => bytes.splice(i..i, *b"Infinity").for_each(drop),
                3 => bytes.splice(i..i, *b"999999999999999999999").for_each(drop),
                4 => { bytes.remove(i); if bytes.is_empty() { bytes.push(b'{'); } }
                n => bytes[i] = b"{}[],:\"-0e\\"[n - 5],
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        match Config::load(file.path()) {
            Ok(config) => { let _ = (config.to_json(), config.base().eos_token_ids()); }
            Err(e) => {
                let text = e.to_string();
                assert!(text.contains(&file.path().display().to_string()), "{text}");
            }
        }
    }
}
