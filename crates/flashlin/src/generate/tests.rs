use std::{fs, path::Path};

use flashlin_tensor::{DType, Device, Philox, Tensor};
use serde_json::{Value, json};

use super::*;
use crate::{Config, ErrorKind, Model, weights::WeightMap};

const VOCAB: usize = 300;

fn keys(family: &str) -> Value {
    let attn = json!({"layers": [1], "num_heads": 2, "window_size": 6});
    let mut keys = json!({
        "model_type": family, "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB,
        "num_heads": 2, "intermediate_size": 48, "initializer_range": 0.3,
    });
    if family == "gated_deltanet" {
        keys["head_dim"] = json!(16);
        keys["attn"] = attn;
    }
    keys
}

fn build(keys: &Value, seed: u64) -> Model {
    let config = Config::from_json(keys.as_object().unwrap().clone()).unwrap();
    Model::new(&config, DType::F32, &Device::Cpu, seed).unwrap()
}

fn models() -> Vec<Model> {
    ["gla", "gated_deltanet", "transformer"].iter().map(|f| build(&keys(f), 3)).collect()
}

fn prompt(seed: u64, n: usize) -> Vec<u32> {
    (0..n).map(|i| Philox::new(seed, 9).below(i as u64, VOCAB as u64) as u32).collect()
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, ..Default::default() }
}

fn sampled(max_new_tokens: usize) -> GenerateOptions {
    let sampling = SamplingParams {
        temperature: 0.9,
        top_p: 0.95,
        repetition_penalty: 1.2,
        seed: 5,
        ..Default::default()
    };
    GenerateOptions { sampling, ..options(max_new_tokens) }
}

fn ids(model: &Model, prompts: &[Vec<u32>], options: GenerateOptions) -> Vec<Vec<u32>> {
    generate(model, None, prompts, options, |_| {}).unwrap().0.into_iter().map(|g| g.ids).collect()
}

#[test]
fn rows_do_not_influence_each_other_and_end_independently() {
    let prompts = [prompt(1, 5), prompt(2, 70), prompt(3, 1), prompt(4, 20)];
    for model in models() {
        let name = model.config().model_type();
        let alone: Vec<Vec<u32>> =
            prompts.iter().map(|p| ids(&model, std::slice::from_ref(p), options(12)).remove(0)).collect();
        assert_eq!(ids(&model, &prompts, options(12)), alone, "{name}");
        assert!(alone.iter().all(|ids| ids.len() == 12));
        // An end token that some rows reach early.
        let eos = alone[1][3];
        let ended = GenerateOptions { eos: vec![eos], ..options(12) };
        let (rows, timings) = generate(&model, None, &prompts, ended, |_| {}).unwrap();
        for (row, whole) in rows.iter().zip(&alone) {
            match whole.iter().position(|id| *id == eos) {
                Some(at) => {
                    assert_eq!(row.ids, whole[..=at], "{name}");
                    assert_eq!(row.finish, Some(Finish::Eos(eos)));
                }
                None => assert_eq!((&row.ids, &row.finish), (whole, &Some(Finish::Length)), "{name}"),
            }
        }
        assert_eq!(timings.prefill_tokens, 96);
        assert_eq!(timings.new_tokens, rows.iter().map(|r| r.ids.len()).sum::<usize>());
    }
}

#[test]
fn prefill_in_pieces_changes_nothing() {
    let prompts = [prompt(1, 33), prompt(2, 7)];
    for model in models() {
        let whole = ids(&model, &prompts, options(6));
        for prefill_tokens in [1, 5, 16] {
            let pieces = GenerateOptions { prefill_tokens, ..options(6) };
            assert_eq!(
                ids(&model, &prompts, pieces),
                whole,
                "{} {prefill_tokens}",
                model.config().model_type()
            );
        }
    }
}

#[test]
fn sampling_repeats_and_a_row_repeats_alone_on_its_stream() {
    let model = &models()[0];
    let prompts = [prompt(1, 5), prompt(1, 5)];
    let both = ids(model, &prompts, sampled(10));
    assert_eq!(both, ids(model, &prompts, sampled(10)));
    assert_ne!(both[0], both[1]);
    let mut session = Session::new(model, &prompts[1..]).unwrap();
    session.set_stream(0, 1).unwrap();
    let mut run = Generator::new(model, None, session, sampled(10)).unwrap();
    assert!(run.by_ref().all(|e| e.is_ok()));
    assert_eq!(run.results()[0].ids, both[1]);
}

fn run(model: &Model, session: Session, options: GenerateOptions) -> (Vec<Generated>, Session) {
    let mut run = Generator::new(model, None, session, options).unwrap();
    for event in &mut run {
        event.unwrap();
    }
    run.finish()
}

