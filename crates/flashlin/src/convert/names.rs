//! Names and sizes of the layouts: which tensor becomes which parameter.

use std::collections::BTreeMap;

use flashlin_tensor::Tensor;
use serde_json::{Value, json};

use super::{Layout, Plan, Recipe, Source};
use crate::{Error, Result, config::Map};

/// The plan for a source of this layout.
pub(super) fn plan(layout: Layout, source: &dyn Source, config: Option<&Map>) -> Result<Plan> {
    match layout {
        Layout::Rwkv7 => rwkv7(source),
        Layout::Rwkv6 => rwkv6(source),
        Layout::Mamba | Layout::Mamba2 => mamba(source, layout, config),
        Layout::Llama => llama(source, config),
    }
}

/// Recipes as they are collected.
#[derive(Default)]
struct Names(BTreeMap<String, Recipe>);

impl Names {
    fn put(&mut self, ours: impl Into<String>, recipe: Recipe) {
        self.0.insert(ours.into(), recipe);
    }

    fn same(&mut self, ours: impl Into<String>, theirs: impl Into<String>) {
        self.put(ours, Recipe::As(theirs.into()));
    }

    fn turned(&mut self, ours: impl Into<String>, theirs: impl Into<String>) {
        self.put(ours, Recipe::Turned(theirs.into()));
    }

    /// Weight and bias of a norm.
    fn norm(&mut self, ours: &str, theirs: &str) {
        for part in ["weight", "bias"] {
            self.same(format!("{ours}.{part}"), format!("{theirs}.{part}"));
        }
    }
}

fn shape<const N: usize>(source: &dyn Source, name: &str) -> Result<[usize; N]> {
    let dims = source.dims(name).ok_or_else(|| Error::argument("checkpoint", format!("lacks `{name}`")))?;
    let n = dims.len();
    dims.try_into()
        .map_err(|_| Error::argument("checkpoint", format!("has `{name}` with {n} dimensions, expected {N}")))
}

/// Layers, counted by a key of each.
fn count(source: &dyn Source, key: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|&i| source.dims(&key(i)).is_some()).count()
}

