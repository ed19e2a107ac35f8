//! Saved sessions with random damage: loading and continuing never panics, and a session that loads continues or says why not.
//! `PROPTEST_CASES=100000` runs longer.
//!
//! Damage is of two kinds: of the bytes, which the checksum finds, and of what the file says, with the checksum made right again, so
//! that the checks behind it are reached.

use std::{collections::BTreeMap, fs, path::Path, sync::LazyLock};

use flashlin_tensor::{DType, Device, Tensor};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{GenerateOptions, Generator, Session, state_file};
use crate::{Config, Model, cases, weights};

/// A model with recurrent, convolution and key/value states, and a session of it as tensors and header.
static VALID: LazyLock<(Model, Vec<u8>, Parts)> = LazyLock::new(|| {
    let keys = json!({
        "model_type": "gated_deltanet", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 20, "num_heads": 1, "head_dim": 4,
        "intermediate_size": 8, "attn": {"layers": [1], "num_heads": 2, "window_size": 5},
    });
    let config = Config::from_json(keys.as_object().cloned().unwrap_or_default()).unwrap();
    let model = Model::new(&config, DType::F32, &Device::Cpu, 1).unwrap();
    let mut session = Session::new(&model, &[vec![1, 2, 3], vec![4; 7]]).unwrap();
    session.advance(&model, &[0, 1], Default::default(), 100).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    session.save(file.path(), &model).unwrap();
    let map = weights::WeightMap::open_file(file.path()).unwrap();
    let tensors = map.keys().map(|k| (k.to_string(), map.get(k).unwrap().copy().unwrap())).collect();
    let head = serde_json::from_str(&map.metadata()["flashlin"]).unwrap();
    (model, fs::read(file.path()).unwrap(), Parts { tensors, head })
});

#[derive(Clone)]
struct Parts {
    tensors: Vec<(String, Tensor)>,
    head: Value,
}

#[derive(Clone, Debug)]
enum Damage {
    /// Set a value somewhere in the header.
    Head(prop::sample::Index, Value),
    /// Take a value out of the header.
    Forget(prop::sample::Index),
    /// Give a tensor another shape (same values, repeated or cut).
    Shape(prop::sample::Index, Vec<usize>),
    /// Give it another type.
    Type(prop::sample::Index, DType),
    /// Set one of its elements.
    Element(prop::sample::Index, prop::sample::Index, f64),
    /// Leave it out.
    Drop(prop::sample::Index),
    /// Store it under another name.
    Rename(prop::sample::Index, String),
}

fn damage() -> impl Strategy<Value = Damage> {
    use prop::sample::Index;
    let value = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..9).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "[a-z]{0,3}".prop_map(Value::from),
        prop::collection::vec(0u64..25, 0..12).prop_map(Value::from),
        prop::sample::select(vec![json!(null), json!({}), json!([[]]), json!(1.5), json!("kv"), json!("vk")]),
    ];
    let types = vec![DType::F64, DType::F32, DType::BF16, DType::I64, DType::I32, DType::U8];
    let odd = prop_oneof![-3.0..9.0f64, prop::sample::select(vec![f64::NAN, f64::INFINITY, 1e18, -1e18])];
    prop_oneof![
        4 => (any::<Index>(), value).prop_map(|(i, v)| Damage::Head(i, v)),
        1 => any::<Index>().prop_map(Damage::Forget),
        3 => (any::<Index>(), prop::collection::vec(0usize..8, 0..5)).prop_map(|(i, d)| Damage::Shape(i, d)),
        1 => (any::<Index>(), prop::sample::select(types)).prop_map(|(i, t)| Damage::Type(i, t)),
        4 => (any::<Index>(), any::<Index>(), odd).prop_map(|(i, at, x)| Damage::Element(i, at, x)),
        1 => any::<Index>().prop_map(Damage::Drop),
        1 => (any::<Index>(), "(layers\\.[0-3]\\.(recurrent|keys|kv_len|conv_q)|logits|x)")
            .prop_map(|(i, n)| Damage::Rename(i, n)),
    ]
}

/// All places in a JSON value, as pointers.
fn places(v: &Value, at: String, out: &mut Vec<String>) {
    match v {
        Value::Object(map) => map.iter().for_each(|(k, v)| places(v, format!("{at}/{k}"), out)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, v)| places(v, format!("{at}/{i}"), out))
        }
        _ => {}
    }
    out.push(at);
}

