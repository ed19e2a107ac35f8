//! Against a loopback server that answers as the hub does: small files itself, large ones by redirect to another host.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use sha2::{Digest, Sha256};

use super::*;
use crate::weights::{INDEX_FILE, WEIGHTS_FILE};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEXT: &str = "89abcdef0123456789abcdef0123456789abcdef";

#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection breaks.
    cut: Option<usize>,
}

/// A server on a free port; `answer` runs for each request, and every request is logged.
fn serve(answer: impl Fn(&Request) -> Reply + Send + 'static) -> (String, Arc<Mutex<Vec<Request>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let log = Arc::new(Mutex::new(Vec::new()));
    let logged = log.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(|l| l.ok());
            let Some(first) = lines.next() else { continue };
            let mut words = first.split(' ').map(str::to_string);
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            let headers = lines
                .take_while(|l| !l.is_empty())
                .filter_map(|l| l.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.to_string())))
                .collect();
            let request = Request { method, path, headers };
            logged.lock().unwrap().push(request.clone());
            let reply = answer(&request);
            let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
            for (k, v) in &reply.headers {
                head += &format!("{k}: {v}\r\n");
            }
            if !reply.headers.iter().any(|(k, _)| k == "content-length") {
                head += &format!("content-length: {}\r\n", reply.body.len());
            }
            let body = if request.method == "HEAD" { &[][..] } else { &reply.body };
            let body = &body[..reply.cut.unwrap_or(body.len()).min(body.len())];
            let _ = stream.write_all((head + "\r\n").as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    (url, log)
}

fn hex_sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// What the fake hub does wrong.
#[derive(Default)]
struct Faults {
    /// Each large download breaks after the next of these many bytes.
    cuts: Mutex<Vec<usize>>,
    ignore_ranges: bool,
    /// Wrong bytes are sent this many times.
    corrupt: Mutex<usize>,
    /// The first n requests are answered with 503.
    busy: Mutex<usize>,
    /// Files of the listing that are not there.
    extra: Vec<&'static str>,
}

struct Hub {
    url: String,
    log: Arc<Mutex<Vec<Request>>>,
    storage: Arc<Mutex<Vec<Request>>>,
    commit: Arc<Mutex<&'static str>>,
}

fn take(n: &Mutex<usize>) -> bool {
    let mut n = n.lock().unwrap();
    let some = *n > 0;
    *n = n.saturating_sub(1);
    some
}

/// A hub with the repository `lab/tiny`: files whose names end in `.safetensors` are large.
fn hub(files: &[(&'static str, Vec<u8>)], faults: Faults) -> Hub {
    let files: HashMap<String, Vec<u8>> = files.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    let faults = Arc::new(faults);
    let (stored, trouble) = (files.clone(), faults.clone());
    let (storage_url, storage) = serve(move |r| {
        let bytes = &stored[r.path.trim_start_matches("/blob/")];
        let range = r.headers.get("range").filter(|_| !trouble.ignore_ranges);
        let from: usize = range.map_or(0, |r| r[6..].trim_end_matches('-').parse().unwrap());
        if from >= bytes.len() {
            return Reply { status: 416, ..Default::default() };
        }
        let mut body = bytes[from..].to_vec();
        if take(&trouble.corrupt) {
            body[0] ^= 1;
        }
        let mut headers = Vec::new();
        if range.is_some() {
            let value = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            headers.push(("content-range".into(), value));
        }
        let status = if range.is_some() { 206 } else { 200 };
        Reply { status, headers, body, cut: trouble.cuts.lock().unwrap().pop() }
    });
    let commit = Arc::new(Mutex::new(COMMIT));
    let current = commit.clone();
    let (url, log) = serve(move |r| {
        if take(&faults.busy) {
            return Reply { status: 503, ..Default::default() };
        }
        let commit = *current.lock().unwrap();
        if let Some(rest) = r.path.strip_prefix("/api/models/lab/tiny/revision/") {
            if !["main", "refs%2Fpr%2F1", commit].contains(&rest) {
                let headers = vec![("x-error-message".into(), "Invalid rev id".into())];
                return Reply { status: 404, headers, ..Default::default() };
            }
            let names = files.keys().map(String::as_str).chain(faults.extra.iter().copied());
            let siblings: Vec<_> = names.map(|f| serde_json::json!({"rfilename": f})).collect();
            let body = serde_json::json!({"sha": commit, "siblings": siblings, "id": "lab/tiny"});
            return Reply { status: 200, body: body.to_string().into_bytes(), ..Default::default() };
        }
        // A renamed repository redirects within the hub.
        if let Some(rest) = r.path.strip_prefix("/lab/tiny/resolve/") {
            let headers = vec![("location".into(), format!("/lab/renamed/resolve/{rest}"))];
            return Reply { status: 307, headers, ..Default::default() };
        }
        let Some(rest) = r.path.strip_prefix(&format!("/lab/renamed/resolve/{commit}/")) else {
            return Reply { status: 401, ..Default::default() };
        };
        let Some(bytes) = files.get(rest) else { return Reply { status: 404, ..Default::default() } };
        let hash = hex_sha256(bytes);
        if !rest.ends_with(".safetensors") {
            let headers = vec![("etag".into(), format!("W/\"{}\"", &hash[..40]))];
            return Reply { status: 200, headers, body: bytes.clone(), ..Default::default() };
        }
        let headers = [
            ("location", format!("{storage_url}/blob/{rest}")),
            ("etag", "\"of-the-redirect\"".into()),
            ("x-linked-etag", format!("\"{hash}\"")),
            ("x-linked-size", bytes.len().to_string()),
        ];
        let headers = headers.map(|(k, v)| (k.to_string(), v)).to_vec();
        Reply { status: 302, headers, ..Default::default() }
    });
    Hub { url, log, storage, commit }
}

fn large() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect()
}

fn small_model() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"a\":1}".to_vec()),
        ("README.md", b"unwanted".to_vec()),
        (WEIGHTS_FILE, large()),
    ]
}