fn object(v: Value) -> Map {
    match v {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// What both RWKV layouts share: embeddings, norms, the last maps.
fn rwkv_ends(source: &dyn Source, names: &mut Names) -> bool {
    names.same("model.embeddings.weight", "emb.weight");
    names.same("lm_head.weight", "head.weight");
    names.norm("model.norm", "ln_out");
    // Some files have the first norm worked into the embeddings.
    let first = source.dims("blocks.0.ln0.weight").is_some();
    if first {
        names.norm("model.layers.0.pre_norm", "blocks.0.ln0");
    }
    first
}

fn rwkv7(source: &dyn Source) -> Result<Plan> {
    let [vocab, hidden] = shape(source, "emb.weight")?;
    let [heads, head_dim] = shape(source, "blocks.0.att.r_k")?;
    let [width, _] = shape(source, "blocks.0.ffn.key.weight")?;
    let layers = count(source, |i| format!("blocks.{i}.att.r_k"));
    let rank = |name: &str| shape::<2>(source, name).map(|d| d[1]);
    let mut names = Names::default();
    let norm_first = rwkv_ends(source, &mut names);
    for i in 0..layers {
        let (ours, theirs) = (format!("model.layers.{i}"), format!("blocks.{i}"));
        names.norm(&format!("{ours}.attn_norm"), &format!("{theirs}.ln1"));
        names.norm(&format!("{ours}.ffn_norm"), &format!("{theirs}.ln2"));
        names.norm(&format!("{ours}.attn.g_norm"), &format!("{theirs}.att.ln_x"));
        for key in ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "r_k"] {
            names.same(format!("{ours}.attn.{key}"), format!("{theirs}.att.{key}"));
        }
        for (to, from) in
            [("r_proj", "receptance"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "output")]
        {
            names.same(format!("{ours}.attn.{to}.weight"), format!("{theirs}.att.{from}.weight"));
        }
        let loras = ["w", "a", "g"].into_iter().chain((i > 0).then_some("v"));
        for x in loras {
            let at = format!("{ours}.attn.{x}_lora.lora");
            names.turned(format!("{at}.0.weight"), format!("{theirs}.att.{x}1"));
            names.turned(format!("{at}.2.weight"), format!("{theirs}.att.{x}2"));
            if x != "g" {
                names.same(format!("{at}.2.bias"), format!("{theirs}.att.{x}0"));
            }
        }
        names.same(format!("{ours}.ffn.x_k"), format!("{theirs}.ffn.x_k"));
        for key in ["key", "value"] {
            names.same(format!("{ours}.ffn.{key}.weight"), format!("{theirs}.ffn.{key}.weight"));
        }
    }
    let config = json!({
        "model_type": "rwkv7", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers, "head_dim": head_dim, "num_heads": heads,
        "intermediate_size": width, "norm_first": norm_first, "decay_low_rank_dim": rank("blocks.0.att.w1")?,
        "gate_low_rank_dim": rank("blocks.0.att.g1")?, "a_low_rank_dim": rank("blocks.0.att.a1")?,
        "v_low_rank_dim": rank("blocks.1.att.v1").unwrap_or(32), "bos_token_id": 0, "eos_token_id": 0,
    });
    // The first layer's value residual is stored, but has nothing to mix with.
    let unused = ["v0", "v1", "v2"].map(|x| format!("blocks.0.att.{x}")).to_vec();
    Ok(Plan { config: object(config), recipes: names.0, unused })
}

/// The five shifts are w, k, v, r, g there and r, w, k, v, g here.
const SHIFTS: [usize; 5] = [3, 0, 1, 2, 4];

/// `[C, 5 R]` to `[5 R, C]` with the shifts in our order.
fn shift_down(t: &Tensor) -> Result<Tensor> {
    let [c, rows] = t.dims_n::<2>("convert", "time_maa_w1")?;
    let rank = rows / 5;
    let parts = t.reshape(&[c, 5, rank])?;
    let parts = SHIFTS.iter().map(|&i| parts.narrow(1, i, 1)).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(Tensor::cat(&parts.iter().collect::<Vec<_>>(), 1)?
        .reshape(&[c, rows])?
        .transpose(0, 1)?
        .contiguous()?)
}

/// `[5, R, C]` to `[C, 5 R]` with the shifts in our order.
fn shift_up(t: &Tensor) -> Result<Tensor> {
    let [five, rank, c] = t.dims_n::<3>("convert", "time_maa_w2")?;
    if five != 5 {
        return Err(Error::argument(
            "checkpoint",
            format!("has time_maa_w2 {:?}, expected [5, R, C]", t.dims()),
        ));
    }
    let parts = SHIFTS.iter().map(|&i| t.narrow(0, i, 1)).collect::<std::result::Result<Vec<_>, _>>()?;
    let all = Tensor::cat(&parts.iter().collect::<Vec<_>>(), 0)?.reshape(&[5 * rank, c])?;
    Ok(all.transpose(0, 1)?.contiguous()?)
}

fn rwkv6(source: &dyn Source) -> Result<Plan> {
    let [vocab, hidden] = shape(source, "emb.weight")?;
    let [heads, _] = shape(source, "blocks.0.att.time_faaaa")?;
    let [width, _] = shape(source, "blocks.0.ffn.key.weight")?;
    let [_, down] = shape(source, "blocks.0.att.time_maa_w1")?;
    let [_, decay] = shape(source, "blocks.0.att.time_decay_w1")?;
    let layers = count(source, |i| format!("blocks.{i}.att.time_faaaa"));
    let mut names = Names::default();
    let norm_first = rwkv_ends(source, &mut names);
    for i in 0..layers {
        let (ours, theirs) = (format!("model.layers.{i}"), format!("blocks.{i}"));
        let att = |key: &str| format!("{theirs}.att.{key}");
        names.norm(&format!("{ours}.attn_norm"), &format!("{theirs}.ln1"));
        names.norm(&format!("{ours}.ffn_norm"), &format!("{theirs}.ln2"));
        names.norm(&format!("{ours}.attn.g_norm"), &att("ln_x"));
        names.same(format!("{ours}.attn.bonus"), att("time_faaaa"));
        names.same(format!("{ours}.attn.x_proj.0.mu"), att("time_maa_x"));
        names.put(
            format!("{ours}.attn.x_proj.0.linear.weight"),
            Recipe::Parts(att("time_maa_w1"), shift_down),
        );
        names.put(format!("{ours}.attn.x_proj.2.weight"), Recipe::Parts(att("time_maa_w2"), shift_up));
        let shifts = ["r", "w", "k", "v", "g"].map(|x| att(&format!("time_maa_{x}"))).to_vec();
        names.put(format!("{ours}.attn.x_bias"), Recipe::Stacked(shifts));
        names.turned(format!("{ours}.attn.w_proj.linear.lora.0.weight"), att("time_decay_w1"));
        names.turned(format!("{ours}.attn.w_proj.linear.lora.2.weight"), att("time_decay_w2"));
        names.same(format!("{ours}.attn.w_proj.linear.lora.2.bias"), att("time_decay"));
        for (to, from) in [("r_proj", "receptance"), ("k_proj", "key"), ("g_proj", "gate")] {
            names.same(format!("{ours}.attn.{to}.linear.weight"), format!("{}.weight", att(from)));
        }
        // There the outputs are divided by 8 before their norm; outputs are linear in values.
        names.put(format!("{ours}.attn.v_proj.linear.weight"), Recipe::Scaled(att("value.weight"), 0.125));
        names.same(format!("{ours}.attn.o_proj.weight"), att("output.weight"));
        for (to, from) in [("key", "k"), ("receptance", "r")] {
            names.same(format!("{ours}.ffn.{to}.mu"), format!("{theirs}.ffn.time_maa_{from}"));
            names.same(format!("{ours}.ffn.{to}.linear.weight"), format!("{theirs}.ffn.{to}.weight"));
        }
        names.same(format!("{ours}.ffn.value.weight"), format!("{theirs}.ffn.value.weight"));
    }
    let config = json!({
        "model_type": "rwkv6", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers, "num_heads": heads, "expand_k": 1.0,
        "expand_v": 1.0, "intermediate_size": width, "norm_first": norm_first, "proj_low_rank_dim": down / 5, "gate_low_rank_dim": decay,
        "bos_token_id": 0, "eos_token_id": 0,
    });
    Ok(Plan { config: object(config), recipes: names.0, unused: Vec::new() })
}

fn mamba(source: &dyn Source, layout: Layout, config: Option<&Map>) -> Result<Plan> {
    let embedding = ["backbone.embedding.weight", "backbone.embeddings.weight"];
    let embedding = embedding.into_iter().find(|k| source.dims(k).is_some()).unwrap_or(embedding[0]);
    let [vocab, hidden] = shape(source, embedding)?;
    let layers = count(source, |i| format!("backbone.layers.{i}.mixer.A_log"));
    let mixer = |key: &str| format!("backbone.layers.0.mixer.{key}");
    let [_, inner] = shape(source, &mixer("out_proj.weight"))?;
    let [channels, _, taps] = shape(source, &mixer("conv1d.weight"))?;
    let given = |group: Option<&str>, key: &str| {
        let map = match group {
            Some(g) => config?.get(g)?.as_object()?,
            None => config?,
        };
        map.get(key).cloned()
    };
    let tied = match given(None, "tie_embeddings").or_else(|| given(None, "tie_word_embeddings")) {
        Some(v) => v.as_bool().unwrap_or(true),
        None => true,
    };
    if inner % hidden != 0 {
        return Err(Error::argument(
            "checkpoint",
            format!("is {inner} wide inside, no multiple of {hidden}"),
        ));
    }
    let mut map = object(json!({
        "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers, "expand": inner / hidden, "conv_kernel": taps,
        "use_bias": source.dims(&mixer("in_proj.bias")).is_some(), "use_conv_bias": source.dims(&mixer("conv1d.bias")).is_some(),
        "norm_eps": 1e-5, "tie_word_embeddings": tied, "residual_in_fp32": given(None, "residual_in_fp32").unwrap_or(true.into()),
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }));
    let own = match layout {
        Layout::Mamba => {
            let [_, state] = shape(source, &mixer("A_log"))?;
            let [_, rank] = shape(source, &mixer("dt_proj.weight"))?;
            json!({"model_type": "mamba", "state_size": state, "dt_rank": rank})
        }
        _ => {
            let [heads] = shape(source, &mixer("A_log"))?;
            let [skip] = shape(source, &mixer("D"))?;
            let groups =
                given(Some("ssm_cfg"), "ngroups").and_then(|g| g.as_u64()).unwrap_or(1).max(1) as usize;
            let states = channels.saturating_sub(inner);
            if heads == 0 || inner % heads != 0 || states % (2 * groups) != 0 {
                let why = format!(
                    "has {heads} heads and {channels} channels for {inner} inside in {groups} groups"
                );
                return Err(Error::argument("checkpoint", why));
            }
            json!({"model_type": "mamba2", "state_size": states / (2 * groups), "num_heads": heads, "head_dim": inner / heads, "n_groups": groups,
                "D_has_hdim": skip != heads, "rmsnorm": source.dims(&mixer("norm.weight")).is_some(),
                "norm_before_gate": given(Some("ssm_cfg"), "norm_before_gate").unwrap_or(false.into())})
        }
    };
    map.extend(object(own));
    let mut names = Names::default();
    for key in source.names() {
        let ours = if key == embedding { "backbone.embeddings.weight".into() } else { key.clone() };
        names.same(ours, key);
    }
    Ok(Plan { config: map, recipes: names.0, unused: Vec::new() })
}

fn llama(source: &dyn Source, config: Option<&Map>) -> Result<Plan> {
    let config = config.ok_or_else(|| Error::argument("checkpoint", "has no config.json beside it"))?;
    let number = |key: &str| config.get(key).and_then(Value::as_u64).map(|n| n as usize);
    let known = |key: &'static str| number(key).ok_or_else(|| Error::config(key, "is missing"));
    let (hidden, heads) = (known("hidden_size")?, known("num_attention_heads")?);
    if let Some(d) = number("head_dim").filter(|d| d * heads != hidden) {
        let why = format!("is {d}; supported: hidden_size / num_attention_heads = {}", hidden / heads.max(1));
        return Err(Error::config("head_dim", why));
    }
    for key in ["rope_scaling", "quantization_config"] {
        if config.get(key).is_some_and(|v| !v.is_null()) {
            return Err(Error::config(key, format!("is {}; supported: null", config[key])));
        }
    }
    let value =
        |key: &str, default: Value| config.get(key).cloned().filter(|v| !v.is_null()).unwrap_or(default);
    let layers = known("num_hidden_layers")?;
    let bias = source.dims("model.layers.0.self_attn.q_proj.bias").is_some();
    let ours = json!({
        "model_type": "transformer", "vocab_size": known("vocab_size")?, "hidden_size": hidden, "num_hidden_layers": layers,
        "intermediate_size": known("intermediate_size")?, "num_heads": heads, "num_kv_heads": number("num_key_value_heads").unwrap_or(heads),
        "qkv_bias": bias, "norm_eps": value("rms_norm_eps", json!(1e-6)), "rope_theta": value("rope_theta", json!(10000.0)),
        "window_size": value("sliding_window", Value::Null), "tie_word_embeddings": value("tie_word_embeddings", json!(false)),
        "hidden_act": value("hidden_act", json!("silu")), "bos_token_id": value("bos_token_id", json!(1)),
        "eos_token_id": value("eos_token_id", json!(2)), "max_position_embeddings": value("max_position_embeddings", Value::Null),
    });
    let mut names = Names::default();
    names.same("model.embeddings.weight", "model.embed_tokens.weight");
    names.same("model.norm.weight", "model.norm.weight");
    names.same("lm_head.weight", "lm_head.weight");
    let mut unused = Vec::new();
    for i in 0..layers {
        let at = format!("model.layers.{i}");
        for (to, from) in [("attn_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")] {
            names.same(format!("{at}.{to}.weight"), format!("{at}.{from}.weight"));
        }
        for x in ["q", "k", "v", "o"] {
            names.same(format!("{at}.attn.{x}_proj.weight"), format!("{at}.self_attn.{x}_proj.weight"));
            if bias && x != "o" {
                names.same(format!("{at}.attn.{x}_proj.bias"), format!("{at}.self_attn.{x}_proj.bias"));
            }
        }
        for x in ["gate", "up", "down"] {
            names.same(format!("{at}.mlp.{x}_proj.weight"), format!("{at}.mlp.{x}_proj.weight"));
        }
        // Frequencies of the rotary embedding: constants.
        unused.push(format!("{at}.self_attn.rotary_emb.inv_freq"));
    }
    Ok(Plan { config: object(ours), recipes: names.0, unused })
}
