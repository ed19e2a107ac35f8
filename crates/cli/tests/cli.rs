//! The binary from outside: exit codes, messages, JSON, help, and what a failure leaves behind.

mod common;

use std::{fs, process::Stdio, time::Duration};

use common::{Ran, flashlin, goldens, run, run_in, tiny_model, write_run};
use serde_json::Value;

#[test]
fn help_is_what_it_was() {
    insta::assert_snapshot!("help", run(&["--help"]).ok());
}

#[test]
fn exit_codes() {
    assert_eq!(run(&["--version"]).code, 0);
    // Wrong requests.
    for args in [
        &["nonsense"][..],
        &["ops", "--nonsense"],
        &["ops", "--family", "nonsense"],
        &["ops", "--optim.lr", "1"],
        &["train", "no-such-file.toml"],
        &["show", "no-such-folder"],
        &["new", "gpt7", "--out", "x"],
        &["new", "gla", "--preset", "nonsense", "--out", "x"],
        &["verify", "no-such-folder"],
        &["verify", "--device", "cuda:0", "."],
        &["models", "gpt7"],
        &["generate", "x"],
        &["ops", "--threads", "100000"],
        &["quickstart", "--seconds", "nan"],
    ] {
        let ran = run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: "), "{args:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty(), "{args:?}: {}", ran.stdout);
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child =
        flashlin(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn json_where_output_is_data() {
    let models = run(&["models", "--json"]).json();
    assert!(models.as_array().unwrap().iter().any(|m| m["model_type"] == "gated_deltanet"));
    let ops = run(&["ops", "--json"]).json();
    assert!(ops.as_array().unwrap().iter().any(|o| o["name"] == "gated_delta_rule"));
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path());
    let shown = run(&["show", &model, "--json"]).json();
    assert_eq!(shown["model_type"], "gated_deltanet");
    let bytes: u64 = shown["state"].as_array().unwrap().iter().map(|s| s["bytes"].as_u64().unwrap()).sum();
    assert_eq!(shown["state_bytes"], bytes);
    let generated = run(&["generate", &model, "-p", "ab", "-n", "5", "--ignore-eos", "--json"]).json();
    assert_eq!(generated["rows"][0]["new_tokens"], 5);
    assert_eq!(generated["rows"][0]["prompt_tokens"], 2);
}

#[test]
fn devices_are_listed_and_their_absence_is_an_error() {
    let devices = run(&["devices", "--json"]).json();
    assert_eq!(devices["bundles"].as_array().unwrap().len(), 4);
    assert!(devices["cpu"]["threads"].as_u64().unwrap() > 0);
    if !devices["gpus"].as_array().unwrap().is_empty() {
        return;
    }
    // Without a GPU: what is missing is said, nothing panics, and what needs one is refused.
    assert!(devices["driver"]["error"].is_string() || devices["driver"].is_string(), "{devices}");
    assert!(devices["cublaslt"]["error"].is_string() || devices["cublaslt"]["path"].is_string(), "{devices}");
    for args in [&["devices", "--selftest"][..], &["verify-kernels"], &["verify-kernels", "--device", "cpu"]]
    {
        let ran = run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(
            ran.stderr.starts_with("error: ") && !ran.stderr.contains("panicked"),
            "{args:?}: {}",
            ran.stderr
        );
    }
}

#[test]
fn completions_and_man_pages_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).ok();
        assert!(script.contains("quickstart") && script.contains("verify-ops"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    run(&["man", "--out", dir.path().to_str().unwrap()]).ok();
    let page = fs::read_to_string(dir.path().join("flashlin-generate.1")).unwrap();
    assert!(page.contains("repetition"), "{page}");
}

#[test]
fn generated_docs_are_fresh() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");
    run(&["docs", "--check", "--out", docs]).ok();
    let dir = tempfile::tempdir().unwrap();
    let stale = run(&["docs", "--check", "--out", dir.path().to_str().unwrap()]);
    assert_eq!(stale.code, 1);
    assert!(stale.stderr.contains("ops.md"), "{}", stale.stderr);
}

#[test]
fn generation_follows_its_options() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path());
    let base = ["generate", &model, "--ignore-eos", "-n", "12", "--json"];
    let text = |more: &[&str]| -> Value {
        let ran = run(&[&base, more].concat());
        ran.json()["rows"].clone()
    };
    let one = |more: &[&str]| text(more)[0]["ids"].clone();
    let greedy = one(&["-p", "hello"]);
    assert_eq!(greedy, one(&["-p", "hello", "--seed", "7"]));
    let drawn = |seed| one(&["-p", "hello", "--temperature", "1.0", "--seed", seed]);
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    assert_eq!(one(&["-p", "hello", "--temperature", "1.0", "--top-k", "1"]), greedy);
    // A row of a batch is the row alone.
    let batch = text(&["-p", "a longer prompt than that", "-p", "hello"]);
    assert_eq!(batch[1]["ids"], greedy);
    // A state continues as if there had been no break.
    let state = dir.path().join("s.safetensors");
    let state = state.to_str().unwrap();
    run(&["generate", &model, "--ignore-eos", "-n", "5", "-p", "hello", "--save-state", state]).ok();
    let rest = run(&["generate", &model, "--ignore-eos", "-n", "7", "--load-state", state, "--json"]).json();
    let rest = rest["rows"][0]["ids"].as_array().unwrap().clone();
    assert_eq!(rest, greedy.as_array().unwrap()[5..]);
    let plain = run(&["generate", &model, "--ignore-eos", "-n", "5", "-p", "hello", "--stats"]);
    assert!(plain.stderr.contains("prompt 5 tokens, generated 5 tokens"), "{}", plain.stderr);
}

