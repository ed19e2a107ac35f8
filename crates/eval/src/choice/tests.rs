use super::*;
use crate::{store::Shard, testing};

fn docs() -> Vec<Doc> {
    let doc = |i: usize| Doc {
        query: format!("Question: what follows {}?\nAnswer:", "x".repeat(i % 7 * 9)),
        choices: (0..2 + i % 3)
            .map(|c| format!("a choice {}", "né".repeat(1 + (i * 5 + c * 3) % 11)))
            .collect(),
        gold: i % 2,
    };
    (0..12).map(doc).collect()
}

fn run(options: &ChoiceOptions, store: &mut Store) -> Result<Option<ChoiceResult>> {
    let (model, tokenizer) = (testing::model("gated_deltanet"), testing::bytes());
    let encoder = Encoder::new(&tokenizer, Some(false)).unwrap();
    evaluate(&model, &encoder, &docs(), None, options, store, &mut |_| {})
}

fn records(options: &ChoiceOptions) -> Vec<ChoiceRecord> {
    let mut store = Store::open(None, Shard::default(), Default::default()).unwrap();
    run(options, &mut store).unwrap().unwrap();
    store.finish(options.limit.unwrap_or(12)).unwrap().unwrap()
}

#[test]
fn no_result_depends_on_the_batch() {
    let options = |requests, tokens| ChoiceOptions {
        num_fewshot: 1,
        batching: Batching { requests, tokens },
        ..ChoiceOptions::default()
    };
    let alone = records(&options(Some(1), 4096));
    for (requests, tokens) in [(None, 4096), (Some(3), 4096), (None, 300), (Some(7), 700)] {
        let batched = records(&options(requests, tokens));
        for (a, b) in alone.iter().zip(&batched) {
            for (x, y) in a.logprobs.iter().zip(&b.logprobs) {
                assert!((x - y).abs() <= 2e-5 * x.abs(), "{requests:?} {tokens}: {x} {y}");
            }
            assert_eq!((a.pred, a.pred_norm, a.gold), (b.pred, b.pred_norm, b.gold));
        }
    }
}

#[test]
fn log_likelihoods_are_those_of_the_whole_text() {
    // log p(continuation | context) = log p(whole) - log p(context), both from the model's own loss.
    let (model, tokenizer) = (testing::model("gla"), testing::bytes());
    let encoder = Encoder::new(&tokenizer, Some(false)).unwrap();
    let total = |text: &str| {
        let ids: Vec<i64> = tokenizer.encode(text, false).unwrap().into_iter().map(i64::from).collect();
        let ids = flashlin_tensor::Tensor::from_slice(&ids, &[1, ids.len()]).unwrap();
        let input = flashlin::Input::ids(ids.clone()).with_labels(ids);
        let loss =
            flashlin_tensor::no_grad(|| model.forward(&input, None, &Default::default())).unwrap().loss;
        -loss.unwrap().tensor().to_scalar().unwrap() * (text.len() - 1) as f64
    };
    let (context, continuation) = ("the quick brown fox", " jumps over");
    let score = Scorer::new(&model, Mode::Auto, Batching::default());
    let score = &score.score(&[encoder.pair(context, continuation).unwrap()]).unwrap()[0];
    let want = total(&format!("{context}{continuation}")) - total(context);
    assert!((score.sum() - want).abs() < 1e-4, "{} {want}", score.sum());
    assert_eq!(score.tokens.len(), continuation.len());
}

#[test]
fn shards_give_the_result_of_one_process() {
    let options = ChoiceOptions { num_fewshot: 2, ..ChoiceOptions::default() };
    let mut alone = Store::open(None, Shard::default(), Default::default()).unwrap();
    let want = run(&options, &mut alone).unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let shard = |s: &str| Store::open(Some(dir.path()), s.parse().unwrap(), Default::default()).unwrap();
    assert!(run(&options, &mut shard("2/3")).unwrap().is_none());
    assert!(run(&options, &mut shard("1/3")).unwrap().is_none());
    let merged = run(&options, &mut shard("3/3")).unwrap().unwrap();
    assert_eq!(serde_json::to_value(&merged).unwrap(), serde_json::to_value(&want).unwrap());
    // A finished evaluation is only read.
    assert_eq!(run(&options, &mut shard("1/1")).unwrap().unwrap(), merged);
}

#[test]
fn examples_follow_seed_and_item() {
    let docs = docs();
    let prompt = |options: &ChoiceOptions, id: usize| Prompts { docs: &docs, pool: None, options }.prompt(id);
    let random = ChoiceOptions { num_fewshot: 3, ..ChoiceOptions::default() };
    let other = ChoiceOptions { seed: 7, ..random.clone() };
    assert_eq!(prompt(&random, 4), prompt(&random, 4));
    assert_ne!(prompt(&random, 4), prompt(&other, 4));
    assert!(prompt(&random, 4).ends_with(&docs[4].query));
    assert_eq!(prompt(&random, 4).matches("\n\n").count(), 3);
    for id in 0..docs.len() {
        let shots = Prompts { docs: &docs, pool: None, options: &random };
        assert!(shots.shots(id).iter().all(|d| **d != docs[id]) && shots.shots(id).len() == 3);
    }
    let first = ChoiceOptions { num_fewshot: 1, shots: Shots::First, ..ChoiceOptions::default() };
    let d = &docs[0];
    let want = format!("{} {}\n\n{}", d.query, d.choices[d.gold], docs[5].query);
    assert_eq!(prompt(&first, 5), want);
    let many = ChoiceOptions { num_fewshot: 12, ..ChoiceOptions::default() };
    let mut store = Store::open(None, Shard::default(), Default::default()).unwrap();
    assert!(run(&many, &mut store).unwrap_err().to_string().contains("num-fewshot: is 12"));
}

#[test]
fn long_contexts_are_cut_at_their_beginning() {
    let full = records(&ChoiceOptions::default());
    assert!(full.iter().all(|r| !r.truncated));
    let cut = records(&ChoiceOptions { max_length: Some(60), ..ChoiceOptions::default() });
    assert!(cut.iter().any(|r| r.truncated));
    let mut store = Store::open(None, Shard::default(), Default::default()).unwrap();
    let tiny = ChoiceOptions { max_length: Some(5), ..ChoiceOptions::default() };
    assert!(run(&tiny, &mut store).unwrap_err().to_string().contains("max-length: is 5"));
}

#[test]
fn means_errors_and_ties() {
    let acc = Accuracy::of([1.0, 0.0, 1.0, 1.0].into_iter());
    // Sample deviation sqrt(0.75 / 3) over 2.
    assert!((acc.value - 0.75).abs() < 1e-15 && (acc.stderr.unwrap() - 0.25).abs() < 1e-15);
    assert_eq!(Accuracy::of([1.0].into_iter()).stderr, None);
    assert_eq!(first_max([-3.0, -1.0, -1.0].into_iter()), 1);
    let doc = Doc { query: "q".into(), choices: vec!["aé".into(), "abcd".into()], gold: 1 };
    let scores = [-2.0f32, -3.5].map(|x| Score { tokens: vec![x], greedy: false });
    let r = record((&doc, false), scores.to_vec()).unwrap();
    assert_eq!((r.pred, r.pred_norm, r.pred_bytes), (0, 1, 0));
}