#[test]
fn sessions_fork_save_load_and_continue_as_if_uninterrupted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.safetensors");
    let prompts = [prompt(1, 9), prompt(2, 30)];
    for model in &models() {
        for options in [options as fn(usize) -> GenerateOptions, sampled] {
            let whole = ids(model, &prompts, options(12));
            // 0: the state has consumed everything and the logits are saved. 5: the last token is still to be consumed.
            for cut in [0, 5] {
                let (first, session) = run(model, Session::new(model, &prompts).unwrap(), options(cut));
                session.save(&path, model).unwrap();
                let fork = session.fork().unwrap();
                let mut loaded = Session::load(&path, model).unwrap();
                assert_eq!(loaded.rows, session.rows);
                assert_eq!(loaded.state.seen(), session.state.seen());
                for continued in
                    [session, fork, std::mem::replace(&mut loaded, Session::new(model, &prompts).unwrap())]
                {
                    let (rest, after) = run(model, continued, options(12 - cut));
                    for (row, want) in whole.iter().enumerate() {
                        let joined = [&first[row].ids[..], &rest[row].ids].concat();
                        assert_eq!(joined, *want, "{} {cut}", model.config().model_type());
                        assert_eq!(after.tokens(row)[prompts[row].len()..], *want);
                    }
                }
            }
        }
        // The next turn of one row, from a file, equals the whole text at once.
        let (_, mut session) = run(model, Session::new(model, &prompts).unwrap(), options(4));
        session = session.select(&[1]).unwrap();
        session.append(model, 0, &prompt(7, 11)).unwrap();
        let text = session.tokens(0).to_vec();
        session.save(&path, model).unwrap();
        let (turn, _) = run(model, Session::load(&path, model).unwrap(), options(5));
        assert_eq!(turn[0].ids, ids(model, &[text], options(5))[0]);
    }
}

/// Rewrites the session's header.
fn edit(path: &Path, change: impl Fn(&mut Value)) {
    let map = WeightMap::open_file(path).unwrap();
    let mut head: Value = serde_json::from_str(&map.metadata()["flashlin"]).unwrap();
    change(&mut head);
    let tensors: Vec<(String, Tensor)> =
        map.keys().map(|k| (k.to_string(), map.get(k).unwrap().copy().unwrap())).collect();
    let metadata = [("flashlin".to_string(), head.to_string())].into();
    crate::weights::write_file(path, &tensors, None, &metadata).unwrap();
}

#[test]
fn sessions_of_other_models_versions_and_layouts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.safetensors");
    let model = build(&keys("gla"), 3);
    let (_, session) = run(&model, Session::new(&model, &[prompt(1, 9)]).unwrap(), options(0));
    session.save(&path, &model).unwrap();
    let refuses = |model: &Model, expected: &[&str]| {
        let text = Session::load(&path, model).unwrap_err().to_string();
        for part in expected.iter().chain(&["s.safetensors"]) {
            assert!(text.contains(part), "{part:?} in {text:?}");
        }
    };
    refuses(&build(&keys("retnet"), 3), &["model gla (2 layers of 32, f32", "this model is retnet"]);
    refuses(&build(&keys("gla"), 4), &["fingerprint"]);
    let mut other = keys("gla");
    other["norm_eps"] = json!(1e-5);
    refuses(&build(&other, 3), &["fingerprint"]);
    // A hint is no difference.
    let mut hinted = keys("gla");
    hinted["use_cache"] = json!(false);
    Session::load(&path, &build(&hinted, 3)).unwrap();

    let good = fs::read(&path).unwrap();
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 9] = [
        (|h| h["version"] = json!(99), "version 99, but this program reads 1"),
        (|h| h["state_version"] = json!(0), "state_version 0, but this program reads"),
        (|h| h["format"] = json!("other"), "a other of the model"),
        (
            |h| h["tensors"]["layers.0.recurrent"]["layout"] = json!("vk"),
            "(layout vk), but the model's is recurrent (layout kv)",
        ),
        (
            |h| drop(h["tensors"].as_object_mut().unwrap().remove("layers.0.recurrent")),
            "has no state tensor `layers.0.recurrent`",
        ),
        (|h| h["rows"][0]["seen"] = json!(10), "10 of its 9 tokens"),
        (|h| h["rows"][0]["tokens"][2] = json!(5000), "token 5000"),
        (|h| h["rows"] = json!([]), "without rows"),
        (|h| *h = json!({"version": 1, "state_version": crate::STATE_VERSION}), "not a usable saved session"),
    ];
    for (change, expected) in cases {
        fs::write(&path, &good).unwrap();
        edit(&path, change);
        refuses(&model, &[expected]);
    }
    // Two rows of tokens, one of state.
    fs::write(&path, &good).unwrap();
    edit(&path, |h| {
        let mut row = h["rows"][0].clone();
        row["has_logits"] = json!(false);
        h["rows"].as_array_mut().unwrap().push(row);
    });
    refuses(&model, &["expected f32 [2, "]);
    // Any damage to the numbers.
    let mut bad = good.clone();
    let at = bad.len() - 3;
    bad[at] ^= 4;
    fs::write(&path, &bad).unwrap();
    refuses(&model, &["damaged"]);
    // Weights are no session; half a file is none either.
    crate::weights::write_file(&path, &[("x", Tensor::arange(0, 3).unwrap())], None, &Default::default())
        .unwrap();
    refuses(&model, &["not a saved session"]);
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    refuses(&model, &["truncated"]);
}