#[test]
fn generation_settings_of_the_folder_are_followed_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path());
    let settings = std::path::Path::new(&model).join("generation_config.json");
    let tokens = |more: &[&str]| {
        let ran = run(&[&["generate", &model, "-p", "hello", "--ignore-eos", "--json"], more].concat());
        ran.json()["rows"][0]["new_tokens"].clone()
    };
    fs::write(&settings, r#"{"max_length": 9}"#).unwrap();
    assert_eq!(tokens(&[]), 4);
    assert_eq!(tokens(&["-n", "2"]), 2);
    fs::write(&settings, r#"{"num_beams": 4, "max_new_tokens": 3}"#).unwrap();
    let refused = run(&["generate", &model, "-p", "hello"]);
    assert_eq!(refused.code, 1);
    for needle in ["generation_config.json", "num_beams", "--ignore-generation-config"] {
        assert!(refused.stderr.contains(needle), "{}", refused.stderr);
    }
    assert_eq!(tokens(&["--ignore-generation-config"]), 128);
}

#[test]
fn bad_models_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path());
    let path = |name: &str| std::path::Path::new(&model).join(name);
    let fails = |what: &str, needles: &[&str]| {
        let ran = run(&["show", &model]);
        assert_eq!(ran.code, 1, "{what}: {}", ran.stderr);
        for needle in needles {
            assert!(ran.stderr.contains(needle), "{what}: {}", ran.stderr);
        }
        assert_eq!(ran.stderr.lines().count(), 1, "{what}: {}", ran.stderr);
    };
    let weights = fs::read(path("model.safetensors")).unwrap();
    fs::write(path("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    fails("truncated", &["model.safetensors"]);
    fs::write(path("model.safetensors"), [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap();
    fails("a header that lies", &["model.safetensors"]);
    fs::write(path("model.safetensors"), &weights).unwrap();
    let config = fs::read_to_string(path("config.json")).unwrap();
    fs::write(path("config.json"), config.replace("\"gated_deltanet\"", "\"gpt7\"")).unwrap();
    fails("unknown model_type", &["config.json", "gpt7", "gated_deltanet"]);
    fs::write(path("config.json"), config.replace("\"head_dim\"", "\"head_dmi\"")).unwrap();
    fails("unknown key", &["config.json", "head_dmi", "head_dim"]);
    for absurd in ["\"num_hidden_layers\": 4000", "\"num_hidden_layers\": 2, \"conv_size\": 2000000000"] {
        fs::write(path("config.json"), config.replace("\"num_hidden_layers\": 2", absurd)).unwrap();
        fails("far more than the weights hold", &["the weights do not fit the model", "asks for"]);
    }
    fs::write(path("config.json"), &config[..config.len() / 2]).unwrap();
    fails("broken JSON", &["config.json"]);
    fs::write(path("config.json"), &config).unwrap();
    fs::write(path("tokenizer.json"), "{").unwrap();
    fails("broken tokenizer", &["tokenizer.json"]);
}

#[test]
fn bad_prompts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path());
    let file = dir.path().join("prompts.txt");
    fs::write(&file, b"fine\n\xff\xfe\n").unwrap();
    let ran = run(&["generate", &model, "--prompts", file.to_str().unwrap()]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("prompts.txt: byte 5"), "{}", ran.stderr);
    fs::write(&file, "").unwrap();
    assert_eq!(run(&["generate", &model, "--prompts", file.to_str().unwrap()]).code, 2);
    let ran = run(&["generate", &model, "-p", "", "-n", "2"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("prompt is empty"), "{}", ran.stderr);
}

#[test]
fn a_run_trains_stops_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_run(dir.path());
    let ran = run_in(dir.path(), &["train", &config, "--train.steps", "4", "--json"]);
    let report = ran.json();
    assert_eq!(report["steps"], 4);
    assert!(dir.path().join("out/latest/model.safetensors").exists());
    // Without --resume an existing run is not touched.
    let again = run_in(dir.path(), &["train", &config]);
    assert_eq!(again.code, 2, "{}", again.stderr);
    assert!(again.stderr.contains("out"), "{}", again.stderr);
    let resumed = run_in(dir.path(), &["train", &config, "--train.steps", "6", "--resume", "--json"]).json();
    assert_eq!(resumed["steps"], 6);
    let ppl = run_in(dir.path(), &["eval", "ppl", "out/latest", "text.txt", "--json"]).json();
    assert!(ppl["results"]["bits_per_byte"].as_f64().unwrap() > 0.0);
    // The result does not depend on the size of the blocks.
    let blocks =
        run_in(dir.path(), &["eval", "ppl", "out/latest", "text.txt", "--pass-tokens", "100", "--json"])
            .json();
    let (a, b) = (ppl["results"]["nats"].as_f64().unwrap(), blocks["results"]["nats"].as_f64().unwrap());
    assert!((a - b).abs() < 1e-4 * a, "{a} {b}");
    assert_eq!(ppl["results"]["tokens"], blocks["results"]["tokens"]);
}

#[test]
fn wrong_run_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_run(dir.path());
    let fails = |args: &[&str], needles: &[&str]| {
        let ran = run_in(dir.path(), &[&["train", &config][..], args].concat());
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        for needle in needles {
            assert!(ran.stderr.contains(needle), "{args:?}: {}", ran.stderr);
        }
    };
    fails(&["--optim.weight_decy", "0"], &["optim.weight_decy", "optim.weight_decay"]);
    fails(&["--schedule.lr", "fast"], &["schedule.lr"]);
    fails(&["--model.family", "gpt7"], &["gpt7"]);
    fails(&["--data.sources.0.paths", "[\"no-such.txt\"]"], &["no-such.txt"]);
    fs::write(dir.path().join("text.txt"), b"abc \xff def").unwrap();
    let ran = run_in(dir.path(), &["train", &config]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("text.txt") && ran.stderr.contains("UTF-8"), "{}", ran.stderr);
}

