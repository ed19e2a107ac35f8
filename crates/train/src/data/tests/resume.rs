//! A resumed loader gives exactly the batches of one that was never stopped.

use proptest::prelude::*;

use super::*;

/// Three sources of all formats, with documents of all lengths.
fn mixture(dir: &Path) -> Vec<SourceConfig> {
    let mut words = String::new();
    for i in 0..4000 {
        words.push_str(&format!("word{} ", i * 7919 % 1000));
        if i % 11 == 0 {
            words.push('\n');
        }
    }
    write(dir, "a1.txt", words.repeat(2));
    write(dir, "a2.txt", "short\nfile\n");
    let texts = SourceConfig { weight: 2.0, ..SourceConfig::new([dir.join("a1.txt"), dir.join("a2.txt")]) };
    let documents: Vec<String> = (0..60).map(|i| "document ".repeat(i * i % 37)).collect();
    let records = SourceConfig::new([
        write(dir, "b1.jsonl", jsonl(&documents)),
        write(dir, "b2.jsonl", jsonl(&["x"; 5])),
    ]);
    let rows: Vec<Option<&str>> = (0..40).map(|i| (i % 3 > 0).then_some("a row of text")).collect();
    let parquet = source(&write_parquet(dir, "c.parquet", "text", &[rows.clone(), rows]));
    let lines = SourceConfig { unit: TextUnit::Line, ..source(&dir.join("a1.txt")) };
    vec![texts, records, parquet, lines.split(0.3).1]
}

/// Batches `0..n`, with the state before each.
fn uninterrupted(config: &DataConfig, tokenizer: &Tokenizer, n: usize) -> (Vec<Batch>, Vec<DataState>) {
    let mut loader = Loader::new(config, tokenizer).unwrap();
    let (mut batches, mut states) = (Vec::new(), vec![loader.state()]);
    for _ in 0..n {
        let Some(batch) = loader.next_batch().unwrap() else { break };
        batches.push(batch);
        states.push(loader.state());
    }
    (batches, states)
}

fn check(config: &DataConfig, tokenizer: &Tokenizer, n: usize, stops: &[usize]) {
    let (batches, states) = uninterrupted(config, tokenizer, n);
    for stop in stops.iter().map(|s| s % states.len()) {
        let json = serde_json::to_string(&states[stop]).unwrap();
        assert!(json.len() < 2000, "{} bytes of state", json.len());
        let state: DataState = serde_json::from_str(&json).unwrap();
        let mut loader = Loader::resume(config, tokenizer, &state).unwrap();
        assert_eq!(loader.state(), state);
        for (i, batch) in batches.iter().enumerate().skip(stop) {
            assert_eq!(
                loader.next_batch().unwrap().as_ref(),
                Some(batch),
                "batch {i} after a stop at {stop}"
            );
            assert_eq!(loader.state(), states[i + 1]);
        }
    }
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn at_any_batch(stops in proptest::collection::vec(0usize..100, 2), seed in any::<u64>(), shuffle in 0usize..40,
                    contiguous in any::<bool>(), repeat in any::<bool>(), context in 3usize..200) {
        let dir = tempfile::tempdir().unwrap();
        let packing = if contiguous { Packing::Contiguous } else { Packing::Documents };
        let config = DataConfig {
            seq_len: 50,
            batch_size: 3,
            context_len: (!contiguous).then_some(context),
            packing,
            shuffle,
            seed,
            repeat,
            bos: Some(true),
            ..DataConfig::new(mixture(dir.path()))
        };
        check(&config, &bytes(), 100, &stops);
    }
}

#[test]
fn over_many_epochs_with_a_trained_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let sources = mixture(dir.path());
    let tokenizer = train_tokenizer(&sources, 300, None).unwrap();
    let config = DataConfig { seq_len: 700, batch_size: 4, shuffle: 16, ..DataConfig::new(sources) };
    let (_, states) = uninterrupted(&config, &tokenizer, 150);
    let mut loader = Loader::resume(&config, &tokenizer, &states[149]).unwrap();
    assert!(loader.epochs().iter().all(|&e| e > 1), "{:?}", loader.epochs());
    loader.next_batch().unwrap().unwrap();
    check(&config, &tokenizer, 150, &[77, 149]);
}

