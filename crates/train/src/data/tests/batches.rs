//! What is in a batch: packing, labels, shuffling, mixing.

use super::*;

#[test]
fn documents_are_packed_with_boundaries() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a.jsonl", jsonl(&["abc", "", "defghijklmn", "op"]));
    let batches = all(&config(vec![source(&path)]));
    assert_eq!(batches.len(), 1);
    let batch = &batches[0];
    assert_eq!(segments(batch), ["abc", "defghijk", "lmn", "op"]);
    assert_eq!(batch.cu_seqlens, [0, 3, 11, 14, 16]);
    // A label is the next token of the same document, also over a cut; the last token of a document has none.
    let id = |c: char| c as i64 + 3;
    let expected: Vec<i64> =
        "bc|efghijklmn|p|".chars().map(|c| if c == '|' { IGNORE } else { id(c) }).collect();
    assert_eq!(batch.labels, expected);
    assert_eq!((batch.targets, batch.target_bytes), (13, 13));
    assert_eq!(batch.dense(), None);
}

#[test]
fn a_document_goes_on_in_the_next_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a.txt", "0123456789abcdefghijklmnopqrstuvwxyz");
    let batches = all(&DataConfig { context_len: Some(12), ..config(vec![source(&path)]) });
    let parts: Vec<Vec<String>> = batches.iter().map(segments).collect();
    assert_eq!(parts, [vec!["0123456789ab", "cdef"], vec!["ghijklmn", "opqrstuv"], vec!["wxyz"]]);
    let labels: usize = batches.iter().map(|b| b.targets as usize).sum();
    assert_eq!(labels, 35);
    assert_eq!(batches[0].labels[15], b'g' as i64 + 3);
}

#[test]
fn special_tokens_surround_documents() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a.jsonl", jsonl(&["ab", "c"]));
    let batches = all(&DataConfig { bos: Some(true), eos: None, ..config(vec![source(&path)]) });
    assert_eq!(batches[0].tokens, [1, 100, 101, 2, 1, 102, 2]);
    assert_eq!(batches[0].labels, [100, 101, 2, IGNORE, 102, 2, IGNORE]);
    // EOS is a label but no text.
    assert_eq!((batches[0].targets, batches[0].target_bytes), (5, 3));
}

#[test]
fn contiguous_blocks_have_no_boundaries() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a.txt", "one line\nand two\nlines three\n");
    let by_line = SourceConfig { unit: TextUnit::Line, ..source(&path) };
    let batches = all(&DataConfig { packing: Packing::Contiguous, ..config(vec![by_line]) });
    let parts: Vec<String> = batches.iter().flat_map(segments).collect();
    assert_eq!(parts, ["one line", "and twol", "ines thr", "ee"]);
    assert_eq!(batches[0].dense(), Some((2, 8)));
    let labels: Vec<i64> = batches.iter().flat_map(|b| b.labels.clone()).collect();
    let mut tokens: Vec<i64> =
        batches.iter().flat_map(|b| b.tokens.iter().map(|&t| t as i64)).skip(1).collect();
    tokens.push(IGNORE);
    assert_eq!(labels, tokens);
}

#[test]
fn repeating_data_goes_on_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a.txt", "abcde");
    let config = DataConfig { repeat: true, packing: Packing::Contiguous, ..config(vec![source(&path)]) };
    let mut loader = Loader::new(&config, &bytes()).unwrap();
    let batch = loader.next_batch().unwrap().unwrap();
    assert_eq!(segments(&batch), ["abcdeabc", "deabcdea"]);
    assert!(loader.epochs()[0] >= 3);
}

#[test]
fn shuffling_permutes_and_depends_on_the_seed() {
    let dir = tempfile::tempdir().unwrap();
    let documents: Vec<String> = (0..100).map(|i| format!("d{i:03}")).collect();
    let path = write(dir.path(), "a.jsonl", jsonl(&documents));
    let order = |seed, shuffle| -> Vec<String> {
        all(&DataConfig { shuffle, seed, ..config(vec![source(&path)]) }).iter().flat_map(segments).collect()
    };
    assert_eq!(order(1, 0), documents);
    let mixed = order(1, 30);
    assert_eq!(mixed, order(1, 30));
    assert_ne!(mixed, order(2, 30));
    assert_ne!(mixed, documents);
    let mut sorted = mixed.clone();
    sorted.sort();
    assert_eq!(sorted, documents);
    // A window is 30 segments.
    assert!(mixed[..30].iter().all(|d| d.as_str() < "d030"));
}

