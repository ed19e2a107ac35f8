//! The loop on flashlin's own models.

use std::sync::atomic::AtomicBool;

use flashlin_tensor::DType;

use super::*;
use crate::{
    config::{Carry, LoopConfig},
    data::{Batch, IGNORE},
    gradient::step_gradient,
    run,
};

const SHAKESPEARE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/shakespeare.txt");

fn config(dir: &Path, overrides: &[(&str, &str)]) -> TrainConfig {
    let text = format!(
        r#"
        [model]
        family = "gated_deltanet"
        config = {{ hidden_size = 32, num_hidden_layers = 2, num_heads = 2, head_dim = 16, expand_v = 1.0, intermediate_size = 48 }}
        [data]
        sources = [{{ paths = ["{}"], range = [0.0, 0.1] }}]
        held_out = 0.1
        seq_len = 64
        batch_size = 2
        shuffle = 4
        [train]
        steps = 20
        [schedule]
        lr = 0.02
        warmup_steps = 2
        [checkpoint]
        dir = "{}/out"
        [eval]
        tokens = 512
        "#,
        SHAKESPEARE,
        dir.display()
    );
    let pairs: Vec<_> = overrides.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    TrainConfig::parse(&text, &pairs).unwrap()
}

fn small(overrides: &[(&str, &str)]) -> Model {
    let c = config(Path::new("/nowhere"), overrides);
    let tokenizer = Tokenizer::bytes().unwrap();
    build_model(&c, &tokenizer, None).unwrap()
}

/// Rows of random bytes.
fn batch(rows: usize, len: usize) -> Batch {
    let p = flashlin_tensor::Philox::new(5, 5);
    let tokens: Vec<u32> = (0..(rows * len) as u64).map(|i| p.below(i, 40) as u32 + 3).collect();
    let mut labels: Vec<i64> = tokens[1..].iter().map(|&t| i64::from(t)).collect();
    labels.push(IGNORE);
    let cu_seqlens = (0..=rows).map(|r| r * len).collect();
    Batch { tokens, labels, cu_seqlens, targets: (rows * len) as u64 - 1, target_bytes: 0 }
}

fn gradients(model: &Model, batch: &Batch, how: &LoopConfig) -> (f64, Vec<f64>) {
    let g = step_gradient(model, std::slice::from_ref(batch), how, false).unwrap();
    let all = model.params().iter().flat_map(|p| g.grads.get_param(p).unwrap().to_f64_vec().unwrap());
    (g.loss.to_scalar().unwrap(), all.collect())
}

