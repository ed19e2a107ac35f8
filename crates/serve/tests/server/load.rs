//! Many at once: nobody notices the others, and what is left behind is nothing.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use flashlin_serve::load::{LoadOptions, run};
use serde_json::{Value, json};

use super::support::*;

/// Sampled, so that the least difference of a logit would show sooner or later; log-probabilities show it at once.
fn probe(i: u64) -> Value {
    let prompt: String = (0..40 + 13 * i).map(|c| char::from(b'a' + (c * (i + 3) % 26) as u8)).collect();
    json!({"prompt": prompt, "max_tokens": 25, "temperature": 1, "seed": i, "logprobs": 3, "echo": i.is_multiple_of(2)})
}

#[test]
fn tokens_are_equal_alone_and_under_load() {
    for keys in kinds() {
        let s = start(keys, |o| o.engine.slots = 20);
        let alone: Vec<Value> = (0..4).map(|i| s.complete(&probe(i))["choices"].clone()).collect();
        std::thread::scope(|scope| {
            let s = &s;
            for client in 0..17u64 {
                scope.spawn(move || {
                    for j in 0..3 {
                        let n = 1 + (client * 7 + j * 5) % 90;
                        let body = json!({"prompt": "x".repeat(n as usize), "max_tokens": 5 + n, "temperature": 1.5, "seed": n, "ignore_eos": true});
                        s.complete(&body);
                    }
                });
            }
            for i in 0..4 {
                let alone = &alone;
                scope.spawn(move || assert_eq!(s.complete(&probe(i))["choices"], alone[i as usize]));
            }
        });
        let rows = s.metric("flashlin_step_rows_sum") / s.metric("flashlin_step_rows_count");
        assert!(rows > 3.0, "the requests hardly met: {rows} rows a step");
    }
}

#[test]
fn a_step_is_one_call_for_all_and_a_prompt_is_read_in_chunks() {
    let s = start(json!({}), |_| {});
    s.complete(&json!({"prompt": "p".repeat(99), "n": 6, "max_tokens": 11, "ignore_eos": true}));
    // The first tokens come from the prompt's logits, the other ten from ten calls.
    assert_eq!(s.metric("flashlin_model_calls_total{kind=\"decode\"}"), 10.0);
    assert_eq!(s.metric("flashlin_tokens_total{kind=\"generated\"}"), 66.0);
    assert_eq!(s.metric("flashlin_model_calls_total{kind=\"prompt\"}"), 4.0);
    assert_eq!(s.metric("flashlin_tokens_total{kind=\"prompt\"}"), 99.0);
}

#[test]
fn stored_beginnings_change_nothing_but_the_work() {
    for keys in kinds() {
        let (with, without) = (start(keys.clone(), |o| o.engine.prefix_bytes = 4 << 20), start(keys, |_| {}));
        let system = "You are a careful assistant. ".repeat(5);
        for (i, question) in ["Why?", "Why not? Tell me all about it, please.", "Why?"].iter().enumerate() {
            let body = json!({"prompt": format!("{system}{question}"), "max_tokens": 15, "temperature": 1, "seed": 4, "logprobs": 2});
            assert_eq!(with.complete(&body)["choices"], without.complete(&body)["choices"], "question {i}");
        }
        assert_eq!(with.metric("flashlin_prefix_hits_total"), 2.0);
        assert!(with.metric("flashlin_tokens_total{kind=\"cached\"}") >= 256.0);
        assert!(with.metric("flashlin_prefix_bytes") <= f64::from(4 << 20));
        assert_eq!(without.metric("flashlin_prefix_states"), 0.0);
    }
}

/// A stream that was begun and read a little.
fn begun(s: &Running, tokens: usize) -> TcpStream {
    let body =
        json!({"prompt": "Tell", "max_tokens": tokens, "stream": true, "ignore_eos": true, "temperature": 1})
            .to_string();
    let mut stream = TcpStream::connect(s.address).unwrap();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut some = [0; 512];
    stream.read_exact(&mut some).unwrap();
    assert!(some.starts_with(b"HTTP/1.1 200"));
    stream
}

