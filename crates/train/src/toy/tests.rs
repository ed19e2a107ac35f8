//! The loop on the toy network: accumulation, segments, skipped steps, resuming, stopping.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::{
    Error, Observer, Outcome, Report, TrainConfig, Trainer,
    config::{Carry, LoopConfig},
    data::{Batch, Loader},
    gradient::step_gradient,
    observer::{Stats, StepMetrics, Validation},
    run_with,
};

/// Words in a random order: 60 kB in some files, one of them jsonl.
fn write_data(dir: &Path) {
    let p = Philox::new(3, 9);
    let words = ["the", "state", "decays", "and", "reads", "keys", "from", "a", "queue", "of", "values\n"];
    let text = |file: u64, n: u64| -> String {
        (0..n).map(|i| format!("{} ", words[p.below(file << 32 | i, words.len() as u64) as usize])).collect()
    };
    for file in 0..3 {
        std::fs::write(dir.join(format!("{file}.txt")), text(file, 3000)).unwrap();
    }
    let lines: String =
        (10..90).map(|i| format!("{}\n", serde_json::json!({ "text": text(i, 40) }))).collect();
    std::fs::write(dir.join("x.jsonl"), lines).unwrap();
}

fn config(dir: &Path, overrides: &[(&str, &str)]) -> TrainConfig {
    let text = format!(
        r#"
        [data]
        sources = [{{ paths = ["{0}/0.txt", "{0}/1.txt"] }}, {{ paths = ["{0}/x.jsonl"], weight = 0.5 }}]
        validation = [{{ paths = ["{0}/2.txt"], range = [0.0, 0.1] }}]
        seq_len = 24
        batch_size = 2
        context_len = 16
        shuffle = 8
        [train]
        steps = 12
        accumulate = 2
        [schedule]
        lr = 0.03
        warmup_steps = 3
        [checkpoint]
        dir = "{0}/out"
        interval = 5
        [log]
        interval = 2
        [eval]
        interval = 4
        "#,
        dir.display()
    );
    let pairs: Vec<_> = overrides.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    TrainConfig::parse(&text, &pairs).unwrap()
}

fn train(c: &TrainConfig, observer: &mut dyn Observer) -> Result<Report> {
    let dtype = c.dtype()?;
    run_with(c, observer, &AtomicBool::new(false), |t, _| Toy::new(t.vocab_size(), dtype, c.train.seed))
}

fn weights_of(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("model.safetensors")).unwrap()
}

#[derive(Default)]
struct Seen {
    metrics: Vec<StepMetrics>,
    validations: Vec<Validation>,
    saved: Vec<u64>,
    stats: Vec<Stats>,
    steps: u64,
}

impl Observer for Seen {
    fn stepped(&mut self, step: u64, _steps: u64) {
        self.steps = step;
    }
    fn logged(&mut self, m: &StepMetrics) {
        self.metrics.push(m.clone());
    }
    fn stats(&mut self, s: &Stats) {
        self.stats.push(s.clone());
    }
    fn validated(&mut self, v: &Validation) {
        self.validations.push(v.clone());
    }
    fn saved(&mut self, c: &crate::checkpoint::Checkpoint) {
        self.saved.push(c.step);
    }
}

