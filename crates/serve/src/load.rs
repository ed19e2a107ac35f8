//! A load test: clients that stream completions as fast as they come, and what they saw.
//!
//! Policy: bounded in requests and in time, and only against this machine: an address that is not a loopback one is refused.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use flashlin::{Error, Result};
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// What to do.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where the server listens.
    pub address: SocketAddr,
    /// The key to send.
    pub key: Option<String>,
    /// Clients at the same time.
    pub clients: usize,
    /// Requests of all clients together.
    pub requests: usize,
    /// No request begins after this time.
    pub time: Duration,
    /// Tokens of a prompt; prompts differ.
    pub prompt_tokens: usize,
    /// Tokens of an answer.
    pub new_tokens: usize,
}

/// What the clients saw.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    /// Clients at the same time.
    pub clients: usize,
    /// Requests that were answered whole.
    pub requests: usize,
    /// Requests that were not, and what the first of them was told.
    pub failed: usize,
    /// The first failure.
    pub failure: Option<String>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Answers a second.
    pub requests_per_second: f64,
    /// Generated tokens a second.
    pub tokens_per_second: f64,
    /// Milliseconds to the first token: the middle and the 99th of 100.
    pub first_token_ms: [f64; 2],
    /// Milliseconds between one piece of an answer and the next.
    pub between_ms: [f64; 2],
    /// The server's resident memory before and after, in bytes, where it tells.
    pub resident_bytes: [Option<u64>; 2],
    /// The engine's time besides calls of the model, as a share of its time in decode calls, where it tells.
    pub overhead: Option<f64>,
    /// Sequences in a decode call on average, where it tells.
    pub rows_per_step: Option<f64>,
}

/// Runs the test.
///
/// # Errors
/// An address of another machine, and a server that does not answer at all.
pub fn run(options: &LoadOptions) -> Result<LoadReport> {
    if !options.address.ip().is_loopback() {
        let why =
            format!("is {}; a load test only runs against this machine (127.0.0.1 or ::1)", options.address);
        return Err(Error::argument("address", why));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::state(format!("the load test's thread: {e}")))?;
    runtime.block_on(all(options))
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    requests: usize,
    failed: usize,
    failure: Option<String>,
    tokens: u64,
    first: Vec<f64>,
    between: Vec<f64>,
}

async fn all(options: &LoadOptions) -> Result<LoadReport> {
    let before = metrics(options).await?;
    let left = Arc::new(AtomicUsize::new(options.requests));
    let begin = Instant::now();
    let clients: Vec<_> =
        (0..options.clients).map(|_| tokio::spawn(client(options.clone(), left.clone(), begin))).collect();
    let mut sum = Seen::default();
    for client in clients {
        let seen = client.await.map_err(|e| Error::state(format!("a client of the load test: {e}")))?;
        sum.requests += seen.requests;
        sum.failed += seen.failed;
        sum.failure = sum.failure.or(seen.failure);
        sum.tokens += seen.tokens;
        sum.first.extend(seen.first);
        sum.between.extend(seen.between);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let after = metrics(options).await?;
    let grown = |name: &str| Some(value(&after, name)? - value(&before, name)?);
    let share = |a: &str, b: &str| Some(grown(a)? / grown(b).filter(|x| *x > 0.0)?);
    let resident = |text: &str| value(text, "flashlin_resident_memory_bytes").map(|x| x as u64);
    Ok(LoadReport {
        clients: options.clients,
        requests: sum.requests,
        failed: sum.failed,
        failure: sum.failure,
        seconds,
        requests_per_second: sum.requests as f64 / seconds,
        tokens_per_second: sum.tokens as f64 / seconds,
        first_token_ms: percentiles(sum.first),
        between_ms: percentiles(sum.between),
        resident_bytes: [resident(&before), resident(&after)],
        overhead: share("flashlin_decode_overhead_seconds_total", "flashlin_decode_seconds_total"),
        rows_per_step: share("flashlin_step_rows_sum", "flashlin_step_rows_count"),
    })
}

async fn client(options: LoadOptions, left: Arc<AtomicUsize>, begin: Instant) -> Seen {
    let mut seen = Seen::default();
    let mut sender = None;
    while begin.elapsed() < options.time {
        let Ok(number) = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) else {
            break;
        };
        if let Err(why) = request(&options, number, &mut sender, &mut seen).await {
            seen.failed += 1;
            seen.failure.get_or_insert(why);
            sender = None;
        }
    }
    seen
}

type Sender = http1::SendRequest<Full<Bytes>>;

