//! What the server counts, in Prometheus' text format.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// A counter of seconds.
type Seconds = Counter<f64, AtomicU64>;

/// What kind of tokens or calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    path: &'static str,
    status: u16,
}

/// The counters, shared by the engine and the handlers.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    answers: Family<Answer, Counter>,
    calls: Family<Kind, Counter>,
    tokens: Family<Kind, Counter>,
    /// Sequences in slots.
    pub active: Gauge,
    /// Requests whose prompts are being read.
    pub reading: Gauge,
    /// Requests that wait for a slot.
    pub waiting: Gauge,
    /// Open connections.
    pub connections: Gauge,
    /// Sequences that ended because their client went away.
    pub cancelled: Counter,
    /// Requests refused because the queue was full.
    pub refused: Counter,
    /// Sequences a step.
    pub step_rows: Histogram,
    /// From submission to the first token.
    pub first_token: Histogram,
    /// Seconds in decode calls of the model.
    pub decode_seconds: Seconds,
    /// Seconds of the engine's thread in rounds with a decode call, besides calls of the model.
    pub overhead_seconds: Seconds,
    /// Requests that began from a stored state.
    pub prefix_hits: Counter,
    /// Those that did not.
    pub prefix_misses: Counter,
    /// Stored states that made room for others.
    pub prefix_evictions: Counter,
    /// Bytes of stored states.
    pub prefix_bytes: Gauge,
    /// Stored states.
    pub prefix_states: Gauge,
    resident: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// All zero.
    pub fn new() -> Metrics {
        let mut m = Metrics {
            registry: Registry::with_prefix("flashlin"),
            answers: Family::default(),
            calls: Family::default(),
            tokens: Family::default(),
            active: Gauge::default(),
            reading: Gauge::default(),
            waiting: Gauge::default(),
            connections: Gauge::default(),
            cancelled: Counter::default(),
            refused: Counter::default(),
            step_rows: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
            first_token: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            decode_seconds: Seconds::default(),
            overhead_seconds: Seconds::default(),
            prefix_hits: Counter::default(),
            prefix_misses: Counter::default(),
            prefix_evictions: Counter::default(),
            prefix_bytes: Gauge::default(),
            prefix_states: Gauge::default(),
            resident: Gauge::default(),
        };
        let r = &mut m.registry;
        r.register("answers", "HTTP answers by path and status", m.answers.clone());
        r.register("model_calls", "Calls of the model: decode steps all slots at once", m.calls.clone());
        r.register(
            "tokens",
            "Tokens read from prompts, taken from stored states, generated",
            m.tokens.clone(),
        );
        r.register("active_sequences", "Sequences in slots", m.active.clone());
        r.register("reading_requests", "Requests whose prompts are being read", m.reading.clone());
        r.register("waiting_requests", "Requests that wait for a slot", m.waiting.clone());
        r.register("connections", "Open connections", m.connections.clone());
        r.register("cancelled_sequences", "Sequences whose client went away", m.cancelled.clone());
        r.register("refused_requests", "Requests refused because the queue was full", m.refused.clone());
        r.register("step_rows", "Sequences in a decode step", m.step_rows.clone());
        let seconds = Unit::Seconds;
        r.register_with_unit(
            "time_to_first_token",
            "From submission",
            seconds.clone(),
            m.first_token.clone(),
        );
        r.register_with_unit("decode", "Time in decode calls", seconds.clone(), m.decode_seconds.clone());
        let what = "Time of the engine besides model calls, in rounds with a decode call";
        r.register_with_unit("decode_overhead", what, seconds, m.overhead_seconds.clone());
        r.register("prefix_hits", "Requests that began from a stored state", m.prefix_hits.clone());
        r.register("prefix_misses", "Requests that did not", m.prefix_misses.clone());
        r.register("prefix_evictions", "Stored states that made room", m.prefix_evictions.clone());
        r.register_with_unit("prefix", "Size of stored states", Unit::Bytes, m.prefix_bytes.clone());
        r.register("prefix_states", "Stored states", m.prefix_states.clone());
        r.register_with_unit("resident_memory", "Memory of this process", Unit::Bytes, m.resident.clone());
        m
    }

    /// Calls of the model of a kind: `prompt` or `decode`.
    pub fn calls(&self, kind: &'static str) -> Counter {
        self.calls.get_or_create_owned(&Kind { kind })
    }

    /// Tokens of a kind: `prompt`, `cached` or `generated`.
    pub fn tokens(&self, kind: &'static str) -> Counter {
        self.tokens.get_or_create_owned(&Kind { kind })
    }

    /// Counts an answer. `path` is one of ours, never what a client sent.
    pub fn answered(&self, path: &'static str, status: u16) {
        self.answers.get_or_create(&Answer { path, status }).inc();
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        if let Some(bytes) = resident_bytes() {
            self.resident.set(bytes);
        }
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing into a string does not fail.
            Err(_) => String::new(),
        }
    }
}

/// Memory of this process, where the system tells.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok().map(|kb| kb << 10)
}