#[test]
fn with_another_batch_size_the_tokens_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        DataConfig { seq_len: 10, batch_size: 4, shuffle: 8, ..DataConfig::new(mixture(dir.path())) };
    let (batches, states) = uninterrupted(&config, &bytes(), 8);
    let smaller = DataConfig { batch_size: 1, ..config };
    let mut loader = Loader::resume(&smaller, &bytes(), &states[4]).unwrap();
    let mut tokens = Vec::new();
    for _ in 0..16 {
        tokens.extend(loader.next_batch().unwrap().unwrap().tokens);
    }
    assert_eq!(tokens, batches[4..].iter().flat_map(|b| b.tokens.clone()).collect::<Vec<_>>());
}

#[test]
fn a_loader_may_live_on_another_thread() {
    fn check<T: Send>(_: &T) {}
    let dir = tempfile::tempdir().unwrap();
    let config = config(vec![source(&write(dir.path(), "a.txt", "text"))]);
    check(&Loader::new(&config, &bytes()).unwrap());
}

#[test]
fn after_the_end_there_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(vec![source(&write(dir.path(), "a.txt", "0123456789abcdefgh"))]);
    let (batches, states) = uninterrupted(&config, &bytes(), 10);
    assert_eq!(batches.len(), 2);
    let mut loader = Loader::resume(&config, &bytes(), &states[2]).unwrap();
    assert_eq!(loader.next_batch().unwrap(), None);
    assert_eq!(loader.next_batch().unwrap(), None);
}

#[test]
fn what_changed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(dir.path(), "a.txt", "some text that is long enough for a few batches");
    let config = config(vec![source(&a)]);
    let mut loader = Loader::new(&config, &bytes()).unwrap();
    loader.next_batch().unwrap();
    let state = loader.state();
    let refused = |config: &DataConfig, tokenizer: &Tokenizer| match Loader::resume(config, tokenizer, &state)
    {
        Ok(_) => panic!("resumed"),
        Err(e) => e.to_string(),
    };
    assert!(refused(&DataConfig { seq_len: 9, ..config.clone() }, &bytes()).contains("segment length"));
    assert!(refused(&DataConfig { seed: 9, ..config.clone() }, &bytes()).contains("data.seed"));
    assert!(refused(&DataConfig { shuffle: 9, ..config.clone() }, &bytes()).contains("data.shuffle"));
    assert!(refused(&DataConfig { eos: Some(true), ..config.clone() }, &bytes()).contains("data.eos"));
    let other = Tokenizer::train_bpe(["aa aa aa"].into_iter(), 260).unwrap();
    assert!(refused(&config, &other).contains("tokenizer"));
    let two = DataConfig { sources: vec![source(&a), source(&a)], ..config.clone() };
    assert!(refused(&two, &bytes()).contains("now there are 2"));
    let b = write(dir.path(), "b.txt", "another");
    let moved = DataConfig { sources: vec![source(&b)], ..config.clone() };
    assert!(refused(&moved, &bytes()).contains("b.txt stands where a.txt was"));
    // The same file in another folder is fine; one that grew is not.
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(&a, elsewhere.path().join("a.txt")).unwrap();
    let copy = DataConfig { sources: vec![source(&elsewhere.path().join("a.txt"))], ..config.clone() };
    let mut resumed = Loader::resume(&copy, &bytes(), &state).unwrap();
    assert_eq!(resumed.next_batch().unwrap(), loader.next_batch().unwrap());
    write(dir.path(), "a.txt", "some text that is long enough for a few batches, and then more");
    let e = refused(&config, &bytes());
    assert!(e.contains("a.txt had 47 bytes and has 62 now"), "{e}");
}