#[test]
fn a_client_that_goes_away_frees_its_slot() {
    let s = start(json!({}), |o| {
        o.engine.slots = 2;
        o.limits.max_tokens = 100_000;
    });
    let streams = [begun(&s, 100_000), begun(&s, 100_000)];
    s.until("flashlin_active_sequences", 2.0);
    // One more waits, and its client leaves while it does.
    let body = json!({"prompt": "q"}).to_string();
    let mut waiting = TcpStream::connect(s.address).unwrap();
    write!(waiting, "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    s.until("flashlin_waiting_requests", 1.0);
    drop(waiting);
    s.until("flashlin_waiting_requests", 0.0);
    drop(streams);
    s.until("flashlin_active_sequences", 0.0);
    assert!(s.metric("flashlin_tokens_total{kind=\"generated\"}") < 100_000.0);
    s.complete(&json!({"prompt": "still here", "n": 2}));
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let s = start(json!({}), |o| {
        (o.engine.slots, o.engine.queue) = (1, 1);
        o.limits.max_tokens = 100_000;
    });
    let (first, body) = (begun(&s, 100_000), json!({"prompt": "q", "max_tokens": 3}));
    std::thread::scope(|scope| {
        let second = scope.spawn(|| s.complete(&body));
        s.until("flashlin_waiting_requests", 1.0);
        let r = s.send("/v1/completions", &body);
        assert_eq!(r.status().as_u16(), 429);
        let seconds: u64 = r.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds));
        drop(first);
        assert_eq!(second.join().unwrap()["usage"]["completion_tokens"], 3);
    });
    assert_eq!(s.post("/v1/completions", &json!({"prompt": ["a", "b", "c"]})).0, 400);
    assert_eq!(s.metric("flashlin_refused_requests_total"), 1.0);
}

#[test]
fn a_signal_to_stop_lets_streams_finish() {
    let s = start(json!({}), |_| {});
    let mut stream = begun(&s, 1500);
    s.stop();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]") && rest.contains("\"finish_reason\":\"length\""));
    assert!(TcpStream::connect(s.address).is_err());
    s.end().unwrap();
}

#[test]
fn what_takes_too_long_is_ended() {
    let s = start(json!({}), |o| {
        o.limits.timeout = Duration::from_millis(300);
        o.limits.max_tokens = 1_000_000;
        o.context = Some(2_000_000);
    });
    let mut body = json!({"prompt": "q", "max_tokens": 1_000_000, "ignore_eos": true});
    let (status, e) = s.post("/v1/completions", &body);
    assert_eq!((status, &e["error"]["code"]), (504, &json!("timeout")));
    body["stream"] = true.into();
    let mut r = s.send("/v1/completions", &body);
    let text = r.body_mut().read_to_string().unwrap();
    assert!(text.contains("\"code\":\"timeout\"") && !text.contains("[DONE]"));
    s.until("flashlin_active_sequences", 0.0);
}

#[test]
fn the_load_test_sees_everything_answered_and_memory_flat() {
    let s = start(json!({"num_hidden_layers": 1}), |o| {
        o.engine.slots = 16;
        o.engine.prefix_bytes = 1 << 20;
    });
    let options = LoadOptions {
        address: s.address,
        key: None,
        clients: 8,
        requests: 300,
        time: Duration::from_secs(60),
        prompt_tokens: 12,
        new_tokens: 6,
    };
    let begin = Instant::now();
    run(&options).unwrap();
    let report = run(&options).unwrap();
    assert_eq!((report.requests, report.failed, report.failure), (300, 0, None));
    assert!(report.seconds <= begin.elapsed().as_secs_f64() && report.tokens_per_second > 0.0);
    assert!(report.first_token_ms[0] <= report.first_token_ms[1]);
    if let [Some(before), Some(after)] = report.resident_bytes {
        assert!(after < before + (16 << 20), "{before} {after}");
    }
    assert_eq!(s.metric("flashlin_active_sequences"), 0.0);
}