/// A model that only speaks printable ASCII: the output rows of all other tokens are zero.
fn ascii(tokenizer: &Tokenizer) -> Model {
    let model = build(&keys("gla"), 3);
    let head = model.params().iter().find(|p| p.name() == "lm_head.weight").unwrap();
    head.update(|t| {
        for (id, row) in t.as_mut_slice::<f32>()?.chunks_exact_mut(32).enumerate() {
            let text = tokenizer.decode(&[id as u32], false).unwrap_or_default();
            if id >= tokenizer.vocab_size()
                || !text.bytes().all(|b| (b' '..=b'~').contains(&b))
                || text.len() != 1
            {
                row.fill(0.0);
            }
        }
        Ok(())
    })
    .unwrap();
    model
}

/// Greedy, so that only tokens with large logits appear, but not in circles.
fn varied(max_new_tokens: usize) -> GenerateOptions {
    let sampling = SamplingParams { repetition_penalty: 1.3, ..Default::default() };
    GenerateOptions { sampling, ..options(max_new_tokens) }
}

#[test]
fn text_streams_and_stops_across_tokens() {
    let tokenizer = Tokenizer::bytes().unwrap();
    let model = ascii(&tokenizer);
    let prompts = [tokenizer.encode("To be", true).unwrap(), tokenizer.encode("or not to be", true).unwrap()];
    let say = |options: GenerateOptions| {
        let mut events = Vec::new();
        let (rows, _) =
            generate(&model, Some(&tokenizer), &prompts, options, |e| events.push(e.clone())).unwrap();
        for (i, row) in rows.iter().enumerate() {
            let of_row = || events.iter().filter(|e| e.row == i);
            let streamed: String = of_row().map(|e| e.text.as_str()).collect();
            assert_eq!(streamed, row.text);
            assert_eq!(of_row().filter_map(|e| e.id).collect::<Vec<_>>(), row.ids);
            assert_eq!(of_row().filter(|e| e.finish.is_some()).count(), 1);
        }
        rows
    };
    let whole = say(varied(40));
    for row in &whole {
        assert_eq!(row.text, tokenizer.decode(&row.ids, true).unwrap());
        assert_eq!((row.text.len(), row.finish.clone()), (40, Some(Finish::Length)));
    }
    // Three characters are three tokens.
    let stop = whole[0].text[10..13].to_string();
    let stopped = say(GenerateOptions { stop: vec!["\u{1F600}".into(), stop.clone()], ..varied(40) });
    let at = whole[0].text.find(&stop).unwrap();
    assert_eq!(stopped[0].text, whole[0].text[..at]);
    assert_eq!(stopped[0].ids, whole[0].ids[..at + 3]);
    assert_eq!(stopped[0].finish, Some(Finish::Stop(stop.clone())));
    let other = whole[1].text.find(&stop).unwrap_or(40);
    assert_eq!(stopped[1].text, whole[1].text[..other]);
    // A stop string that only begins at the end holds nothing back for good.
    let tail = format!("{}\u{1F600}", &whole[0].text[37..]);
    assert_eq!(say(GenerateOptions { stop: vec![tail], ..varied(40) })[0].text, whole[0].text);
    // The end token is no text.
    let eos = whole[0].ids[20];
    let ended = &say(GenerateOptions { eos: vec![eos], ..varied(40) })[0];
    let first = whole[0].ids.iter().position(|id| *id == eos).unwrap();
    assert_eq!((&ended.text[..], ended.ids.len()), (&whole[0].text[..first], first + 1));
}