#[test]
fn files_are_read_in_another_order_each_epoch() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..8 {
        write(dir.path(), &format!("{i}.txt"), format!("{i}"));
    }
    let config = DataConfig {
        repeat: true,
        shuffle: 2,
        packing: Packing::Contiguous,
        ..config(vec![SourceConfig::new([dir.path()])])
    };
    let mut loader = Loader::new(&config, &bytes()).unwrap();
    let mut epochs = Vec::new();
    for _ in 0..4 {
        epochs.extend(segments(&loader.next_batch().unwrap().unwrap()));
    }
    for epoch in &epochs {
        let mut digits: Vec<char> = epoch.chars().collect();
        digits.sort();
        assert_eq!(digits.into_iter().collect::<String>(), "01234567");
    }
    assert!(epochs.windows(2).any(|w| w[0] != w[1]));
}

#[test]
fn mixtures_follow_their_weights_in_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(dir.path(), "a.jsonl", jsonl(&["a", "aaaaaaa", "aaa"]));
    let b = write(dir.path(), "b.txt", "bbbbb bbbbb\nbbbbb bb\n");
    let c = write_parquet(dir.path(), "c.parquet", "text", &[vec![Some("cc"), None, Some("cccc")]]);
    let weighted = |path: &Path, weight| SourceConfig { weight, ..source(path) };
    let config = DataConfig {
        repeat: true,
        shuffle: 4,
        ..config(vec![weighted(&a, 1.0), weighted(&b, 3.0), weighted(&c, 0.5)])
    };
    let mut loader = Loader::new(&config, &bytes()).unwrap();
    let mut counts = [0f64; 3];
    for _ in 0..500 {
        for &t in &loader.next_batch().unwrap().unwrap().tokens {
            let c = t as u8 - 3;
            counts[if c.is_ascii_lowercase() { (c - b'a') as usize } else { 1 }] += 1.0;
        }
    }
    let total: f64 = counts.iter().sum();
    for (count, weight) in counts.iter().zip([1.0, 3.0, 0.5]) {
        assert!((count / total - weight / 4.5).abs() < 0.005, "{counts:?}");
    }
    // Without repetition every source is used up.
    let once = all(&DataConfig { repeat: false, ..config });
    assert_eq!(once.iter().map(|b| b.tokens.len()).sum::<usize>(), 10 + 21 + 6);
}

#[test]
fn a_split_by_position_loses_and_shares_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text = "first line\nsecond, é line\n\nthird\nfourth and last";
    let path = write(dir.path(), "a.txt", text);
    let records = write(dir.path(), "a.jsonl", jsonl(&["u", "vv", "www", "x", "y"]));
    let rows = write_parquet(dir.path(), "a.parquet", "text", &[vec![Some("u"); 3], vec![Some("v"); 4]]);
    for held_out in [0.05, 0.1, 0.3, 0.5, 0.8] {
        let (train, held) = source(&path).split(held_out);
        let (a, b) = (read_text(&train).unwrap(), read_text(&held).unwrap_or_default());
        assert_eq!(format!("{a}{b}"), text);
        assert!(a.ends_with('\n') || b.is_empty());
        let count = |s: &SourceConfig| texts(s).unwrap().filter(|t| t.is_ok()).count();
        let (train, held) = source(&records).split(held_out);
        assert_eq!(count(&train) + count(&held), 5);
        let (train, held) = source(&rows).split(held_out);
        assert_eq!(count(&train) + count(&held), 7);
    }
}

#[test]
fn a_long_file_gives_the_same_tokens_as_its_text_at_once() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/shakespeare.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let tokenizer = train_tokenizer(&[source(&path).split(0.1).0], 500, Some(300_000)).unwrap();
    let config = DataConfig { seq_len: 1000, packing: Packing::Contiguous, ..config(vec![source(&path)]) };
    let mut loader = Loader::new(&config, &tokenizer).unwrap();
    let mut tokens = Vec::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        tokens.extend(batch.tokens);
    }
    assert!(text.len() > 10 * super::super::text::PIECE);
    assert_eq!(tokens, tokenizer.encode_plain(&text).unwrap());
}

#[test]
fn a_tokenizer_is_trained_on_the_given_part_only() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{}{}", "common words here\n".repeat(90), "zyxzyx wvuwvu\n".repeat(12));
    let path = write(dir.path(), "a.txt", text);
    let (train, _) = source(&path).split(0.1);
    let t = train_tokenizer(&[train], 400, None).unwrap();
    assert_eq!(t.encode_plain("zyxzyx").unwrap().len(), 6);
    assert_eq!(t.encode_plain(" words").unwrap().len(), 1);
}
