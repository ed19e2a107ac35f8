//! Checkpoints in their publishers' layouts, made from our own models: converting them gives the models back.

use std::path::Path;

use flashlin_ops::Mode;
use flashlin_tensor::{DType, Device, Philox, Tensor, no_grad};
use serde_json::{Value, json};

use super::{Layout, Options, convert, torch::tests::write};
use crate::{Config, ForwardOptions, Input, Model, files};

fn model(keys: Value) -> Model {
    let config = Config::from_json(keys.as_object().unwrap().clone()).unwrap();
    let m = Model::new(&config, DType::F32, &Device::Cpu, 5).unwrap();
    for p in m.params() {
        let noise = Philox::named(9, p.name()).randn(0.0, 0.1, &p.dims(), p.dtype(), &Device::Cpu).unwrap();
        p.set(p.tensor().add(&noise).unwrap()).unwrap();
    }
    m
}

fn get(m: &Model, name: &str) -> Tensor {
    m.params().iter().find(|p| p.name() == name).unwrap_or_else(|| panic!("{name}")).tensor()
}

fn logits(m: &Model) -> Vec<f64> {
    let input = Input::row(&[3, 1, 4, 1, 5, 9, 2, 6]).unwrap();
    let options = ForwardOptions { mode: Mode::Chunk, ..ForwardOptions::default() };
    no_grad(|| m.forward(&input, None, &options)).unwrap().logits.unwrap().tensor().to_f64_vec().unwrap()
}

fn same(a: &Model, b: &Model) {
    let (a, b) = (logits(a), logits(b));
    let far = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far < 1e-5 * a.iter().fold(0.0, |m: f64, x| m.max(x.abs())), "{far}");
}

fn turned(t: &Tensor) -> Tensor {
    t.transpose(0, 1).unwrap().contiguous().unwrap()
}

fn converted(dir: &Path, tensors: &[(String, Tensor)]) -> Model {
    let path = dir.join("model.pth");
    write(&path, tensors);
    convert(&path, &Options::default()).unwrap()
}

/// Names that both RWKV layouts share.
fn rwkv_shared(m: &Model, layers: usize, all: &mut Vec<(String, Tensor)>) {
    let mut put = |theirs: String, ours: String| all.push((theirs, get(m, &ours)));
    put("emb.weight".into(), "model.embeddings.weight".into());
    put("head.weight".into(), "lm_head.weight".into());
    for part in ["weight", "bias"] {
        put(format!("ln_out.{part}"), format!("model.norm.{part}"));
        put(format!("blocks.0.ln0.{part}"), format!("model.layers.0.pre_norm.{part}"));
        for i in 0..layers {
            for (theirs, ours) in [("ln1", "attn_norm"), ("ln2", "ffn_norm"), ("att.ln_x", "attn.g_norm")] {
                put(format!("blocks.{i}.{theirs}.{part}"), format!("model.layers.{i}.{ours}.{part}"));
            }
        }
    }
}

