//! Every task: prompts hold their answers and fit, an oracle scores 1 and a shuffled one nearly nothing, and a seed decides all.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::{
    store::{Shard, Store},
    testing,
};

/// Small sources: words without meaning, Shakespeare, and questions about invented towns.
fn sources(dir: &Path) -> Sources {
    let mut draws = Draws::new(1, "words");
    for name in ["nounlist.txt", "adjectivelist.txt", "verblist.txt"] {
        let words: Vec<String> = (0..200).map(|_| draws.letters(b"abcdefghij", 7)).collect();
        std::fs::write(dir.join(name), words.join("\n")).unwrap();
    }
    let town =
        |i: usize| format!("Town number {i} lies by the river R{i}. Its mayor is M{}-{i}.", i * 7 % 100);
    let paragraph = |i: usize| {
        json!({ "context": town(i), "qas": [
            { "question": format!("Who is the mayor of town number {i}?"), "is_impossible": false,
              "answers": [{ "text": format!("M{}-{i}", i * 7 % 100) }] },
            { "question": "What is not said?", "is_impossible": true, "answers": [] },
        ] })
    };
    let articles: Vec<_> = (0..10)
        .map(|a| json!({ "paragraphs": (0..12).map(|p| paragraph(a * 12 + p)).collect::<Vec<_>>() }))
        .collect();
    let squad = dir.join("squad.json");
    std::fs::write(&squad, json!({ "data": articles }).to_string()).unwrap();
    let hop = |i: usize| {
        let documents: Vec<_> =
            (0..4).map(|d| json!([format!("Town {}", i * 4 + d), [town(i * 4 + d), " It rains."]])).collect();
        json!({ "question": format!("Which river is at town {}?", i * 4), "answer": format!("R{}.", i * 4), "context": documents })
    };
    let hotpot = dir.join("hotpot.json");
    std::fs::write(&hotpot, json!((0..30).map(hop).collect::<Vec<_>>()).to_string()).unwrap();
    let essay = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/shakespeare.txt");
    Sources {
        words: Some(Words::open(dir).unwrap()),
        essays: Some(Essays::open(&[essay]).unwrap()),
        squad: Some(Questions::open_squad(&squad).unwrap()),
        hotpot: Some(Questions::open_hotpot(&hotpot).unwrap()),
    }
}

/// A length that the task can have with one token a byte.
fn length(task: Task) -> usize {
    if task == Task::RulerVt { 6000 } else { 5000 }
}

#[test]
fn an_oracle_is_right_and_a_shuffled_one_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (sources, tokenizer) = (sources(dir.path()), testing::bytes());
    for (task, name) in TASKS {
        let generator = Generator::new(task, length(task), 7, &tokenizer, &sources).unwrap();
        let samples: Vec<Sample> = (0..4).map(|i| generator.sample(i).unwrap().unwrap()).collect();
        for s in &samples {
            let mut expected = s.outputs.iter();
            assert!(expected.all(|o| s.input.contains(o)), "{name}: {s:?}");
            // With one token a byte, the length is that of the prompt, give or take a joining blank, and the answer.
            let n = s.prompt().len() + task.answer_tokens();
            if task != Task::RulerFwe {
                assert!(s.length <= length(task), "{name}: {}", s.length);
                assert!(s.length >= length(task) - 2600, "{name}: {}", s.length);
            }
            let prefixed = [Task::RulerCwe, Task::RulerFwe, Task::RulerVt].contains(&task);
            assert!(!prefixed || n.abs_diff(s.length) < 8, "{name}: {n} {}", s.length);
        }
        let answers = |shift: usize| (0..4).map(|i| samples[(i + shift) % 4].outputs.join(", ")).collect();
        let mean = |answers| {
            let mut store = Store::open(None, Shard::default(), Default::default()).unwrap();
            score_answers(Samples::Given(&samples), answers, &mut store).unwrap().unwrap().tasks[0]
                .score
                .unwrap()
        };
        assert_eq!(mean(answers(0)), 1.0, "{name}");
        // Common words of small lists may coincide.
        let limit = if task == Task::RulerCwe { 0.2 } else { 0.0 };
        assert!(mean(answers(1)) <= limit, "{name}: {}", mean(answers(1)));
    }
}