#[test]
fn a_run_learns_validates_saves_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let mut seen = Seen::default();
    let c = config(
        dir.path(),
        &[
            ("train.steps", "50"),
            ("log.weight_stats", "true"),
            ("log.activation_stats", "true"),
            ("log.stats_interval", "25"),
            ("log.tensorboard", "true"),
        ],
    );
    let report = train(&c, &mut seen).unwrap();
    assert_eq!((report.outcome, report.steps, report.tokens), (Outcome::Finished, 50, 50 * 2 * 48));
    assert_eq!((seen.metrics.len(), seen.steps), (25, 50));
    assert_eq!(seen.saved, (1..=10).map(|i| i * 5).collect::<Vec<_>>());
    let losses: Vec<f64> = seen.metrics.iter().map(|m| m.loss).collect();
    assert!(losses[24] < losses[0] - 1.0, "{losses:?}");
    let bits: Vec<f64> = seen.validations.iter().map(|v| v.bits_per_byte).collect();
    assert_eq!(bits.len(), 13);
    assert!(bits[12] < bits[0] - 0.5 && report.validation.as_ref() == seen.validations.last(), "{bits:?}");
    let v = report.validation.unwrap();
    // One token a byte but the last, which is followed by the end-of-text token.
    assert!(
        v.bytes + 2 >= v.tokens && (v.loss / std::f64::consts::LN_2 / v.bits_per_byte - 1.0).abs() < 0.01,
        "{v:?}"
    );
    assert_eq!(seen.stats.len(), 2);
    assert_eq!(seen.stats[0].weights.iter().map(|s| &*s.name).collect::<Vec<_>>(), ["embed", "out"]);
    assert!(seen.stats[0].weights.iter().all(|s| s.grad_rms.unwrap() > 0.0 && s.max >= s.rms));
    assert_eq!(seen.stats[1].activations.len(), 2);
    let out = dir.path().join("out");
    for file in
        ["run.toml", "metrics.jsonl", "tensorboard", "latest/tokenizer.json", "latest/training/run.toml"]
    {
        assert!(out.join(file).exists(), "{file}");
    }
    let beside = std::fs::read_to_string(out.join("latest/training/run.toml")).unwrap();
    assert_eq!(TrainConfig::parse(&beside, &[]).unwrap(), c);
    // The folder is taken now.
    let again = train(&c, &mut ()).unwrap_err();
    assert!(
        again.to_string().starts_with("checkpoint.dir:") && again.to_string().contains("step 50"),
        "{again}"
    );
}

fn batches(c: &TrainConfig, n: usize) -> Vec<Batch> {
    let tokenizer = flashlin::tokenizer::Tokenizer::bytes().unwrap();
    let mut loader = Loader::new(&c.data_config(), &tokenizer).unwrap();
    (0..n).map(|_| loader.next_batch().unwrap().unwrap()).collect()
}

fn gradients(toy: &Toy, batches: &[Batch], how: &LoopConfig) -> (f64, Vec<f64>) {
    let g = step_gradient(toy, batches, how, false).unwrap();
    let all = toy.params().iter().flat_map(|p| g.grads.get_param(p).unwrap().to_f64_vec().unwrap());
    (g.loss.to_scalar().unwrap(), all.collect())
}

fn relative(a: &[f64], b: &[f64]) -> f64 {
    let d: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (d / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn micro_batches_give_the_gradient_of_one_large_batch() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let small = batches(&config(dir.path(), &[]), 3);
    let large = batches(&config(dir.path(), &[("data.batch_size", "6")]), 1);
    assert_eq!(
        small.iter().flat_map(|b| &b.tokens).collect::<Vec<_>>(),
        large[0].tokens.iter().collect::<Vec<_>>()
    );
    // Segments that a batch's end cuts lose no target but the context of the next: compare with the same cuts.
    let mut whole = large[0].clone();
    whole.cu_seqlens = vec![0];
    for b in &small {
        let base = *whole.cu_seqlens.last().unwrap();
        whole.cu_seqlens.extend(b.cu_seqlens[1..].iter().map(|c| base + c));
    }
    let toy = Toy::new(259, DType::F32, 1).unwrap();
    let how = LoopConfig::default();
    let (loss, grads) = gradients(&toy, &small, &how);
    let (one_loss, one) = gradients(&toy, &[whole], &how);
    assert!((loss / one_loss - 1.0).abs() < 1e-6, "{loss} {one_loss}");
    assert!(relative(&grads, &one) < 1e-6, "{}", relative(&grads, &one));
}

#[test]
fn exact_segments_give_the_gradient_of_whole_sequences() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let toy = Toy::new(259, DType::F32, 1).unwrap();
    let long = [("data.context_len", "70"), ("data.seq_len", "70"), ("data.batch_size", "3")];
    let contiguous = [("data.packing", "contiguous"), ("data.seq_len", "70"), ("data.context_len", "70")];
    for overrides in [long, contiguous] {
        let b = batches(&config(dir.path(), &overrides), 2);
        let (loss, grads) = gradients(&toy, &b, &LoopConfig::default());
        // A length of 1 makes 70 segments: more than one level of stored states.
        for segment_len in [1, 7, 16, 69, 70] {
            let how = LoopConfig { segment_len: Some(segment_len), ..LoopConfig::default() };
            let (cut_loss, cut) = gradients(&toy, &b, &how);
            let error = relative(&cut, &grads);
            assert!(
                (cut_loss / loss - 1.0).abs() < 1e-5 && error < 1e-5,
                "{segment_len}: {loss} {cut_loss} {error}"
            );
        }
        let how = LoopConfig { segment_len: Some(16), carry: Carry::Truncated, ..LoopConfig::default() };
        let (cut_loss, cut) = gradients(&toy, &b, &how);
        let error = relative(&cut, &grads);
        assert!(
            (cut_loss / loss - 1.0).abs() < 1e-5 && error > 1e-3,
            "the same loss, another gradient: {error}"
        );
    }
}

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    for dtype in ["f32", "bf16"] {
        let c = |out: &str, more: &[(&str, &str)]| {
            let out = dir.path().join(format!("{out}-{dtype}"));
            let mut c = config(dir.path(), &[&[("model.dtype", dtype)], more].concat());
            c.checkpoint.dir = out;
            c
        };
        let whole = train(&c("whole", &[]), &mut ()).unwrap();
        /// Raises the flag at some step.
        struct At<'a>(u64, &'a AtomicBool);
        impl Observer for At<'_> {
            fn stepped(&mut self, step: u64, _: u64) {
                self.1.store(step == self.0, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let stop = AtomicBool::new(false);
        let cut = c("cut", &[]);
        let dtype = cut.dtype().unwrap();
        let build =
            |t: &flashlin::tokenizer::Tokenizer, _: Option<&Path>| Toy::new(t.vocab_size(), dtype, 42);
        let first = run_with(&cut, &mut At(7, &stop), &stop, build).unwrap();
        assert_eq!((first.outcome, first.steps), (Outcome::Stopped, 7));
        // Resuming does not depend on the initial weights, nor on the number of threads.
        let resumed = c("cut", &[("checkpoint.resume", "true")]);
        let build = |t: &flashlin::tokenizer::Tokenizer, _: Option<&Path>| Toy::new(t.vocab_size(), dtype, 7);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let second = pool.install(|| run_with(&resumed, &mut (), &AtomicBool::new(false), build)).unwrap();
        assert_eq!((second.outcome, second.steps, second.tokens), (Outcome::Finished, 12, whole.tokens));
        assert_eq!(weights_of(&second.checkpoint), weights_of(&whole.checkpoint));
        assert_eq!(second.validation.unwrap().loss, whole.validation.unwrap().loss);
    }
}