/// Starts a run that would take hours and waits until it has written metrics.
#[cfg(unix)]
fn started(dir: &std::path::Path, config: &str) -> std::process::Child {
    let child = flashlin(&["train", config, "--train.steps", "1000000", "--log.interval", "1"])
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = dir.join("out/metrics.jsonl");
    let written = || fs::read_to_string(&metrics).is_ok_and(|t| t.contains("\"train\""));
    let begin = std::time::Instant::now();
    while !written() && begin.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(100));
    }
    child
}

#[cfg(unix)]
fn interrupt(child: std::process::Child) -> Ran {
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    Ran::of(child.wait_with_output().unwrap())
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_checkpoint_and_the_folder_is_locked_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_run(dir.path());
    let child = started(dir.path(), &config);
    let second = run_in(dir.path(), &["train", &config]);
    assert_eq!(second.code, 2, "{}", second.stderr);
    assert!(second.stderr.contains("another run is using"), "{}", second.stderr);
    let ended = interrupt(child);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("interrupted"), "{}", ended.stdout);
    let reached: u64 =
        fs::read_to_string(dir.path().join("out/metrics.jsonl")).unwrap().lines().count() as u64;
    let steps = (reached + 20).to_string();
    let resumed =
        run_in(dir.path(), &["train", &config, "--resume", "--train.steps", &steps, "--json"]).json();
    assert_eq!(resumed["steps"].as_u64().unwrap(), reached + 20);
}

