//! A run that is killed again and again ends with the same bits as one that was left alone.
//!
//! The test starts itself as a child process, kills it with SIGKILL at random moments (every third time in the middle of writing a
//! checkpoint), and lets the next child resume with another number of threads.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use flashlin_tensor::Philox;
use flashlin_train::{TrainConfig, run};

const RUN: &str = "FLASHLIN_TEST_RUN";
const KILLS: u64 = 22;
/// Rounds move the run on by a few steps each; it must not end before the last kill.
const STEPS: u64 = 600;

/// Three text files and a jsonl file, so that kills fall into the middle of files.
fn write_data(dir: &Path) {
    let text = include_str!("../../../data/shakespeare.txt");
    let cut = |from: usize, len: usize| text[from..from + len].to_string();
    for i in 0..3 {
        std::fs::write(dir.join(format!("{i}.txt")), cut(10_000 * i, 4000 + 1000 * i)).unwrap();
    }
    let lines: String =
        (0..30).map(|i| format!("{}\n", serde_json::json!({ "text": cut(50_000 + 300 * i, 200) }))).collect();
    std::fs::write(dir.join("more.jsonl"), lines).unwrap();
}

fn config(dir: &Path, out: &str, interval: u64) -> TrainConfig {
    let text = format!(
        r#"
        [model]
        family = "gated_deltanet"
        dtype = "bf16"
        config = {{ hidden_size = 16, num_hidden_layers = 1, num_heads = 1, head_dim = 8, expand_v = 1.0, intermediate_size = 16 }}
        [data]
        sources = [{{ paths = ["{0}/0.txt", "{0}/1.txt", "{0}/2.txt"] }}, {{ paths = ["{0}/more.jsonl"], weight = 0.3 }}]
        seq_len = 12
        batch_size = 1
        shuffle = 16
        [train]
        steps = {STEPS}
        accumulate = 2
        [checkpoint]
        dir = "{0}/{out}"
        interval = {interval}
        resume = true
        [log]
        interval = 1
        "#,
        dir.display()
    );
    TrainConfig::parse(&text, &[]).unwrap()
}

/// The child's part; does nothing when run as an ordinary test.
#[test]
#[ignore = "started by the other test"]
fn child() {
    let Ok(path) = std::env::var(RUN) else { return };
    let config = TrainConfig::load(Path::new(&path), &[]).unwrap();
    run(&config, &mut (), &AtomicBool::new(false)).unwrap();
}

fn spawn(run_toml: &Path, threads: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored"])
        .env(RUN, run_toml)
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The newest checkpoint's name, and whether one is being written.
fn look(out: &Path) -> (Option<String>, bool) {
    let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    let names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let newest = names.iter().filter(|n| n.starts_with("step-")).max().cloned();
    (newest, names.iter().any(|n| n.starts_with(".flashlin-tmp-") && !n.ends_with("latest")))
}

/// Lets the child get past a new checkpoint, then kills it: after `delay`, or while it writes the next one.
fn kill(child: &mut Child, out: &Path, while_writing: bool, delay: Duration) -> bool {
    let (before, began) = (look(out).0, Instant::now());
    let mut passed = None;
    loop {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "the child makes no progress");
        let (newest, writing) = look(out);
        if newest != before && passed.is_none() {
            passed = Some(Instant::now());
        }
        match passed {
            Some(_) if while_writing && writing => break,
            Some(at) if !while_writing && at.elapsed() >= delay => break,
            _ => std::thread::sleep(Duration::from_micros(200)),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

#[test]
fn a_run_killed_many_times_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let whole = run(&config(dir.path(), "whole", 0), &mut (), &AtomicBool::new(false)).unwrap();

    let out = dir.path().join("killed");
    let run_toml = dir.path().join("run.toml");
    std::fs::write(&run_toml, config(dir.path(), "killed", 4).to_toml().unwrap()).unwrap();
    let (p, mut kills, mut halves) = (Philox::named(1, "kills"), 0, 0);
    while kills < KILLS {
        let mut child = spawn(&run_toml, 1 + p.below(2 * kills, 3));
        let delay = Duration::from_micros(p.below(2 * kills + 1, 60_000));
        assert!(
            kill(&mut child, &out, kills % 3 == 0, delay),
            "the run ended after {kills} kills: more STEPS"
        );
        halves += u64::from(look(&out).1);
        kills += 1;
    }
    assert!(halves > 0, "no kill hit a checkpoint that was being written");
    assert!(spawn(&run_toml, 3).wait().unwrap().success());

    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    let optimizer = |dir: &Path| std::fs::read(dir.join("training/optimizer.safetensors")).unwrap();
    let latest = out.join("latest");
    assert!(weights(&latest) == weights(&whole.checkpoint), "the weights differ");
    assert!(optimizer(&latest) == optimizer(&whole.checkpoint), "the optimizer's state differs");
    assert!(!look(&out).1, "temporary folders are left");
    let losses = |out: &Path| -> Vec<(u64, f64)> {
        let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let train = lines.filter(|l| l["kind"] == "train");
        train.map(|l| (l["step"].as_u64().unwrap(), l["loss"].as_f64().unwrap())).collect()
    };
    assert_eq!(losses(&out).len() as u64, STEPS);
    assert!(losses(&out) == losses(&dir.path().join("whole")), "the losses of the steps differ");
}