fn apply(parts: &mut Parts, damage: &Damage) {
    let mut all = Vec::new();
    places(&parts.head, String::new(), &mut all);
    let n = parts.tensors.len().max(1);
    let retyped = |t: &Tensor, dims: &[usize], dtype: DType, change: &dyn Fn(&mut Vec<f64>)| {
        let mut values = t.to_f64_vec().unwrap();
        let count: usize = dims.iter().product();
        values = values.into_iter().cycle().take(count).collect();
        values.resize(count, 0.0);
        change(&mut values);
        Tensor::from_vec(values, dims).unwrap().to_dtype(dtype).unwrap()
    };
    match damage {
        Damage::Head(i, v) => {
            if let Some(place) = parts.head.pointer_mut(&all[i.index(all.len())]) {
                *place = v.clone();
            }
        }
        Damage::Forget(i) => {
            let (parent, key) = all[i.index(all.len())].rsplit_once('/').unwrap_or(("", ""));
            match parts.head.pointer_mut(parent) {
                Some(Value::Object(map)) => drop(map.remove(key)),
                Some(Value::Array(items)) if !items.is_empty() => drop(items.pop()),
                _ => {}
            }
        }
        _ if parts.tensors.is_empty() => {}
        Damage::Shape(i, dims) => {
            let t = &mut parts.tensors[i.index(n)].1;
            *t = retyped(t, dims, t.dtype(), &|_| {});
        }
        Damage::Type(i, dtype) => {
            let t = &mut parts.tensors[i.index(n)].1;
            *t = retyped(t, t.dims(), *dtype, &|_| {});
        }
        Damage::Element(i, at, x) => {
            let t = &mut parts.tensors[i.index(n)].1;
            *t = retyped(t, t.dims(), t.dtype(), &|v| {
                let len = v.len();
                if len > 0 {
                    v[at.index(len)] = *x;
                }
            });
        }
        Damage::Drop(i) => drop(parts.tensors.remove(i.index(n))),
        Damage::Rename(i, name) if parts.tensors.iter().all(|(k, _)| k != name) => {
            parts.tensors[i.index(n)].0 = name.clone();
        }
        Damage::Rename(..) => {}
    }
}

/// Loads, and continues what loads; both may fail with an error.
fn check(path: &Path) {
    let model = &VALID.0;
    match Session::load(path, model) {
        Err(e) => assert!(!e.to_string().is_empty()),
        Ok(session) => {
            let options = GenerateOptions { max_new_tokens: 3, ..GenerateOptions::default() };
            let Ok(run) = Generator::new(model, None, session, options) else { return };
            run.for_each(drop);
        }
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn lying_sessions_never_panic(damages in prop::collection::vec(damage(), 1..4)) {
        let mut parts = VALID.2.clone();
        damages.iter().for_each(|d| apply(&mut parts, d));
        parts.tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let content = state_file::content_hash(parts.tensors.iter().map(|(_, t)| Ok(t.clone()))).unwrap();
        if let Some(place) = parts.head.pointer_mut("/content") {
            *place = content.into();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = BTreeMap::from([("flashlin".to_string(), parts.head.to_string())]);
        weights::write_file(file.path(), &parts.tensors, None, &metadata).unwrap();
        check(file.path());
    }

    #[test]
    fn damaged_bytes_never_panic_and_never_load(
        bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in prop::option::of(any::<prop::sample::Index>()),
        grown in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let mut file = VALID.1.clone();
        for (i, b) in &bytes {
            let at = i.index(file.len());
            file[at] = *b;
        }
        if let Some(i) = cut {
            file.truncate(i.index(file.len()));
        }
        file.extend(grown);
        let path = tempfile::NamedTempFile::new().unwrap();
        fs::write(path.path(), &file).unwrap();
        check(path.path());
        // Tensors begin where the header's length says; behind it every byte counts.
        let header = 8 + VALID.1.first_chunk().map_or(0, |n| u64::from_le_bytes(*n) as usize);
        if file.len() != VALID.1.len() || file[header..] != VALID.1[header..] {
            prop_assert!(Session::load(path.path(), &VALID.0).is_err());
        }
    }
}
