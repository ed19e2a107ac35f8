//! What files may hold, and what is refused.

use proptest::prelude::*;

use super::*;

fn documents(source: &SourceConfig) -> Vec<String> {
    texts(source).unwrap().map(Result::unwrap).collect()
}

#[test]
fn units_of_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a.txt", "one\r\ntwo\n\n \nthree\nfour\n\n");
    let unit = |unit| documents(&SourceConfig { unit, ..source(&path) });
    assert_eq!(unit(TextUnit::Line), ["one", "two", " ", "three", "four"]);
    assert_eq!(unit(TextUnit::Paragraph), ["one\ntwo", "three\nfour"]);
    assert_eq!(unit(TextUnit::File), ["one\r\ntwo\n\n \nthree\nfour\n\n"]);
    assert_eq!(
        read_text(&SourceConfig { unit: TextUnit::Paragraph, ..source(&path) }).unwrap(),
        "one\ntwo\n\nthree\nfour"
    );
}

#[test]
fn folders_are_searched_by_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("b")).unwrap();
    for (name, text) in
        [("c.txt", "3"), ("a.txt", "1"), ("b/x.md", "2"), ("b/.hidden.txt", "no"), ("b/y.csv", "no")]
    {
        write(dir.path(), name, text);
    }
    assert_eq!(documents(&SourceConfig::new([dir.path()])), ["1", "2", "3"]);
}

#[test]
fn fields_and_columns() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(
        dir.path(),
        "a.jsonl",
        "{\"content\": \"x\\ny\"}\n\n{\"content\": null}\r\n{\"content\": \"z\", \"b\": \"B\"}",
    );
    assert_eq!(documents(&source(&path)), ["x\ny", "z"]);
    let path = write(dir.path(), "b.jsonl", "{\"b\": \"B\"}\n");
    assert_eq!(documents(&SourceConfig { field: Some("b".into()), ..source(&path) }), ["B"]);
    let groups = [vec![Some("a"), None, Some("")], vec![], vec![Some("é"); 700]];
    let path = write_parquet(dir.path(), "c.parquet", "body", &groups);
    let read = documents(&SourceConfig { field: Some("body".into()), ..source(&path) });
    assert_eq!(read.len(), 701);
    assert_eq!((read[0].as_str(), read[700].as_str()), ("a", "é"));
}

#[test]
fn errors_name_file_and_place() {
    let dir = tempfile::tempdir().unwrap();
    let one = |name: &str, content: &[u8]| config(vec![source(&write(dir.path(), name, content))]);
    let says = |config: &DataConfig, parts: &[&str]| {
        let e = error(config);
        assert!(parts.iter().all(|p| e.contains(p)), "{e} lacks one of {parts:?}");
    };
    says(&one("bad.txt", b"abc\xFFdef"), &["bad.txt", "byte 3", "UTF-8"]);
    says(&one("cut.txt", b"abc\xE2\x82"), &["cut.txt", "byte 3"]);
    let mut long = vec![b'x'; 200_000];
    long[170_001] = 0xC0;
    says(&one("long.txt", &long), &["byte 170001"]);
    says(&one("empty.txt", b""), &["empty.txt", "empty"]);
    says(&one("bad.jsonl", b"{\"text\": \"a\"}\n{\"text\": \n"), &["bad.jsonl:2", "malformed"]);
    says(
        &one("no.jsonl", b"{\"body\": 1, \"id\": 2}\n"),
        &["no.jsonl:1", "\"text\" or \"content\"", "body, id"],
    );
    says(&one("num.jsonl", b"{\"text\": 3}"), &["num.jsonl:1", "not a string"]);
    says(&one("list.jsonl", b"[1]"), &["list.jsonl:1", "object"]);
    says(&one("utf.jsonl", b"{}\n\xFF"), &["utf.jsonl"]);
    says(&one("blank.jsonl", b"\n\n"), &["blank.jsonl", "no text"]);
    says(&one("x.parquet", b"PAR1 not really PAR1"), &["x.parquet", "parquet"]);
    says(&one("x.csv", b"a,b"), &["x.csv", "format", ".jsonl"]);
    says(&config(vec![source(&dir.path().join("absent.txt"))]), &["absent.txt"]);
    says(&config(vec![]), &["data.sources"]);

    let path = write_parquet(dir.path(), "c.parquet", "body", &[vec![Some("a")]]);
    says(&config(vec![source(&path)]), &["c.parquet", "\"text\" or \"content\"", "id, body"]);
    let field = SourceConfig { field: Some("id".into()), ..source(&path) };
    says(&config(vec![field]), &["\"id\"", "strings"]);

    let ok = source(&write(dir.path(), "ok.txt", "text"));
    let base = config(vec![ok.clone()]);
    says(&DataConfig { seq_len: 0, ..base.clone() }, &["data.seq_len"]);
    says(&DataConfig { context_len: Some(0), ..base.clone() }, &["data.context_len"]);
    let both = DataConfig { context_len: Some(3), packing: Packing::Contiguous, ..base.clone() };
    says(&both, &["data.context_len", "contiguous"]);
    says(&config(vec![SourceConfig { weight: 0.0, ..ok.clone() }]), &["data.sources[0].weight"]);
    says(&config(vec![SourceConfig { range: [0.5, 0.2], ..ok.clone() }]), &["data.sources[0].range"]);
    says(&config(vec![SourceConfig { field: Some("f".into()), ..ok }]), &["data.sources[0].field"]);
    says(&config(vec![SourceConfig::new([dir.path()])]), &["different formats"]);
}

