use super::*;

const SMALL: &str = r#"
[data]
sources = [{ paths = ["a.txt"] }, { paths = ["b.jsonl"], weight = 2.0 }]
[train]
steps = 50
"#;

fn set(pairs: &[(&str, &str)]) -> Result<TrainConfig> {
    let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    TrainConfig::parse(SMALL, &pairs)
}

fn refusal(pairs: &[(&str, &str)]) -> String {
    let e = set(pairs).unwrap_err();
    assert_eq!(e.kind(), crate::ErrorKind::Usage, "{e}");
    e.to_string()
}

#[test]
fn every_key_is_documented_and_reads_back() {
    let keys = TrainConfig::keys();
    assert!(keys.len() > 40);
    for k in &keys {
        assert!(k.doc.len() > 15 && k.doc.ends_with('.'), "{}: `{}`", k.path(), k.doc);
    }
    let config = set(&[
        ("model.config.hidden_size", "256"),
        ("model.preset", "tiny"),
        ("data.validation", "[{ paths = ['v.txt'] }]"),
        ("data.context_len", "64"),
        ("optim.betas", "[0.8, 0.99]"),
        ("schedule.decay_type", "wsd"),
        ("schedule.decay_ratio", "0.1"),
        ("train.segment_len", "128"),
        ("train.carry", "truncated"),
    ])
    .unwrap();
    let text = config.to_toml().unwrap();
    assert_eq!(TrainConfig::parse(&text, &[]).unwrap(), config, "{text}");
    // What is written holds every key that has a value.
    let written: Table = text.parse().unwrap();
    for k in keys.iter().filter(|k| k.default != "unset") {
        assert!(written[k.section].get(k.name).is_some(), "{} is not in\n{text}", k.path());
    }
}

#[test]
fn source_keys_are_those_of_the_type() {
    let mut source = SourceConfig::new(["a.txt"]);
    source.format = Some(crate::data::Format::Text);
    source.field = Some("text".into());
    let table = Table::try_from(&source).unwrap();
    let names: Vec<&str> = table.keys().map(String::as_str).collect();
    assert_eq!(names, SOURCE_KEYS);
}

#[test]
fn overrides_reach_every_depth() {
    let c = set(&[
        ("data.sources.1.weight", "0.5"),
        ("model.config.attn.layers", "[1, 3]"),
        ("checkpoint.dir", "2024"),
        ("schedule.lr", "1e-3"),
        ("model.dtype", "bf16"),
    ])
    .unwrap();
    assert_eq!(c.data.sources[1].weight, 0.5);
    assert_eq!(c.model.config["attn"]["layers"].as_array().unwrap().len(), 2);
    assert_eq!(c.checkpoint.dir, Path::new("2024"));
    assert_eq!((c.schedule().lr, c.schedule().steps), (1e-3, 50));
    assert_eq!(c.dtype().unwrap(), flashlin_tensor::DType::BF16);
}

#[test]
fn unknown_keys_name_the_nearest() {
    assert_eq!(
        refusal(&[("optim.epsilon", "1")]),
        "optim.epsilon: unknown key; the nearest key is `optim.eps`"
    );
    assert!(refusal(&[("train.max_norm", "1")]).contains("`optim.max_norm`"));
    assert!(refusal(&[("opitm.betas", "1")]).contains("`optim.betas`"));
    let in_file = |text: &str| TrainConfig::parse(&format!("{SMALL}\n{text}"), &[]).unwrap_err().to_string();
    assert!(in_file("[schedule]\nwarmup = 3").contains("`schedule.warmup_steps`"));
    assert_eq!(in_file("[cheese]\nx = 3"), "cheese: unknown key");
    assert!(in_file("[shedule]\nlr = 3").contains("`schedule`"));
    assert!(
        refusal(&[("data.sources.0.wieght", "1")])
            .contains("data.sources[0].wieght: unknown key; the nearest key is `weight`")
    );
}

#[test]
fn wrong_values_name_the_key() {
    assert!(refusal(&[("train.steps", "many")]).starts_with("train.steps: cannot be \"many\""));
    assert!(refusal(&[("train.steps", "-1")]).starts_with("train.steps:"));
    assert!(refusal(&[("train.steps", "0")]).starts_with("train.steps:"));
    assert!(refusal(&[("eval.tokens", "0")]).starts_with("eval.tokens:"));
    assert!(refusal(&[("data.prefetch", "99999999")]).starts_with("data.prefetch:"));
    assert!(refusal(&[("optim.betas", "[0.9]")]).starts_with("optim.betas:"));
    assert!(refusal(&[("optim.betas", "[0.9, 1.0]")]).starts_with("optim.betas:"));
    assert!(refusal(&[("optim.max_norm", "nan")]).starts_with("optim.max_norm:"));
    assert!(refusal(&[("model.dtype", "f64")]).starts_with("model.dtype:"));
    assert!(refusal(&[("train.carry", "sometimes")]).starts_with("train.carry:"));
    assert!(refusal(&[("schedule.warmup_steps", "51")]).starts_with("schedule.warmup_steps:"));
    assert!(refusal(&[("data.held_out", "1.0")]).starts_with("data.held_out:"));
    assert!(refusal(&[("data.sources.7.weight", "1.0")]).starts_with("data.sources.7.weight:"));
    assert!(refusal(&[("data.sources.0.weight", "0.0")]).starts_with("data.sources[0].weight:"));
    assert!(refusal(&[("data.vocab_size", "300")]).starts_with("data.vocab_size:"));
    assert!(refusal(&[("data", "1")]).starts_with("data: unknown key"));
    assert!(TrainConfig::parse("data = 1", &[]).unwrap_err().to_string().contains("is a section"));
    assert!(TrainConfig::parse("[data", &[]).is_err());
}