fn options(hub: &str, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: hub.to_string(),
        cache: cache.to_path_buf(),
        token: Some("secret".into()),
        revision: None,
        offline: false,
        certificates: None,
        attempts: 3,
        retry_delay: Duration::from_millis(1),
        progress: None,
    }
}

fn count(log: &Mutex<Vec<Request>>) -> usize {
    log.lock().unwrap().len()
}

fn text(result: Result<PathBuf>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_model_is_downloaded_once_and_the_token_stays_with_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(&small_model(), Faults::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let mut options = options(&hub.url, dir.path());
    options.progress =
        Some(Arc::new(move |p| told.lock().unwrap().push((p.file.to_string(), p.done, p.total))));
    let folder = resolve("lab/tiny", &options).unwrap();
    assert_eq!(folder, dir.path().join("models--lab--tiny/snapshots").join(COMMIT));
    assert_eq!(fs::read(folder.join(WEIGHTS_FILE)).unwrap(), large());
    assert_eq!(fs::read(folder.join("tokenizer.json")).unwrap(), b"{\"a\":1}");
    assert!(!folder.join("README.md").exists());
    assert_eq!(fs::read_to_string(dir.path().join("models--lab--tiny/refs/main")).unwrap(), COMMIT);
    assert!(dir.path().join("models--lab--tiny/blobs").join(hex_sha256(&large())).exists());
    assert!(seen.lock().unwrap().contains(&(WEIGHTS_FILE.into(), 300_000, Some(300_000))));
    for r in hub.log.lock().unwrap().iter() {
        assert_eq!(r.headers["authorization"], "Bearer secret", "{}", r.path);
    }
    assert!(hub.storage.lock().unwrap().iter().all(|r| !r.headers.contains_key("authorization")));
    assert!(hub.storage.lock().unwrap().iter().all(|r| r.method == "GET"));

    // Again: one question for the commit. By commit or offline: none.
    let before = count(&hub.log);
    assert_eq!(resolve("lab/tiny", &options).unwrap(), folder);
    assert_eq!(count(&hub.log), before + 1);
    let by_commit = HubOptions { revision: Some(COMMIT.into()), ..options.clone() };
    assert_eq!(resolve("lab/tiny", &by_commit).unwrap(), folder);
    let offline = HubOptions { offline: true, endpoint: "http://127.0.0.1:9".into(), ..options.clone() };
    assert_eq!(resolve("lab/tiny", &offline).unwrap(), folder);
    assert_eq!(count(&hub.log), before + 1);

    // The branch moved: a new snapshot of its own, with the content that is there already linked, not fetched.
    *hub.commit.lock().unwrap() = NEXT;
    let fetched = count(&hub.storage);
    let newer = resolve("lab/tiny", &options).unwrap();
    assert!(newer.ends_with(NEXT) && newer.join(WEIGHTS_FILE).exists() && folder.join(WEIGHTS_FILE).exists());
    assert_eq!(count(&hub.storage), fetched);
    assert_eq!(resolve("lab/tiny", &offline).unwrap(), newer);
}

#[test]
fn shards_follow_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let index =
        br#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-1.safetensors"}}"#.to_vec();
    let files = [
        ("config.json", b"{}".to_vec()),
        (INDEX_FILE, index),
        ("m-1.safetensors", vec![1; 100]),
        ("m-2.safetensors", vec![2; 200]),
        ("other.safetensors", vec![3; 300]),
    ];
    let server = hub(&files, Faults::default());
    let mut o = options(&server.url, dir.path());
    o.revision = Some("refs/pr/1".into());
    let folder = resolve("lab/tiny", &o).unwrap();
    assert_eq!(fs::read(folder.join("m-2.safetensors")).unwrap(), [2; 200]);
    assert!(folder.join("m-1.safetensors").exists() && !folder.join("other.safetensors").exists());
    assert!(dir.path().join("models--lab--tiny/refs/refs/pr/1").exists());
    fs::remove_file(folder.join("m-2.safetensors")).unwrap();
    let offline = HubOptions { offline: true, ..o };
    assert!(text(resolve("lab/tiny", &offline)).contains("m-2.safetensors is missing"));

    for bad in ["../../x.safetensors", "/etc/passwd", "a/b", "gone.safetensors"] {
        let dir = tempfile::tempdir().unwrap();
        let index = format!("{{\"weight_map\":{{\"a\":\"{bad}\"}}}}").into_bytes();
        let files = [("config.json", b"{}".to_vec()), (INDEX_FILE, index)];
        let server = hub(&files, Faults::default());
        let e = text(resolve("lab/tiny", &options(&server.url, dir.path())));
        assert!(e.contains(INDEX_FILE) && e.contains(bad), "{e}");
        assert!(!dir.path().join("models--lab--tiny/refs/main").exists());
    }
}