#[test]
fn a_wild_state_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        config(vec![source(&write(dir.path(), "a.txt", "some text that is long enough for two batches"))]);
    let mut loader = Loader::new(&config, &bytes()).unwrap();
    loader.next_batch().unwrap();
    let good = serde_json::to_value(loader.state()).unwrap();
    for (pointer, value) in [
        ("/version", 7),
        ("/sources/0/window/start/token", 1000),
        ("/sources/0/window/start/piece/file", 5),
        ("/sources/0/window/start/piece/cursor/offset", 1000),
        ("/sources/0/window/used", 99),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value.into();
        if pointer.ends_with("offset") {
            bad["sources"][0]["window"]["start"]["token"] = 1.into();
        }
        let state: DataState = serde_json::from_value(bad).unwrap();
        assert!(Loader::resume(&config, &bytes(), &state).is_err(), "{pointer}");
    }
    let mut bad = good.clone();
    bad["current"] = serde_json::json!([3, 1]);
    assert!(Loader::resume(&config, &bytes(), &serde_json::from_value(bad).unwrap()).is_err());
}

/// Working ahead changes nothing: batches, the position between them, the end.
#[test]
fn prefetched_batches_and_positions_are_the_loaders() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        DataConfig { repeat: false, shuffle: 7, seq_len: 50, ..DataConfig::new(mixture(dir.path())) };
    let (batches, states) = uninterrupted(&config, &bytes(), usize::MAX);
    assert!(batches.len() > 10);
    for ahead in [0, 1, 5] {
        for start in [0, 3] {
            let loader = Loader::resume(&config, &bytes(), &states[start]).unwrap();
            let mut data = Prefetch::new(loader, ahead);
            for i in start..batches.len() {
                // Give it time to run ahead of what is taken.
                std::thread::sleep(std::time::Duration::from_millis((i % 3) as u64));
                assert_eq!(data.state(), states[i]);
                assert_eq!(data.next_batch().unwrap().as_ref(), Some(&batches[i]));
            }
            assert_eq!(data.state(), states[batches.len()]);
            assert_eq!(data.next_batch().unwrap(), None);
            assert_eq!(data.next_batch().unwrap(), None);
        }
    }
}

/// An error comes after the batches before it, and once; a prefetcher that is dropped early leaves no thread.
#[test]
fn prefetching_carries_errors_and_ends_with_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let good = jsonl(&["a document of some length"; 40]);
    let path = write(dir.path(), "x.jsonl", format!("{good}not json\n"));
    let config = super::config(vec![source(&path)]);
    let expected = {
        let mut loader = Loader::new(&config, &bytes()).unwrap();
        let mut n = 0;
        loop {
            match loader.next_batch() {
                Ok(Some(_)) => n += 1,
                Ok(None) => panic!("the file is broken"),
                Err(e) => break (n, e.to_string()),
            }
        }
    };
    let mut data = Prefetch::new(Loader::new(&config, &bytes()).unwrap(), 3);
    for _ in 0..expected.0 {
        assert!(data.next_batch().unwrap().is_some());
    }
    assert_eq!(data.next_batch().unwrap_err().to_string(), expected.1);
    assert!(data.next_batch().unwrap().is_none());

    let endless = DataConfig {
        repeat: true,
        ..super::config(vec![source(&write(dir.path(), "y.txt", "text ".repeat(99)))])
    };
    let threads = || {
        std::fs::read_dir("/proc/self/task").map_or(0, |tasks| {
            let name = |t: std::io::Result<std::fs::DirEntry>| {
                std::fs::read_to_string(t.ok()?.path().join("comm")).ok()
            };
            tasks.filter_map(name).filter(|n| n.trim() == "data").count()
        })
    };
    for taken in [0, 4].repeat(30) {
        let mut data = Prefetch::new(Loader::new(&endless, &bytes()).unwrap(), 2);
        for _ in 0..taken {
            data.next_batch().unwrap();
        }
        // The queue is full and its thread waits. Dropping must not hang, and joins it.
        drop(data);
    }
    assert!(threads() < 20, "threads are left behind");
}