async fn connect(options: &LoadOptions) -> std::result::Result<Sender, String> {
    let stream = TcpStream::connect(options.address).await.map_err(|e| format!("connecting: {e}"))?;
    drop(stream.set_nodelay(true));
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

fn build(
    options: &LoadOptions,
    method: &str,
    path: &str,
    body: String,
) -> std::result::Result<Request<Full<Bytes>>, String> {
    let mut r = Request::builder().method(method).uri(path).header(header::HOST, options.address.to_string());
    if let Some(key) = &options.key {
        r = r.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    r.header(header::CONTENT_TYPE, "application/json").body(Full::new(body.into())).map_err(|e| e.to_string())
}

/// One request, read to its end; the connection is kept for the next.
async fn request(
    options: &LoadOptions,
    number: usize,
    kept: &mut Option<Sender>,
    seen: &mut Seen,
) -> std::result::Result<(), String> {
    let mut sender = match kept.take() {
        Some(sender) if !sender.is_closed() => sender,
        _ => connect(options).await?,
    };
    // Ids that every vocabulary has, other ones for each request.
    let prompt: Vec<usize> =
        (0..options.prompt_tokens.max(1)).map(|i| (number * 31 + i * (7 + number % 11)) % 97).collect();
    let body = json!({
        "prompt": prompt, "max_tokens": options.new_tokens, "temperature": 0, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let begin = Instant::now();
    let sent = sender.send_request(build(options, "POST", "/v1/completions", body.to_string())?).await;
    let response = sent.map_err(|e| format!("sending: {e}"))?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let text = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        return Err(format!("{status}: {}", String::from_utf8_lossy(&text)));
    }
    let (mut text, mut last, mut done) = (String::new(), None, false);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| format!("reading: {e}"))?;
        let Some(data) = frame.data_ref() else { continue };
        let now = Instant::now();
        text.push_str(&String::from_utf8_lossy(data));
        while let Some(end) = text.find("\n\n") {
            let event: String = text.drain(..end + 2).collect();
            let Some(event) = event.strip_prefix("data: ") else { continue };
            if event.trim() == "[DONE]" {
                done = true;
                continue;
            }
            let event: Value = serde_json::from_str(event).map_err(|e| format!("an event: {e}"))?;
            if let Some(error) = event.get("error") {
                return Err(error.to_string());
            }
            seen.tokens += event["usage"]["completion_tokens"].as_u64().unwrap_or(0);
            if event["choices"][0]["text"].as_str().is_some_and(|t| !t.is_empty()) {
                match last.replace(now) {
                    None => seen.first.push(ms(now - begin)),
                    Some(before) => seen.between.push(ms(now - before)),
                }
            }
        }
    }
    if !done {
        return Err("a stream ended without [DONE]".into());
    }
    seen.requests += 1;
    *kept = Some(sender);
    Ok(())
}

/// The text of `/metrics`.
async fn metrics(options: &LoadOptions) -> Result<String> {
    let get = async {
        let mut sender = connect(options).await?;
        let sent = sender.send_request(build(options, "GET", "/metrics", String::new())?).await;
        let response = sent.map_err(|e| e.to_string())?;
        let body = response.into_body().collect().await.map_err(|e| e.to_string())?;
        Ok::<_, String>(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    };
    get.await.map_err(|e| Error::state(format!("of the server at {}: {e}", options.address)))
}

fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn ms(d: Duration) -> f64 {
    1e3 * d.as_secs_f64()
}

/// The middle and the 99th of 100.
fn percentiles(mut all: Vec<f64>) -> [f64; 2] {
    all.sort_unstable_by(f64::total_cmp);
    [0.5, 0.99]
        .map(|p| all.get(((all.len() as f64 - 1.0) * p).round().max(0.0) as usize).copied().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_metrics_are_read() {
        assert_eq!(percentiles((1..=101).map(f64::from).collect()), [51.0, 100.0]);
        assert_eq!(percentiles(vec![]), [0.0, 0.0]);
        assert_eq!(value("# HELP x\nflashlin_x_total 3.5\nflashlin_x 2\n", "flashlin_x"), Some(2.0));
        assert_eq!(value("", "a"), None);
    }

    #[test]
    fn other_machines_are_left_alone() {
        let options = LoadOptions {
            address: "192.0.2.1:80".parse().unwrap(),
            key: None,
            clients: 1,
            requests: 1,
            time: Duration::from_secs(1),
            prompt_tokens: 1,
            new_tokens: 1,
        };
        assert!(run(&options).unwrap_err().to_string().contains("only runs against this machine"));
    }
}