#[cfg(unix)]
#[test]
fn quickstart_trains_and_writes() {
    let dir = tempfile::tempdir().unwrap();
    let small = [
        "quickstart",
        "--out",
        "q",
        "--steps",
        "3",
        "--max-new-tokens",
        "8",
        "--prompt",
        "KING",
        "--model.config.hidden_size",
        "32",
        "--model.config.num_heads",
        "1",
        "--model.config.head_dim",
        "32",
        "--model.config.intermediate_size",
        "64",
        "--model.config.num_hidden_layers",
        "1",
        "--data.vocab_size",
        "300",
        "--data.seq_len",
        "64",
        "--data.batch_size",
        "2",
        "--schedule.warmup_steps",
        "0",
        "--eval.interval",
        "0",
        "--eval.tokens",
        "1000",
    ];
    let ran = run_in(dir.path(), &small);
    let text = ran.ok();
    assert!(text.contains("Kneser-Ney, order 5  2.41"), "{text}");
    assert!(text.contains("KING"), "{text}");
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        assert!(dir.path().join("q/latest").join(file).exists(), "{file}");
    }
    // There is a run already.
    assert_eq!(run_in(dir.path(), &small).code, 2);
}

#[cfg(unix)]
#[test]
fn a_read_only_folder_is_named_and_nothing_is_lost() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let locked = dir.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(locked.join("probe"), b"").is_ok() {
        // Root may write everywhere; /proc refuses root too (it says that there is no such folder).
        let ran = run(&["new", "gated_deltanet", "--preset", "tiny", "--out", "/proc/flashlin"]);
        assert_ne!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stderr.contains("/proc/flashlin"), "{}", ran.stderr);
        return;
    }
    let out = locked.join("model");
    let ran = run(&["new", "gated_deltanet", "--preset", "tiny", "--out", out.to_str().unwrap()]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("locked"), "{}", ran.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_old_files_stay() {
    // A limit on the size of files stands for the full disk.
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path());
    let before = fs::read(std::path::Path::new(&model).join("model.safetensors")).unwrap();
    let state = dir.path().join("state");
    fs::write(&state, b"old").unwrap();
    let command = format!(
        "trap '' XFSZ; ulimit -f 1; exec {} generate {model} -p hello -n 2 --save-state {}",
        env!("CARGO_BIN_EXE_flashlin"),
        state.display()
    );
    let out = std::process::Command::new("bash").args(["-c", &command]).output().unwrap();
    let ran = Ran::of(out);
    assert_eq!(ran.code, 1, "{} {}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("state"), "{}", ran.stderr);
    assert_eq!(fs::read(&state).unwrap(), b"old");
    assert_eq!(fs::read(std::path::Path::new(&model).join("model.safetensors")).unwrap(), before);
    let full = Ran::of(flashlin(&["ops"]).stdout(fs::File::create("/dev/full").unwrap()).output().unwrap());
    assert_eq!(full.code, 1);
    assert!(full.stderr.starts_with("error: "), "{}", full.stderr);
}

#[test]
fn verify_passes_and_says_what_failed() {
    let golden = goldens().join("models/gla-0");
    let golden = golden.to_str().unwrap();
    let report = run(&["verify", golden, "--mode", "chunk", "--json"]).json();
    assert_eq!(report["pass"], true);
    assert!(report["reports"][0]["lines"].as_array().unwrap().len() > 10);
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "golden.json", "golden.safetensors"] {
        fs::copy(format!("{golden}/{file}"), dir.path().join(file)).unwrap();
    }
    let path = dir.path().join("golden.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["loss"] = (json["loss"].as_f64().unwrap() * 1.001).into();
    fs::write(&path, json.to_string()).unwrap();
    let failed = run(&["verify", dir.path().to_str().unwrap(), "--mode", "chunk", "--brief"]);
    assert_eq!(failed.code, 1);
    assert!(failed.stdout.contains("loss") && failed.stdout.contains("FAIL"), "{}", failed.stdout);
    // An unread file is a failure, never a skip.
    fs::remove_file(&path).unwrap();
    let unread = run(&["verify", dir.path().to_str().unwrap(), "--json"]);
    assert_eq!(unread.code, 1);
    assert_eq!(serde_json::from_str::<Value>(&unread.stdout).unwrap()["pass"], false);
}