#[test]
fn broken_downloads_continue_where_they_broke_off() {
    let dir = tempfile::tempdir().unwrap();
    // Breaks more often than `attempts`, but each time it got further.
    let faults = Faults { cuts: Mutex::new(vec![50_000; 5]), ..Default::default() };
    let server = hub(&small_model(), faults);
    let folder = resolve("lab/tiny", &options(&server.url, dir.path())).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS_FILE)).unwrap(), large());
    let log = server.storage.lock().unwrap();
    let ranges: Vec<_> = log.iter().map(|r| r.headers.get("range").cloned().unwrap_or_default()).collect();
    assert_eq!(ranges[..2], ["", "bytes=50000-"]);
    assert_eq!(ranges.last().unwrap(), "bytes=250000-");
}

#[test]
fn a_later_run_continues_an_earlier_one_and_a_whole_part_is_only_checked() {
    for (have, requests) in [(120_000, 1), (300_000, 0), (400_000, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let server = hub(&small_model(), Faults::default());
        let blobs = dir.path().join("models--lab--tiny/blobs");
        fs::create_dir_all(&blobs).unwrap();
        let mut part = large();
        part.resize(have, 0);
        fs::write(blobs.join(format!("{}.part", hex_sha256(&large()))), part).unwrap();
        let folder = resolve("lab/tiny", &options(&server.url, dir.path())).unwrap();
        assert_eq!(fs::read(folder.join(WEIGHTS_FILE)).unwrap(), large());
        assert_eq!(count(&server.storage), requests, "{have}");
    }
}

#[test]
fn servers_without_ranges_and_wrong_bytes_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults { cuts: Mutex::new(vec![1000]), ignore_ranges: true, ..Default::default() };
    let server = hub(&small_model(), faults);
    let folder = resolve("lab/tiny", &options(&server.url, dir.path())).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS_FILE)).unwrap(), large());

    let dir = tempfile::tempdir().unwrap();
    let server = hub(&small_model(), Faults { corrupt: Mutex::new(1), ..Default::default() });
    let folder = resolve("lab/tiny", &options(&server.url, dir.path())).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS_FILE)).unwrap(), large());

    let dir = tempfile::tempdir().unwrap();
    let server = hub(&small_model(), Faults { corrupt: Mutex::new(99), ..Default::default() });
    let e = text(resolve("lab/tiny", &options(&server.url, dir.path())));
    assert!(e.contains("SHA-256") && e.contains("3 attempts"), "{e}");
    let blobs = fs::read_dir(dir.path().join("models--lab--tiny/blobs")).unwrap();
    assert!(blobs.map(|e| e.unwrap()).all(|e| e.file_name().to_str() != Some(&hex_sha256(&large()))));
}

