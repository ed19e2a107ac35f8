use flashlin::Input;
use flashlin_tensor::{Tensor, no_grad};

use super::*;
use crate::testing;

fn measure(model: &Model, documents: &[&str], options: PplOptions) -> Result<Perplexity> {
    perplexity(model, &testing::bytes(), documents.iter().map(|d| Ok(d.to_string())), &options)
}

fn blocks(tokens: usize) -> PplOptions {
    PplOptions { batching: Batching { tokens, requests: None }, ..PplOptions::default() }
}

/// The sum that the model itself reports for one document.
fn direct(model: &Model, ids: &[u32]) -> f64 {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let ids = Tensor::from_slice(&ids, &[1, ids.len()]).unwrap();
    let n = (ids.numel() - 1) as f64;
    let input = Input::ids(ids.clone()).with_labels(ids);
    let loss = no_grad(|| model.forward(&input, None, &Default::default())).unwrap().loss.unwrap();
    loss.tensor().to_scalar().unwrap() * n
}

fn ids(text: &str) -> Vec<u32> {
    testing::bytes().encode(text, false).unwrap()
}

#[test]
fn equals_the_models_own_loss_whatever_the_block() {
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(9);
    let (short, other) = ("a short one", "another, short too");
    for family in ["gla", "transformer"] {
        let model = testing::model(family);
        let want: f64 = [&text, short, other].iter().map(|t| direct(&model, &ids(t))).sum();
        for block in [7, 64, 128, 4096] {
            let got = measure(&model, &[short, &text, "x", "", other], blocks(block)).unwrap();
            let predicted = (text.len() + short.len() + other.len() - 3) as u64;
            assert_eq!((got.documents, got.tokens(), got.bytes, got.words), (5, predicted, predicted, None));
            assert!((got.sum.nats - want).abs() < 2e-5 * want, "{family} {block}: {} {want}", got.sum.nats);
        }
    }
}

#[test]
fn means_and_limits() {
    let model = testing::model("gla");
    let text = "to be or not to be ".repeat(20);
    let bos = PplOptions { bos: Some(true), ..PplOptions::default() };
    let all = measure(&model, &[&text], bos).unwrap();
    assert_eq!((all.tokens(), all.bytes), (text.len() as u64, text.len() as u64));
    assert!((all.perplexity().log2() - all.bits_per_byte()).abs() < 1e-12);
    let limit = PplOptions { max_tokens: Some(30), ..blocks(16) };
    assert_eq!(measure(&model, &[&text, &text], limit).unwrap().tokens(), 30);
    let limit = PplOptions { limit: Some(1), ..PplOptions::default() };
    assert_eq!(measure(&model, &[&text, &text], limit).unwrap().documents, 1);
    assert!(matches!(measure(&model, &["", "a"], PplOptions::default()), Err(Error::Empty)));
}

#[test]
fn rolling_counts_every_token_word_and_byte() {
    let model = testing::model("gated_deltanet");
    let (text, other) = ("Größe zählt,\n but not much. ", "x");
    let tokenizer = testing::bytes();
    let prefix = tokenizer.bos().or(tokenizer.eos()).unwrap();
    let behind = |t: &str| [vec![prefix], ids(t)].concat();
    let rolling = |window| PplOptions { cut: Cut::Rolling { window }, ..PplOptions::default() };
    let got = measure(&model, &[text, other], rolling(None)).unwrap();
    let want = direct(&model, &behind(text)) + direct(&model, &behind(other));
    assert!((got.sum.nats - want).abs() < 2e-5 * want, "{} {want}", got.sum.nats);
    let bytes = (text.len() + 1) as u64;
    assert_eq!((got.tokens(), got.bytes, got.words), (bytes, bytes, Some(6 + 1)));
    assert!((got.word_perplexity().unwrap().ln() * 7.0 - want).abs() < 1e-3);
    assert!((got.byte_perplexity().log2() - got.bits_per_byte()).abs() < 1e-12);
    // A window of one token: each token is predicted from the one before it alone.
    let pairs: f64 = behind(other).windows(2).chain(behind(text).windows(2)).map(|w| direct(&model, w)).sum();
    let got = measure(&model, &[text, other], rolling(Some(1))).unwrap();
    assert!((got.sum.nats - pairs).abs() < 2e-5 * pairs, "{} {pairs}", got.sum.nats);
}

#[test]
fn blocks_and_buckets_add_up() {
    let model = testing::model("gla");
    let texts = ["to be or not to be ", "that is the question", "x"];
    let cut = PplOptions { cut: Cut::Blocks { tokens: 9 }, bucket: Some(3), ..PplOptions::default() };
    let got = measure(&model, &texts, cut).unwrap();
    let all = ids(&texts.concat());
    let want: Vec<f64> = all.chunks_exact(9).map(|b| direct(&model, b)).collect();
    assert_eq!((got.documents, got.tokens()), (want.len() as u64, want.len() as u64 * 8));
    assert!((got.sum.nats - want.iter().sum::<f64>()).abs() < 2e-5 * got.sum.nats);
    assert_eq!(got.buckets.iter().map(|b| b.tokens).collect::<Vec<_>>(), [12, 12, 8]);
    let parts: f64 = got.buckets.iter().map(|b| b.nats).sum();
    assert!((parts - got.sum.nats).abs() < 1e-9 * parts);
    // The first bucket alone: the beginnings of the blocks.
    let heads: f64 = all.chunks_exact(9).map(|b| direct(&model, &b[..4])).sum();
    assert!((got.buckets[0].nats - heads).abs() < 2e-5 * heads);
    let one = PplOptions { cut: Cut::Blocks { tokens: 1 }, ..PplOptions::default() };
    assert!(measure(&model, &texts, one).is_err());
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let (model, tokenizer) = (testing::model("gla"), testing::bytes());
    let texts: Vec<String> = (1..9).map(|i| "some words ".repeat(i * 3)).collect();
    let whole = measure(&model, &texts.iter().map(String::as_str).collect::<Vec<_>>(), blocks(64)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = || Store::open(Some(dir.path()), Shard::default(), Default::default()).unwrap();
    let documents = |fail_at: usize| {
        let one = move |(i, t): (usize, String)| if i == fail_at { Err(Error::NoBos) } else { Ok(t) };
        texts.clone().into_iter().enumerate().map(one)
    };
    super::measure(&model, &tokenizer, documents(6), &blocks(16), &mut open(), &mut |_| {}).unwrap_err();
    let mut store = open();
    let before = store.done();
    assert!(before > 0 && before < 8, "{before}");
    let mut seen = Vec::new();
    let rest = super::measure(&model, &tokenizer, documents(99), &blocks(64), &mut store, &mut |p| {
        seen.push(p.done)
    });
    assert_eq!(seen[0], before);
    let rest = rest.unwrap().unwrap();
    assert_eq!((rest.documents, rest.tokens(), rest.bytes), (whole.documents, whole.tokens(), whole.bytes));
    assert!((rest.sum.nats - whole.sum.nats).abs() < 2e-5 * whole.sum.nats);
}