#[test]
fn a_seed_decides_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (sources, tokenizer) = (sources(dir.path()), testing::bytes());
    let sample = |task, seed, index| {
        let generator = Generator::new(task, 3000, seed, &tokenizer, &sources).unwrap();
        generator.sample(index).unwrap().unwrap()
    };
    for task in [Task::NiahSingle1, Task::NiahMultikey3, Task::NiahMultivalue, Task::RulerFwe] {
        let one = sample(task, 1, 3);
        assert_eq!(one, sample(task, 1, 3));
        assert_ne!(one.input, sample(task, 2, 3).input);
        assert_ne!(one.input, sample(task, 1, 2).input);
    }
    // Documents of a question come in an order of the seed; the question does not.
    let question = |s: &Sample| s.input.rsplit("Question: ").next().unwrap().to_string();
    let (a, b) = (sample(Task::RulerQaSquad, 1, 5), sample(Task::RulerQaSquad, 2, 5));
    assert!(question(&a) == question(&b) && a.input != b.input);
}

#[test]
fn what_is_missing_is_named() {
    let tokenizer = testing::bytes();
    let none = Sources::default();
    for (task, option) in [
        (Task::NiahSingle1, "words"),
        (Task::NiahSingle2, "essays"),
        (Task::RulerCwe, "words"),
        (Task::RulerQaSquad, "squad"),
        (Task::RulerQaHotpot, "hotpot"),
    ] {
        let e = Generator::new(task, 4096, 1, &tokenizer, &none).err().unwrap();
        assert!(e.to_string().starts_with(&format!("{option}: is needed")), "{e}");
    }
    for task in [Task::NiahMultikey3, Task::RulerVt, Task::RulerFwe] {
        let e = Generator::new(task, 100, 1, &tokenizer, &none).err().unwrap();
        assert!(e.to_string().contains("100 tokens have no room"), "{e}");
    }
    assert!("niah".parse::<Task>().unwrap_err().contains("niah_single_1, "));
}

#[test]
fn a_model_is_asked_and_its_answers_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (model, tokenizer) = (testing::model("gated_deltanet"), testing::bytes());
    let encoder = crate::text::Encoder::new(&tokenizer, Some(false)).unwrap();
    let sources = Sources::default();
    let generator = Generator::new(Task::NiahMultikey3, 1200, 1, &tokenizer, &sources).unwrap();
    let made = [(generator, 3)];
    let options = |batch| RulerOptions {
        batch,
        eos: vec![],
        max_length: None,
        pass_tokens: 512,
        mode: Default::default(),
    };
    let mut records = Vec::new();
    for batch in [1, 3] {
        let folder = dir.path().join(batch.to_string());
        let mut store = Store::open(Some(&folder), Shard::default(), Default::default()).unwrap();
        let result =
            evaluate(&model, &encoder, Samples::Made(&made), &options(batch), &mut store, &mut |_| {});
        let result = result.unwrap().unwrap();
        assert_eq!((result.tasks[0].samples, result.mean.len()), (3, 1));
        records.push(store.finish::<RulerRecord>(3).unwrap().unwrap());
    }
    assert_eq!(records[0], records[1]);
    assert!(records[0].iter().all(|r| !r.prediction.is_empty()));
    let short = RulerOptions { max_length: Some(128), ..options(1) };
    let mut store = Store::open(None, Shard::default(), Default::default()).unwrap();
    let e = evaluate(&model, &encoder, Samples::Made(&made), &short, &mut store, &mut |_| {}).unwrap_err();
    assert!(e.to_string().starts_with("max-length:"), "{e}");
}