#[test]
fn rwkv7_as_published() {
    let m = model(
        json!({"model_type": "rwkv7", "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 40,
        "decay_low_rank_dim": 4, "gate_low_rank_dim": 6, "a_low_rank_dim": 5, "v_low_rank_dim": 3}),
    );
    let mut all = Vec::new();
    rwkv_shared(&m, 2, &mut all);
    for i in 0..2 {
        let ours = |key: &str| get(&m, &format!("model.layers.{i}.{key}"));
        let mut put = |key: &str, t: Tensor| all.push((format!("blocks.{i}.{key}"), t));
        for key in ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "r_k"] {
            put(&format!("att.{key}"), ours(&format!("attn.{key}")));
        }
        for key in ["k_k", "k_a"] {
            put(&format!("att.{key}"), ours(&format!("attn.{key}")).reshape(&[1, 1, 32]).unwrap());
        }
        for (to, from) in
            [("receptance", "r_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj")]
        {
            put(&format!("att.{to}.weight"), ours(&format!("attn.{from}.weight")));
        }
        for x in ["w", "a", "g", "v"] {
            // The first layer's value residual is stored without effect.
            let from = if x == "v" && i == 0 {
                "model.layers.1.attn.v_lora".into()
            } else {
                format!("model.layers.{i}.attn.{x}_lora")
            };
            let lora = |key: &str| get(&m, &format!("{from}.lora.{key}"));
            put(&format!("att.{x}1"), turned(&lora("0.weight")));
            put(&format!("att.{x}2"), turned(&lora("2.weight")));
            if x != "g" {
                put(&format!("att.{x}0"), lora("2.bias").reshape(&[1, 1, 32]).unwrap());
            }
        }
        put("ffn.x_k", ours("ffn.x_k").reshape(&[1, 1, 32]).unwrap());
        put("ffn.key.weight", ours("ffn.key.weight"));
        put("ffn.value.weight", ours("ffn.value.weight"));
    }
    let dir = tempfile::tempdir().unwrap();
    let found = converted(dir.path(), &all);
    assert_eq!(found.config().model_type(), "rwkv7");
    same(&found, &m);
    // A tensor too many, and one too few, are named.
    let path = dir.path().join("model.pth");
    let message = |all: &[(String, Tensor)]| {
        write(&path, all);
        convert(&path, &Options::default()).err().unwrap().to_string()
    };
    let extra = [all.clone(), vec![("blocks.0.att.secret".into(), get(&m, "lm_head.weight"))]].concat();
    assert!(message(&extra).contains("blocks.0.att.secret"));
    all.retain(|(name, _)| name != "blocks.1.att.k_a");
    assert!(message(&all).contains("blocks.1.att.k_a"));
}

#[test]
fn rwkv6_as_published() {
    let m = model(
        json!({"model_type": "rwkv6", "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "expand_k": 1.0, "vocab_size": 40,
        "proj_low_rank_dim": 4, "gate_low_rank_dim": 6, "norm_eps": 1e-5}),
    );
    let mut all = Vec::new();
    rwkv_shared(&m, 2, &mut all);
    for i in 0..2 {
        let ours = |key: &str| get(&m, &format!("model.layers.{i}.{key}"));
        let mut put = |key: &str, t: Tensor| all.push((format!("blocks.{i}.{key}"), t));
        let row = |t: Tensor| t.reshape(&[1, 1, 32]).unwrap();
        put("att.time_maa_x", row(ours("attn.x_proj.0.mu")));
        for (at, x) in ["r", "w", "k", "v", "g"].into_iter().enumerate() {
            put(&format!("att.time_maa_{x}"), row(ours("attn.x_bias").narrow(0, at, 1).unwrap()));
        }
        // Our order r, w, k, v, g as theirs: w, k, v, r, g.
        let theirs = [1, 2, 3, 0, 4];
        let cat = |parts: Vec<Tensor>| Tensor::cat(&parts.iter().collect::<Vec<_>>(), 0).unwrap();
        let down = ours("attn.x_proj.0.linear.weight");
        put(
            "att.time_maa_w1",
            turned(&cat(theirs.iter().map(|p| down.narrow(0, p * 4, 4).unwrap()).collect())),
        );
        let up = turned(&ours("attn.x_proj.2.weight"));
        let up = cat(theirs.iter().map(|p| up.narrow(0, p * 4, 4).unwrap()).collect());
        put("att.time_maa_w2", up.reshape(&[5, 4, 32]).unwrap());
        put("att.time_decay", row(ours("attn.w_proj.linear.lora.2.bias")));
        put("att.time_decay_w1", turned(&ours("attn.w_proj.linear.lora.0.weight")));
        put("att.time_decay_w2", turned(&ours("attn.w_proj.linear.lora.2.weight")));
        put("att.time_faaaa", ours("attn.bonus"));
        for (to, from) in [("receptance", "r_proj"), ("key", "k_proj"), ("gate", "g_proj")] {
            put(&format!("att.{to}.weight"), ours(&format!("attn.{from}.linear.weight")));
        }
        // There the norm's input is divided by 8 after the recurrence.
        put("att.value.weight", ours("attn.v_proj.linear.weight").affine(8.0, 0.0).unwrap());
        put("att.output.weight", ours("attn.o_proj.weight"));
        for (to, from) in [("k", "key"), ("r", "receptance")] {
            put(&format!("ffn.time_maa_{to}"), row(ours(&format!("ffn.{from}.mu"))));
            put(&format!("ffn.{from}.weight"), ours(&format!("ffn.{from}.linear.weight")));
        }
        put("ffn.value.weight", ours("ffn.value.weight"));
    }
    let dir = tempfile::tempdir().unwrap();
    same(&converted(dir.path(), &all), &m);
}