#[test]
fn busy_and_dead_hubs_are_retried_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let server = hub(&small_model(), Faults { busy: Mutex::new(2), ..Default::default() });
    let mut o = options(&server.url, dir.path());
    resolve("lab/tiny", &o).unwrap();
    // A port that nobody listens on: the cache is not used silently, but named.
    o.endpoint = "http://127.0.0.1:1".into();
    let e = resolve("lab/tiny", &o).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Runtime);
    let e = e.to_string();
    assert!(e.contains("127.0.0.1:1") && e.contains("3 attempts") && e.contains("HF_HUB_OFFLINE=1"), "{e}");
    o.cache = dir.path().join("empty");
    let e = text(resolve("lab/tiny", &o));
    assert!(!e.contains("HF_HUB_OFFLINE"), "{e}");
}

#[test]
fn what_is_not_there_is_named_with_what_was_tried() {
    let dir = tempfile::tempdir().unwrap();
    let server = hub(&small_model(), Faults::default());
    let o = options(&server.url, dir.path());
    let e = resolve("lab/other", &o).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Usage);
    let e = e.to_string();
    assert!(e.contains("lab/other: there is no such folder, and on http://127") && e.contains("401"), "{e}");
    let wrong = HubOptions { revision: Some("v9".into()), ..o.clone() };
    let e = text(resolve("lab/tiny", &wrong));
    assert!(e.contains("revision v9 was not found (Invalid rev id)"), "{e}");
    let offline = HubOptions { offline: true, ..o.clone() };
    let e = text(resolve("lab/tiny", &offline));
    assert!(e.contains("offline") && e.contains("has no snapshot of revision main"), "{e}");
    for id in ["nothing", "a/b/c", "../x/y", "lab/ti ny", "lab/..", "/abs/path", "lab/a--b", "http://x/y", ""]
    {
        let before = count(&server.log);
        let e = text(resolve(id, &o));
        assert!(e.contains("no such folder") && e.contains("not a hub id"), "{id}: {e}");
        assert_eq!(count(&server.log), before);
    }
    for revision in ["", "../x", "a b", "a//b", "/a", "x?y", ".hidden"] {
        let e = text(resolve("lab/tiny", &HubOptions { revision: Some(revision.into()), ..o.clone() }));
        assert!(e.starts_with("revision:"), "{e}");
    }
    let local = dir.path().to_str().unwrap();
    assert_eq!(resolve(local, &o).unwrap(), dir.path());
    assert!(
        text(resolve(local, &HubOptions { revision: Some("v1".into()), ..o.clone() }))
            .contains("local folder")
    );
    let file = dir.path().join("f");
    fs::write(&file, b"").unwrap();
    assert!(text(resolve(file.to_str().unwrap(), &o)).contains("is a file"));
}

