//! `flashlin eval` from outside: the examples of docs/eval.md, restarts, shards, and what is refused.

mod common;

use std::{fs, path::Path};

use common::{run_in, tiny_model};
use serde_json::{Value, json};

fn lines(path: &Path, lines: &[Value]) {
    fs::write(path, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
}

/// A folder with a model and all files that docs/eval.md speaks of.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    tiny_model(dir.path());
    fs::write(at("text.txt"), "It was the best of times, it was the worst of times. ".repeat(20)).unwrap();
    fs::write(at("essays.txt"), "A sentence of an essay. Another one! And a third? ".repeat(400)).unwrap();
    lines(
        &at("pages.jsonl"),
        &[json!({"page": " = A title = \n Some words , and ( more ) . \n"}), json!({"page": "x"})],
    );
    let arc = |i: usize| json!({"question": format!("What is {i}?"), "answerKey": "B", "choices": {"text": ["one", format!("{i}")], "label": ["A", "B"]}});
    lines(&at("arc.jsonl"), &(0..7).map(arc).collect::<Vec<_>>());
    let swag = |i: usize| {
        json!({"ctx_a": "Somebody walks.", "ctx_b": "then", "activity_label": "Walking", "label": "1",
               "endings": ["stops [x] here.", format!("walks {i} miles.")]})
    };
    lines(&at("hellaswag.jsonl"), &(0..3).map(swag).collect::<Vec<_>>());
    lines(&at("train.jsonl"), &(10..14).map(swag).collect::<Vec<_>>());
    fs::create_dir(at("words")).unwrap();
    for (name, n) in [("nounlist.txt", 60), ("adjectivelist.txt", 30), ("verblist.txt", 40)] {
        fs::write(at("words").join(name), (0..n).map(|i| format!("{}{i}\n", &name[..4])).collect::<String>())
            .unwrap();
    }
    let paragraph = |i: usize| json!({"context": format!("Fact {i} is true."), "qas": [{"question": "Which?", "answers": [{"text": format!("Fact {i}")}]}]});
    let squad = json!({"data": [{"paragraphs": (0..300).map(paragraph).collect::<Vec<_>>()}]});
    fs::write(at("squad.json"), squad.to_string()).unwrap();
    lines(&at("answers.jsonl"), &[json!({"prediction": "nothing"}), json!({"prediction": ""})]);
    dir
}

#[test]
fn the_examples_of_the_docs_run() {
    let dir = folder();
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/eval.md")).unwrap();
    let examples: Vec<&str> = docs.lines().filter_map(|l| l.strip_prefix("    flashlin ")).collect();
    assert!(examples.len() > 12);
    for example in examples {
        let args: Vec<&str> = example.split_whitespace().collect();
        let out = run_in(dir.path(), &args).ok();
        assert!(!out.trim().is_empty(), "{example}");
    }
    // Two shards made one result, and it says what it is of.
    let result: Value =
        serde_json::from_slice(&fs::read(dir.path().join("out/results.json")).unwrap()).unwrap();
    assert_eq!((&result["task"], &result["results"]["items"]), (&json!("choice"), &json!(7)));
    assert_eq!(
        (&result["data"][0]["name"], &result["model"]["name"]),
        (&json!("arc.jsonl"), &json!("model"))
    );
    assert!(result["model"]["sha256"].as_str().unwrap().len() == 64 && result["options"]["seed"] == 1234);
    // It is the result of one process.
    let alone = run_in(dir.path(), &["eval", "choice", "model", "arc.jsonl", "--json"]).json();
    assert_eq!(alone, result);
}

#[test]
fn a_finished_evaluation_is_only_read() {
    let dir = folder();
    // One text a pass: the same bits, whatever was done before.
    let one = ["--batch-size", "1", "--output", "out", "--json"];
    let args = [&["eval", "ppl", "model", "text.txt", "--block-size", "100"], &one[..]].concat();
    let first = run_in(dir.path(), &args).json();
    let kept = fs::read(dir.path().join("out/items-1-of-1.jsonl")).unwrap();
    // A cut line, as a kill leaves it, and the items before it.
    fs::write(dir.path().join("out/items-1-of-1.jsonl"), &kept[..kept.len() - 20]).unwrap();
    assert_eq!(run_in(dir.path(), &args).json(), first);
    assert_eq!(fs::read(dir.path().join("out/items-1-of-1.jsonl")).unwrap(), kept);
    let other = run_in(dir.path(), &[&args[..], &["--bucket-size", "50"]].concat());
    assert!(other.code == 2 && other.stderr.contains("another `options`"), "{}", other.stderr);
}

#[test]
fn wrong_requests_are_named() {
    let dir = folder();
    for (args, needle) in [
        (&["choice", "model", "text.txt"][..], "text.txt: line 1: malformed JSON"),
        (&["choice", "model", "no-such.jsonl"], "no-such.jsonl"),
        (&["choice", "model", "arc.jsonl", "--schema", "piqa"], "line 1: schema piqa"),
        (&["choice", "model", "arc.jsonl", "--num-fewshot", "9"], "num-fewshot: is 9"),
        (&["choice", "model", "arc.jsonl", "--shard", "1/2"], "--output"),
        (&["choice", "model", "arc.jsonl", "--shard", "3/2"], "1 <= I <= N"),
        (&["choice", "model", "arc.jsonl", "--limit", "0"], "above 0"),
        (&["ppl", "model", "text.txt", "--max-length", "9"], "--rolling"),
        (&["ppl", "model", "text.txt", "--block-size", "1"], "block-size"),
        (&["ruler", "model", "--tasks", "niah"], "niah_single_1"),
        (&["ruler", "model", "--tasks", "niah_single_1"], "words: is needed"),
        (&["ruler", "model", "--tasks", "ruler_qa_squad", "--squad", "text.txt"], "text.txt"),
        (&["ruler", "model", "--tasks", "niah_multikey_3", "--lengths", "200"], "no room"),
        (&["ruler", "model", "--lengths", "4q"], "4096 or 4k"),
        (&["mqar", "model", "--pairs", "200"], "pairs: is 200"),
        (&["mqar", "model", "--vocab", "9000"], "vocab: is 9000"),
        (&["mqar", "model", "--steps", "3"], "--train"),
        (&["mqar", "model", "--train", "gla"], "exists already"),
        (&["mqar", "new", "--train", "gpt7"], "gpt7"),
        (&["choice", "model", "arc.jsonl", "--device", "cuda:0", "--limit", "1"], ""),
    ] {
        let ran = run_in(dir.path(), &[&["eval"], args].concat());
        if needle.is_empty() {
            // Where there is a GPU it runs, elsewhere it says why not.
            assert!(ran.code == 0 || ran.stderr.starts_with("error: "), "{args:?}: {}", ran.stderr);
            continue;
        }
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(needle), "{args:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{args:?}: {}", ran.stderr);
    }
}