#[test]
fn mamba2_as_published() {
    let m = model(
        json!({"model_type": "mamba2", "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16, "state_size": 8, "n_groups": 2,
        "vocab_size": 40, "tie_word_embeddings": true, "norm_eps": 1e-5}),
    );
    let mut all: Vec<(String, Tensor)> =
        m.params().iter().map(|p| (p.name().to_string(), p.tensor())).collect();
    all[0].0 = "backbone.embedding.weight".into();
    all.push(("lm_head.weight".into(), all[0].1.clone()));
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("pytorch_model.bin"), &all);
    let config = json!({"d_model": 32, "n_layer": 2, "ssm_cfg": {"layer": "Mamba2", "ngroups": 2}, "residual_in_fp32": true});
    files::write_json(&dir.path().join("config.json"), &config).unwrap();
    let found = convert(dir.path(), &Options::default()).unwrap();
    assert_eq!(found.config().model_type(), "mamba2");
    same(&found, &m);
    let wrong = Options { layout: Some(Layout::Rwkv7), ..Options::default() };
    assert!(convert(dir.path(), &wrong).err().unwrap().to_string().contains("emb.weight"));
}

fn llama(dir: &Path) -> Model {
    let m = model(
        json!({"model_type": "transformer", "hidden_size": 32, "num_hidden_layers": 3, "num_heads": 4, "num_kv_heads": 2,
        "intermediate_size": 48, "vocab_size": 40, "norm_eps": 1e-5, "rope_theta": 5000.0, "hidden_act": "silu"}),
    );
    let renamed = |name: &str| {
        let pairs = [
            ("embeddings", "embed_tokens"),
            (".attn_norm", ".input_layernorm"),
            (".mlp_norm", ".post_attention_layernorm"),
            (".attn.", ".self_attn."),
        ];
        pairs.iter().fold(name.to_string(), |name, (ours, theirs)| name.replace(ours, theirs))
    };
    let all: Vec<(String, Tensor)> = m.params().iter().map(|p| (renamed(p.name()), p.tensor())).collect();
    crate::weights::save(dir, &all, None, crate::weights::DEFAULT_SHARD_BYTES).unwrap();
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 40, "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0, "hidden_act": "silu", "rope_scaling": null});
    files::write_json(&dir.join("config.json"), &config).unwrap();
    m
}

#[test]
fn llama_as_it_is_and_with_some_layers_linear() {
    let dir = tempfile::tempdir().unwrap();
    let m = llama(dir.path());
    same(&convert(dir.path(), &Options::default()).unwrap(), &m);
    let options = Options { family: Some("gla".into()), layers: vec![1], ..Options::default() };
    let hybrid = convert(dir.path(), &options).unwrap();
    assert_eq!(hybrid.config().model_type(), "gla");
    for p in hybrid.params() {
        let kept = !p.name().starts_with("model.layers.1.attn.") || p.name().ends_with("o_proj.weight");
        let old = m.params().iter().find(|o| o.name() == p.name());
        let equal = old.is_some_and(|o| o.tensor().to_f64_vec().unwrap() == p.tensor().to_f64_vec().unwrap());
        assert!(equal || !kept, "{}", p.name());
    }
    // All layers: attention is gone.
    let all = Options { family: Some("gla".into()), ..Options::default() };
    assert!(convert(dir.path(), &all).unwrap().config().base().attention().unwrap().is_empty());
    let message = |o: Options| convert(dir.path(), &o).err().unwrap().to_string();
    assert!(message(Options { layers: vec![9], ..all.clone() }).contains('9'));
    assert!(message(Options { layers: vec![1], ..Options::default() }).contains("family"));
    let scaled = json!({"rope_scaling": {"type": "linear"}, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3});
    files::write_json(&dir.path().join("config.json"), &scaled).unwrap();
    assert!(message(Options::default()).contains("rope_scaling"));
}