#[test]
fn repositories_without_a_model_and_hostile_answers_are_errors() {
    let try_files = |files: &[(&'static str, Vec<u8>)], expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        let server = hub(files, Faults::default());
        let e = text(resolve("lab/tiny", &options(&server.url, dir.path())));
        assert!(e.contains(expected), "{e}");
    };
    try_files(&[("a.txt", vec![])], "has no config.json");
    try_files(&[("config.json", vec![]), ("pytorch_model.bin", vec![])], "pickled weights are not read");
    // Listed, but not there.
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults { extra: vec!["tokenizer_config.json", "../../evil"], ..Default::default() };
    let server = hub(&small_model(), faults);
    let e = text(resolve("lab/tiny", &options(&server.url, dir.path())));
    assert!(e.contains("tokenizer_config.json was not found"), "{e}");

    type Answer = fn(&Request) -> Reply;
    let json =
        r#"{"sha":"COMMIT","siblings":[{"rfilename":"config.json"},{"rfilename":"model.safetensors"}]}"#;
    let cases: [(Answer, &str); 7] = [
        (|_| Reply { status: 200, body: b"<html>".to_vec(), ..Default::default() }, "is unusable"),
        (
            |_| Reply {
                status: 200,
                body: br#"{"sha":"../../x","siblings":[]}"#.to_vec(),
                ..Default::default()
            },
            "names the commit \"../../x\"",
        ),
        (|_| Reply { status: 302, ..Default::default() }, "cannot be followed"),
        (
            |r| Reply {
                status: 302,
                headers: vec![("location".into(), r.path.clone())],
                ..Default::default()
            },
            "more than 10 redirects",
        ),
        (
            |_| Reply {
                status: 302,
                headers: vec![("location".into(), "file:///etc/x".into())],
                ..Default::default()
            },
            "cannot be followed",
        ),
        (|_| Reply { status: 400, ..Default::default() }, "unexpected status 400"),
        (
            |r| match r.path.starts_with("/api") {
                true => Reply { status: 200, body: b"API".to_vec(), ..Default::default() },
                false => Reply {
                    status: 200,
                    headers: vec![("etag".into(), "\"../../evil\"".into())],
                    ..Default::default()
                },
            },
            "has the etag \"../../evil\"",
        ),
    ];
    for (answer, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (url, _) = serve(move |r| {
            let mut reply = answer(r);
            if reply.body == b"API" {
                reply.body = json.replace("COMMIT", COMMIT).into_bytes();
            }
            reply
        });
        let e = text(resolve("lab/tiny", &options(&url, dir.path())));
        assert!(e.contains(expected), "{expected:?} in {e:?}");
        assert!(!dir.path().join("evil").exists());
    }
}

#[test]
fn the_environment_is_read_as_python_does() {
    let with = |vars: &[(&str, &str)]| {
        let vars: HashMap<String, String> =
            vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        HubOptions::from_vars(move |name| vars.get(name).cloned())
    };
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "stored\n").unwrap();
    let o = with(&[("HF_HOME", home.path().to_str().unwrap()), ("HF_ENDPOINT", "http://h/")]).unwrap();
    assert_eq!(o.cache, home.path().join("hub"));
    assert_eq!(o.token.as_deref(), Some("stored"));
    assert_eq!((o.endpoint.as_str(), o.offline), ("http://h", false));
    assert!(!format!("{o:?}").contains("stored"));
    let o = with(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c"), ("HF_TOKEN", "t"), ("HF_HUB_OFFLINE", "ON")])
        .unwrap();
    assert_eq!((o.cache.to_str(), o.token.as_deref(), o.offline), (Some("/c"), Some("t"), true));
    assert_eq!(o.endpoint, "https://huggingface.co");
    let o = with(&[("XDG_CACHE_HOME", "/x"), ("HF_HUB_OFFLINE", "0")]).unwrap();
    assert_eq!((o.cache.to_str(), o.offline), (Some("/x/huggingface/hub"), false));
    assert!(with(&[("HF_TOKEN", "a\nb")]).unwrap_err().to_string().starts_with("HF_TOKEN"));

    let dir = tempfile::tempdir().unwrap();
    for endpoint in ["ftp://x", "nonsense", ""] {
        let e = text(resolve("lab/tiny", &options(endpoint, dir.path())));
        assert!(e.starts_with("HF_ENDPOINT"), "{e}");
    }
    let pem = dir.path().join("ca.pem");
    fs::write(&pem, "nothing").unwrap();
    let o = HubOptions { certificates: Some(pem), ..options("https://127.0.0.1:1", dir.path()) };
    assert!(text(resolve("lab/tiny", &o)).contains("ca.pem: holds no certificates"));
}

#[test]
#[ignore = "needs the network"]
fn https_works_with_the_certificates_of_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let o = HubOptions {
        endpoint: "https://index.crates.io".into(),
        cache: dir.path().to_path_buf(),
        ..HubOptions::from_env().unwrap()
    };
    let e = text(resolve("lab/tiny", &HubOptions { token: None, ..o }));
    assert!(e.contains("was not found") || e.contains("was refused"), "{e}");
}