#[test]
fn random_bytes_stream_as_they_decode() {
    let tokenizer = Tokenizer::bytes().unwrap();
    let model = build(&keys("gla"), 3);
    let (rows, _) = generate(&model, Some(&tokenizer), &[vec![70], vec![71]], sampled(200), |_| {}).unwrap();
    for row in rows {
        assert!(row.ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
        assert_eq!(row.text, tokenizer.decode(&row.ids, true).unwrap());
    }
}

#[test]
fn bad_requests_are_errors_that_name_the_argument() {
    let model = build(&keys("gla"), 3);
    let tokenizer = Tokenizer::bytes().unwrap();
    let start = || Session::new(&model, &[vec![1]]).unwrap();
    let fails = |e: Error, expected: &str| {
        assert_eq!(e.kind(), ErrorKind::Usage, "{e}");
        assert!(e.to_string().contains(expected), "{expected:?} in {e}");
    };
    fails(Session::new(&model, &[]).unwrap_err(), "prompts");
    fails(Session::new(&model, &[vec![1], vec![]]).unwrap_err(), "row 1 is empty");
    fails(Session::new(&model, &[vec![VOCAB as u32]]).unwrap_err(), "token 300");
    fails(start().append(&model, 3, &[1]).unwrap_err(), "row");
    fails(start().select(&[0, 2]).unwrap_err(), "row");
    let make = |t: Option<&Tokenizer>, o| Generator::new(&model, t, start(), o).err().unwrap();
    fails(make(None, GenerateOptions { stop: vec!["x".into()], ..options(1) }), "stop");
    fails(make(Some(&tokenizer), GenerateOptions { stop: vec![String::new()], ..options(1) }), "stop");
    let hot = SamplingParams { temperature: -1.0, ..Default::default() };
    fails(make(None, GenerateOptions { sampling: hot, ..options(1) }), "temperature");
    let mut few = keys("gla");
    few["vocab_size"] = json!(20);
    let small = build(&few, 1);
    let session = Session::new(&small, &[vec![1]]).unwrap();
    assert!(
        Generator::new(&small, Some(&tokenizer), session, options(1))
            .err()
            .unwrap()
            .to_string()
            .contains("vocab_size in config.json is 20")
    );
}

#[test]
fn broken_weights_end_the_run_with_one_error() {
    let model = build(&keys("gla"), 3);
    let norm = model.params().iter().find(|p| p.name() == "model.norm.weight").unwrap();
    norm.set(Tensor::full(f64::NAN, &[32], DType::F32, &Device::Cpu).unwrap()).unwrap();
    let mut run =
        Generator::new(&model, None, Session::new(&model, &[vec![1], vec![2]]).unwrap(), options(5)).unwrap();
    let e = run.next().unwrap().unwrap_err();
    assert!(matches!(e, Error::NotFinite { .. }), "{e}");
    assert!(run.next().is_none());
    assert_eq!(run.results()[0].finish, None);
}

#[test]
fn empty_prompts_start_from_bos() {
    let tokenizer = Tokenizer::bytes().unwrap();
    let none = GenerationConfig::default();
    let ids = encode_prompt(&tokenizer, "", &none);
    match tokenizer.bos() {
        Some(bos) => assert_eq!(ids.unwrap(), [bos]),
        None => {
            assert!(ids.unwrap_err().to_string().contains("prompt: is empty"));
            let with = GenerationConfig { bos: Some(7), ..none.clone() };
            assert_eq!(encode_prompt(&tokenizer, "", &with).unwrap(), [7]);
        }
    }
    assert_eq!(encode_prompt(&tokenizer, "ab", &none).unwrap(), tokenizer.encode("ab", true).unwrap());
}

#[test]
fn generation_configs_are_read_over_the_models() {
    let dir = tempfile::tempdir().unwrap();
    let mut raw = keys("gla");
    raw["eos_token_id"] = json!([4, 5]);
    raw["bos_token_id"] = json!(9);
    let config = Config::from_json(raw.as_object().unwrap().clone()).unwrap();
    let plain = GenerationConfig::load(dir.path(), &config).unwrap();
    assert_eq!((plain.bos, &plain.eos[..], plain.sampling.is_greedy()), (Some(9), &[4, 5][..], true));
    let path = dir.path().join("generation_config.json");
    let write = |v: Value| fs::write(&path, v.to_string()).unwrap();
    write(
        json!({"eos_token_id": 6, "temperature": 0.7, "top_k": 20, "max_new_tokens": 33, "num_beams": 1, "bos_token_id": null}),
    );
    let greedy = GenerationConfig::load(dir.path(), &config).unwrap();
    assert_eq!((greedy.bos, &greedy.eos[..], greedy.max_new_tokens), (Some(9), &[6][..], Some(33)));
    assert!(greedy.sampling.is_greedy());
    write(json!({"do_sample": true, "temperature": 0.7, "min_p": 0.1}));
    let s = GenerationConfig::load(dir.path(), &config).unwrap().sampling;
    assert_eq!((s.temperature, s.top_k, s.min_p), (0.7, 50, 0.1));
    for (bad, key) in [
        (json!({"eos_token_id": "x"}), "eos_token_id"),
        (json!({"bos_token_id": -1}), "bos_token_id"),
        (json!({"do_sample": 3}), "do_sample"),
        (json!({"do_sample": true, "top_p": 3.0}), "top_p"),
        (json!({"repetition_penalty": "a"}), "repetition_penalty"),
        (json!([1]), "not a usable generation config"),
    ] {
        write(bad);
        let text = GenerationConfig::load(dir.path(), &config).unwrap_err().to_string();
        assert!(text.contains("generation_config.json") && text.contains(key), "{text}");
    }
}

/// One key at a time: what turns a strategy off is accepted, what turns it on is refused by name.
#[test]
fn strategies_that_are_not_here_are_refused_unless_off() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::from_json(keys("gla").as_object().unwrap().clone()).unwrap();
    let load = |v: Value| {
        fs::write(dir.path().join("generation_config.json"), v.to_string()).unwrap();
        GenerationConfig::load(dir.path(), &config)
    };
    for off in [
        json!({"num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "penalty_alpha": 0.0}),
        json!({"forced_bos_token_id": null, "bad_words_ids": [], "token_healing": false, "sequence_bias": {}}),
        json!({"typical_p": 0.5, "epsilon_cutoff": 0.1, "do_sample": false}),
        json!({"length_penalty": 2.0, "early_stopping": true, "cache_implementation": "static", "new_key": [1]}),
    ] {
        load(off.clone()).unwrap_or_else(|e| panic!("{off}: {e}"));
    }
    for (on, key) in [
        (json!({"num_beams": 4}), "num_beams"),
        (json!({"num_return_sequences": 0}), "num_return_sequences"),
        (json!({"no_repeat_ngram_size": 1}), "no_repeat_ngram_size"),
        (json!({"forced_bos_token_id": 0}), "forced_bos_token_id"),
        (json!({"penalty_alpha": 1.0}), "penalty_alpha"),
        (json!({"suppress_tokens": [3]}), "suppress_tokens"),
        (json!({"max_time": 2.5}), "max_time"),
        (json!({"typical_p": 0.5, "do_sample": true}), "typical_p"),
        (json!({"stop_strings": [3]}), "stop_strings"),
    ] {
        let text = load(on.clone()).unwrap_err().to_string();
        assert!(text.contains("generation_config.json") && text.contains(key), "{on}: {text}");
    }
}

#[test]
fn lengths_and_stop_strings_come_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut raw = keys("gla");
    let load = |raw: &Value| {
        let config = Config::from_json(raw.as_object().unwrap().clone()).unwrap();
        GenerationConfig::load(dir.path(), &config).unwrap()
    };
    assert_eq!(load(&raw).new_tokens(7).unwrap(), DEFAULT_NEW_TOKENS);
    // As older programs wrote it: in config.json, which counts only where there is no file of its own.
    raw["max_length"] = json!(20);
    assert_eq!(load(&raw).new_tokens(7).unwrap(), 13);
    let text = load(&raw).new_tokens(20).unwrap_err().to_string();
    assert!(text.contains("max_length 20"), "{text}");
    let own = json!({"max_length": 30, "max_new_tokens": 5, "stop_strings": "\n\n"});
    fs::write(dir.path().join("generation_config.json"), own.to_string()).unwrap();
    let loaded = load(&raw);
    assert_eq!((loaded.new_tokens(29).unwrap(), &loaded.stop[..]), (5, &["\n\n".to_string()][..]));
}

#[test]
fn a_loaded_generation_config_survives_saving() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build(&keys("gla"), 1).save(first.path()).unwrap();
    let file = |dir: &Path| -> Value {
        serde_json::from_slice(&fs::read(dir.join("generation_config.json")).unwrap()).unwrap()
    };
    assert_eq!(file(first.path())["eos_token_id"], 2);
    let own = json!({"do_sample": true, "temperature": 0.3, "num_beams": 4, "someones_key": {"a": [1]}});
    fs::write(first.path().join("generation_config.json"), own.to_string()).unwrap();
    let model = Model::load(first.path(), None, &Device::Cpu).unwrap();
    model.save(second.path()).unwrap();
    assert_eq!(file(second.path()), own);
}
