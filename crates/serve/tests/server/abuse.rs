//! Wrong, hostile and slow requests.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use flashlin_serve::Key;
use serde_json::{Value, json};

use super::support::*;

/// What comes back for bytes sent as they are; the connection is closed by the server or after a while.
fn raw(s: &Running, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(s.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // The server may answer and close before it has read everything.
    drop(stream.write_all(bytes));
    let (mut out, mut some) = (Vec::new(), [0; 4096]);
    while let Ok(n) = stream.read(&mut some) {
        out.extend_from_slice(&some[..n]);
        if n == 0 || out.windows(4).any(|w| w == b"\r\n\r\n") {
            break;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn wrong_requests_are_told_what_is_wrong() {
    let s = start(json!({}), |o| o.context = Some(64));
    let long = "x".repeat(65);
    let wrong = [
        (json!({"model": "gpt-4", "prompt": "a"}), 404, "model", "does not exist"),
        (json!({}), 400, "prompt", "missing"),
        (json!({"prompt": 5}), 400, "prompt", "expected"),
        (json!({"prompt": []}), 400, "prompt", "expected"),
        (json!({"prompt": [1, "a"]}), 400, "prompt", "expected"),
        (json!({"prompt": [[1], []]}), 400, "prompt", "expected"),
        (json!({"prompt": [-1]}), 400, "prompt", "expected"),
        (json!({"prompt": [100_000]}), 400, "prompt", "vocabulary"),
        (json!({"prompt": long}), 400, "prompt", "context"),
        (json!({"prompt": "a", "max_tokens": 64}), 400, "prompt", "context"),
        (json!({"prompt": "a", "max_tokens": -1}), 400, "max_tokens", "integer"),
        (json!({"prompt": "a", "max_tokens": 5000}), 400, "max_tokens", "at most 4096"),
        (json!({"prompt": "a", "max_tokens": 1e300}), 400, "max_tokens", "integer"),
        (json!({"prompt": "a", "temperature": -0.1}), 400, "temperature", "number"),
        (json!({"prompt": "a", "temperature": "hot"}), 400, "temperature", "number"),
        (json!({"prompt": "a", "top_p": 1.1}), 400, "top_p", "number"),
        (json!({"prompt": "a", "n": 0}), 400, "n", "integer"),
        (json!({"prompt": "a", "n": 7}), 400, "n", "from 1 to 6"),
        (json!({"prompt": "a", "logprobs": 21}), 400, "logprobs", "integer"),
        (json!({"prompt": "a", "stop": [""]}), 400, "stop", "none empty"),
        (json!({"prompt": "a", "stop": 3}), 400, "stop", "string"),
        (json!({"prompt": "a", "logit_bias": {"x": 1}}), 400, "logit_bias", "token ids"),
        (json!({"prompt": "a", "best_of": 3}), 400, "best_of", "not supported"),
        (json!({"prompt": "a", "suffix": "b"}), 400, "suffix", "not supported"),
        (json!({"prompt": "a", "stream_options": {"include_usage": true}}), 400, "stream_options", "stream"),
        (json!({"prompt": "a", "no_such_thing": 1}), 400, "no_such_thing", "Unrecognized"),
    ];
    for (body, status, param, word) in wrong {
        let (got, e) = s.post("/v1/completions", &body);
        let message = e["error"]["message"].as_str().unwrap_or_default();
        assert_eq!((got, &e["error"]["param"]), (status, &json!(param)), "{body}: {e}");
        assert!(message.contains(word) && e["error"]["type"] == "invalid_request_error", "{body}: {e}");
    }
    let chat = [
        (json!({"messages": []}), "1 to"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "role"),
        (json!({"messages": [{"role": "user"}]}), "content"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "parts"),
        (json!({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}), "not supported"),
        (json!({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}), "logprobs"),
        (
            json!({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}}),
            "not supported",
        ),
    ];
    for (body, word) in chat {
        let (got, e) = s.post("/v1/chat/completions", &body);
        assert!(got == 400 && e["error"]["message"].as_str().unwrap().contains(word), "{body}: {e}");
    }
    // What clients send along without meaning anything by it.
    s.complete(
        &json!({"prompt": "a", "best_of": 1, "suffix": null, "user": "me", "logit_bias": {}, "stop": null}),
    );
}

#[test]
fn wrong_http_is_answered_and_no_file_is_read() {
    let s = start(json!({}), |o| o.limits.body_bytes = 2000);
    let post = |kind: &str, body: &str| {
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        raw(&s, format!("{head}{body}").as_bytes())
    };
    assert!(post("text/plain", "{}").starts_with("HTTP/1.1 415"));
    assert!(post("application/json", "{\"prompt\": ").starts_with("HTTP/1.1 400"));
    assert!(post("application/json", "[1]").starts_with("HTTP/1.1 400"));
    assert!(post("application/json", &"[".repeat(1500)).starts_with("HTTP/1.1 400"));
    assert!(
        post("application/json", &format!("{{\"prompt\": \"{}\"}}", "x".repeat(3000)))
            .starts_with("HTTP/1.1 413")
    );
    assert!(raw(&s, b"\x16\x03\x01\x02\x00\x01 not http\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert!(
        raw(&s, format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(200_000)).as_bytes())
            .starts_with("HTTP/1.1 4")
    );
    for path in
        ["/etc/passwd", "/v1/models/../../../../etc/passwd", "/v1/models/%2e%2e%2fetc%2fpasswd", "//", "/v1"]
    {
        let (status, text) = s.get(path);
        let e: Value = serde_json::from_str(&text).unwrap();
        assert!(
            status == 404 && e["error"]["message"].is_string() && !text.contains("root:"),
            "{path}: {text}"
        );
    }
    assert_eq!(s.get("/v1/completions").0, 405);
    assert!(
        s.get("/metrics").1.contains("flashlin_answers_total{path=\"/v1/completions\",status=\"413\"} 1")
    );
}

#[test]
fn who_brings_no_key_is_not_served() {
    let s = start(json!({}), |o| o.key = Some(Key::new("k3y").unwrap()));
    let (status, e) = s.post("/v1/completions", &json!({"prompt": "a"}));
    assert_eq!((status, &e["error"]["code"]), (401, &json!("invalid_api_key")));
    for path in ["/v1/models", "/metrics", "/tokenizer_info", "/nothing"] {
        assert_eq!(s.get(path).0, 401, "{path}");
    }
    assert_eq!(s.get("/health").0, 200);
    let mut ok = ureq::get(s.url("/v1/models")).header("authorization", "Bearer k3y").call().unwrap();
    assert!(ok.body_mut().read_to_string().unwrap().contains("tiny"));
}

#[test]
fn slow_and_idle_connections_end_and_do_not_keep_others_out() {
    let s = start(json!({}), |o| {
        o.header_timeout = Duration::from_millis(100);
        o.limits.body_timeout = Duration::from_millis(300);
        o.connections = 100;
    });
    // More than may be open at once: they are let in as others are dropped for saying nothing.
    let idle: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(s.address).unwrap()).collect();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{\"pro";
    assert_eq!(text(&s.complete(&json!({"prompt": "a", "max_tokens": 0}))), "");
    drop(idle);
    assert!(raw(&s, head.as_bytes()).starts_with("HTTP/1.1 408"));
    assert!(!raw(&s, b"GET /health HTTP/1.1\r\nho").starts_with("HTTP/1.1 2"));
    s.until("flashlin_connections", 1.0);
}

#[test]
fn a_reader_that_stops_reading_keeps_neither_slot_nor_connection() {
    let s = start(json!({}), |o| {
        o.stall_timeout = Duration::from_millis(500);
        o.limits.max_tokens = 60_000;
    });
    let body =
        json!({"prompt": "a", "max_tokens": 60_000, "stream": true, "ignore_eos": true, "logprobs": 20})
            .to_string();
    let mut stream = TcpStream::connect(s.address).unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    s.until("flashlin_active_sequences", 1.0);
    // Nothing is read: the write stalls, the connection goes, the slot is free.
    s.until("flashlin_active_sequences", 0.0);
    assert!(s.metric("flashlin_tokens_total{kind=\"generated\"}") < 60_000.0);
    drop(stream);
}
