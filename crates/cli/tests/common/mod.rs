//! Running the binary. Each test file uses a part of this.
#![allow(dead_code)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// What a run of the binary gave.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(out: Output) -> Ran {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code: out.status.code().unwrap_or(-1), stdout: text(&out.stdout), stderr: text(&out.stderr) }
    }

    /// Its stdout; fails the test if it failed.
    pub fn ok(&self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout.clone()
    }

    /// Its stdout as JSON; fails the test if it failed.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }
}

pub fn flashlin(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flashlin"));
    command.args(args).env_remove("FLASHLIN_LOG");
    command
}

pub fn run(args: &[&str]) -> Ran {
    Ran::of(flashlin(args).output().unwrap())
}

pub fn run_in(dir: &Path, args: &[&str]) -> Ran {
    Ran::of(flashlin(args).current_dir(dir).output().unwrap())
}

/// The folder that holds `models/` with golden directories: FLASHLIN_GOLDENS, else beside the repository, else in it.
pub fn goldens() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let beside = root.join("../shared/goldens");
    match std::env::var_os("FLASHLIN_GOLDENS") {
        Some(dir) => dir.into(),
        None if beside.join("models/gla-0").exists() => beside,
        None => root.join("goldens"),
    }
}

/// A model with a byte tokenizer, in a folder of `dir`.
pub fn tiny_model(dir: &Path) -> String {
    let out = dir.join("model").to_str().unwrap().to_string();
    let sizes =
        ["hidden_size=32", "num_hidden_layers=2", "num_heads=2", "head_dim=16", "intermediate_size=48"];
    let sets: Vec<&str> = sizes.iter().flat_map(|s| ["--set", s]).collect();
    let args = ["new", "gated_deltanet", "--preset", "tiny", "--tokenizer", "bytes", "--out", &out];
    run(&[&args[..], &sets].concat()).ok();
    out
}

/// A run.toml of a very small model, and its text.
pub fn write_run(dir: &Path) -> String {
    let text = "The quick brown fox jumps over the lazy dog, and the dog sleeps.\n".repeat(100);
    std::fs::write(dir.join("text.txt"), text).unwrap();
    let config = r#"
        [model]
        family = "gated_deltanet"
        [model.config]
        hidden_size = 32
        num_hidden_layers = 1
        num_heads = 1
        head_dim = 16
        expand_v = 1.0
        intermediate_size = 48
        [data]
        sources = [{ paths = ["text.txt"] }]
        held_out = 0.1
        seq_len = 32
        batch_size = 2
        [train]
        steps = 4
        [schedule]
        warmup_steps = 0
        [checkpoint]
        dir = "out"
    "#;
    let path = dir.join("run.toml");
    std::fs::write(&path, config).unwrap();
    path.to_str().unwrap().to_string()
}