#[test]
fn unknown_keys_are_refused() {
    let good = "[[sources]]\npaths = [\"a.txt\"]\nunit = \"line\"\n";
    let parsed: DataConfig = toml::from_str(good).unwrap();
    assert_eq!((parsed.seq_len, parsed.sources[0].unit), (2048, TextUnit::Line));
    assert!(
        toml::from_str::<DataConfig>(&format!("{good}weigth = 2.0\n"))
            .unwrap_err()
            .to_string()
            .contains("weigth")
    );
}

#[test]
fn memory_does_not_grow_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "big.txt", "some words in a line, and no end of them\n".repeat(200_000));
    let files = super::super::files::FileSet::open(&source(&path), "s").unwrap();
    let shards = super::super::shards::Shards::new(files, None, false);
    let rules =
        super::super::segments::Rules { packing: Packing::Documents, len: 4096, bos: None, eos: None };
    let mut segments = super::super::segments::Segments::new(shards, bytes(), rules);
    let mut total = 0;
    while let Some(segment) = segments.next().unwrap() {
        total += segment.tokens.len();
        assert!(segments.held() < 1 << 20, "{} tokens in memory", segments.held());
    }
    assert_eq!(total, 41 * 200_000);
}

/// Reads everything; must end with an error or the end of the data, never a panic.
fn survive(path: &Path) {
    for unit in [TextUnit::File, TextUnit::Line, TextUnit::Paragraph] {
        let config = config(vec![SourceConfig { unit, ..source(path) }]);
        let Ok(mut loader) = Loader::new(&config, &bytes()) else { continue };
        while let Ok(Some(_)) = loader.next_batch() {}
    }
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn arbitrary_bytes_never_panic(content in proptest::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", "a.jsonl", "a.parquet"] {
            survive(&write(dir.path(), name, &content));
        }
    }

    #[test]
    fn damaged_files_never_panic(cut in 0.0f64..1.0, at in 0.0f64..1.0, byte in any::<u8>(), both in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<Option<&str>> = (0..50).map(|i| (i % 7 > 0).then_some("a text of some length")).collect();
        let parquet = std::fs::read(write_parquet(dir.path(), "x.parquet", "text", &[rows.clone(), rows])).unwrap();
        let jsonl = jsonl(&["some text", "é", "another \"text\"\n"]).into_bytes();
        for (name, mut content) in [("a.parquet", parquet), ("a.jsonl", jsonl)] {
            let at = (at * content.len() as f64) as usize;
            content[at] = byte;
            if both {
                content.truncate((cut * content.len() as f64) as usize);
            }
            survive(&write(dir.path(), name, &content));
        }
    }
}