fn relative(a: &[f64], b: &[f64]) -> f64 {
    let d: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (d / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Segments with carried state against one pass.
#[test]
fn exact_segments_give_the_gradient_of_whole_sequences() {
    let model = small(&[]);
    let b = batch(2, 150);
    let (loss, whole) = gradients(&model, &b, &LoopConfig::default());
    for recompute in [false, true] {
        let how = LoopConfig { segment_len: Some(40), checkpoint_layers: recompute, ..LoopConfig::default() };
        let (cut_loss, cut) = gradients(&model, &b, &how);
        let error = relative(&cut, &whole);
        assert!((cut_loss - loss).abs() < 1e-5 && error < 1e-4, "{recompute}: {loss} {cut_loss} {error}");
    }
}

/// The state is carried whatever the layers are, so the loss is that of one pass; the gradient is another one.
#[test]
fn truncated_segments_carry_the_state_alone() {
    let hybrid = ("model.config.attn", "{ layers = [1], num_heads = 2 }");
    let window = ("model.config.attn", "{ layers = [1], num_heads = 2, window_size = 20 }");
    for overrides in [vec![], vec![hybrid], vec![window]] {
        let model = small(&overrides);
        let b = batch(2, 150);
        let (loss, whole) = gradients(&model, &b, &LoopConfig::default());
        let how = LoopConfig { segment_len: Some(40), carry: Carry::Truncated, ..LoopConfig::default() };
        let (cut_loss, cut) = gradients(&model, &b, &how);
        let error = relative(&cut, &whole);
        assert!(
            (cut_loss - loss).abs() < 1e-5 && error > 1e-4 && error < 1.0,
            "{overrides:?}: {loss} {cut_loss} {error}"
        );
        let exact = Trainable::check_exact_carry(&model);
        assert_eq!(exact.is_err(), !overrides.is_empty(), "{overrides:?}");
    }
}

/// Targets are labels that are shifted already; the last token of a row may have one.
#[test]
fn targets_are_aligned_labels() {
    let model = small(&[]);
    let b = batch(2, 30);
    let piece = match crate::pieces::units(&b, None).unwrap().pop().unwrap() {
        crate::pieces::Unit::Whole(piece) => piece,
        crate::pieces::Unit::Long(_) => panic!("not asked to cut"),
    };
    let mut row_ends = piece.targets.as_ref().unwrap().to_vec::<i64>().unwrap();
    let all = model.pass(&piece, None, PassOptions::default()).unwrap().loss.unwrap();
    row_ends[29] = IGNORE;
    let targets = flashlin_tensor::Tensor::from_vec(row_ends, &[2, 30]).unwrap();
    let some = Piece { targets: Some(targets), counted: 58, ..piece.clone() };
    let some = model.pass(&some, None, PassOptions::default()).unwrap().loss.unwrap();
    let labelled = Input::ids(piece.ids.clone()).with_labels(piece.ids.clone());
    let out = model.forward(&labelled, None, &ForwardOptions::default()).unwrap();
    let values = [&some, &out.loss.unwrap(), &all].map(|v| v.tensor().to_scalar().unwrap());
    assert!((values[0] - values[1]).abs() < 1e-6 && (values[0] - values[2]).abs() > 1e-6, "{values:?}");
    let both = Input { targets: piece.targets, ..labelled };
    assert!(model.forward(&both, None, &ForwardOptions::default()).is_err());
}

#[test]
fn recomputing_layers_gives_the_same_gradients() {
    let model = small(&[]);
    let b = batch(2, 100);
    let (loss, kept) = gradients(&model, &b, &LoopConfig::default());
    let how = LoopConfig { checkpoint_layers: true, ..LoopConfig::default() };
    let (again, recomputed) = gradients(&model, &b, &how);
    assert_eq!(loss, again);
    assert!(relative(&recomputed, &kept) < 1e-6);
}

#[test]
fn a_model_learns_in_both_precisions_and_can_be_loaded() {
    for dtype in ["f32", "bf16"] {
        let dir = tempfile::tempdir().unwrap();
        let c = config(dir.path(), &[("model.dtype", dtype), ("train.steps", "40")]);
        let report = run(&c, &mut (), &AtomicBool::new(false)).unwrap();
        let bits = report.validation.unwrap().bits_per_byte;
        assert!(bits < 5.0, "{dtype}: {bits} bits a byte after 40 steps; 8.02 before the first");
        let model = Model::load(&report.checkpoint, None, &flashlin::Device::Cpu).unwrap();
        assert_eq!(model.dtype(), DType::parse(dtype).unwrap());
        let tokenizer = Tokenizer::from_dir(&report.checkpoint).unwrap();
        assert_eq!(tokenizer.vocab_size(), model.config().base().vocab_size);
        // Training goes on from its weights under another name, with how to generate from them.
        let generation = r#"{"temperature": 0.25, "someones_key": 3}"#;
        std::fs::write(report.checkpoint.join("generation_config.json"), generation).unwrap();
        let from = report.checkpoint.display().to_string();
        let next = dir.path().join("next").display().to_string();
        let text = format!(
            "[model]\ninit = '{from}'\n[data]\ntokenizer = '{from}'\nsources = [{{ paths = ['{SHAKESPEARE}'] }}]\n"
        );
        let more = TrainConfig::parse(
            &text,
            &[("checkpoint.dir".into(), next), ("model.dtype".into(), dtype.into())],
        )
        .unwrap();
        let again = build_model(&more, &tokenizer, None).unwrap();
        for (a, b) in again.params().iter().zip(model.params()) {
            assert_eq!(a.tensor().as_bytes().unwrap(), b.tensor().as_bytes().unwrap(), "{}", a.name());
        }
        let resumed = build_model(&more, &tokenizer, Some(&report.checkpoint)).unwrap();
        for (model, name) in [(again, "a"), (resumed, "b")] {
            let saved = dir.path().join(name);
            model.save(&saved).unwrap();
            let kept: Value =
                serde_json::from_slice(&std::fs::read(saved.join("generation_config.json")).unwrap())
                    .unwrap();
            assert_eq!(kept, serde_json::from_str::<Value>(generation).unwrap());
        }
    }
}

#[test]
fn contradictions_are_refused_by_key() {
    let tokenizer = Tokenizer::bytes().unwrap();
    let refused = |overrides: &[(&str, &str)]| {
        let e = build_model(&config(Path::new("/nowhere"), overrides), &tokenizer, None).err().unwrap();
        assert_eq!(e.kind(), crate::ErrorKind::Usage, "{e}");
        e.to_string()
    };
    assert!(refused(&[("model.path", "x")]).starts_with("model.path: contradicts model.family"));
    assert!(refused(&[("model.family", "gpt7")]).contains("gpt7"));
    assert!(refused(&[("model.preset", "huge")]).contains("no preset `huge`"));
    assert!(refused(&[("model.config.hiden_size", "3")]).contains("hiden_size"));
    assert!(refused(&[("model.config.vocab_size", "100")]).contains("vocab_size"));
}

#[test]
fn a_resumed_run_keeps_its_model() {
    let dir = tempfile::tempdir().unwrap();
    let first = config(dir.path(), &[("train.steps", "2")]);
    let report = run(&first, &mut (), &AtomicBool::new(false)).unwrap();
    let tokenizer = Tokenizer::bytes().unwrap();
    let refused = |overrides: &[(&str, &str)]| {
        let c = config(dir.path(), overrides);
        build_model(&c, &tokenizer, Some(&report.checkpoint)).err().unwrap().to_string()
    };
    assert!(refused(&[("model.config.hidden_size", "64")]).starts_with("model.config.hidden_size: is 64"));
    assert!(refused(&[("model.family", "gla")]).starts_with("model.family: is gla"));
    assert!(build_model(&first, &tokenizer, Some(&report.checkpoint)).is_ok());
}