#[test]
fn a_diverged_run_skips_counts_and_gives_up() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let c = config(dir.path(), &[("optim.max_skipped", "6"), ("train.steps", "30")]);
    let broken = |t: &flashlin::tokenizer::Tokenizer, _: Option<&Path>| {
        let toy = Toy::new(t.vocab_size(), DType::F32, 1)?;
        toy.params[0].update(|w| {
            w.as_mut_slice::<f32>()?.fill(f32::NAN);
            Ok(())
        })?;
        Ok(toy)
    };
    let mut seen = Seen::default();
    let e = run_with(&c, &mut seen, &AtomicBool::new(false), broken).unwrap_err();
    assert!(matches!(e, Error::Diverged { step: 6, skipped: 6 }), "{e}");
    assert!(seen.metrics.iter().all(|m| m.loss.is_nan()) && seen.metrics[2].skipped_steps == 6);
}

#[test]
fn data_that_ends_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let c = config(
        dir.path(),
        &[
            ("data.repeat", "false"),
            ("train.steps", "100000"),
            ("checkpoint.interval", "0"),
            ("eval.interval", "0"),
        ],
    );
    let report = train(&c, &mut ()).unwrap();
    assert_eq!(report.outcome, Outcome::DataEnded);
    assert!(report.steps < 2000 && report.validation.is_some());
}

#[test]
fn a_trainer_can_be_driven_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let c = config(dir.path(), &[("train.segment_len", "8"), ("train.carry", "truncated")]);
    let tokenizer = flashlin::tokenizer::Tokenizer::bytes().unwrap();
    let mut trainer = Trainer::new(Toy::new(259, DType::F32, 1).unwrap(), tokenizer, &c).unwrap();
    let before = trainer.validate().unwrap().unwrap();
    for _ in 0..20 {
        let record = trainer.train_step().unwrap().unwrap();
        assert!(record.status.read().unwrap().applied && record.loss.to_scalar().unwrap() > 0.0);
    }
    let after = trainer.validate().unwrap().unwrap();
    assert!(after.loss < before.loss && (trainer.step(), trainer.tokens()) == (20, 20 * 96));
}
