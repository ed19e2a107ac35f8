//! Small models, a server in a thread, and a client.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use flashlin::{Config, DType, Device, Model, generate::GenerationConfig, tokenizer::Tokenizer};
use flashlin_serve::{ServeOptions, Server};
use serde_json::{Value, json};

/// A conversation as plain text.
pub const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

/// Random weights that are large enough for distinct tokens.
pub fn model(keys: Value) -> Model {
    let mut all = json!({
        "model_type": "gated_deltanet", "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16,
        "intermediate_size": 48, "vocab_size": tokenizer().vocab_size(), "initializer_range": 0.3,
    });
    for (k, v) in keys.as_object().unwrap() {
        all[k] = v.clone();
    }
    let config = Config::from_json(all.as_object().unwrap().clone()).unwrap();
    Model::new(&config, DType::F32, &Device::Cpu, 5).unwrap()
}

/// Models of each kind of state: recurrent with convolutions, with keys and values beside, keys and values alone.
pub fn kinds() -> Vec<Value> {
    let hybrid = json!([{"layers": [1], "num_heads": 4, "num_kv_heads": 2, "window_size": 9}]);
    vec![
        json!({}),
        json!({"attn": hybrid}),
        json!({"model_type": "transformer", "num_heads": 4, "head_dim": null}),
        json!({"model_type": "gla", "head_dim": null}),
    ]
}

pub fn tokenizer() -> Tokenizer {
    Tokenizer::bytes().unwrap()
}

/// A server that runs until it is dropped.
pub struct Running {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<flashlin::Result<()>>>,
}

pub fn options() -> ServeOptions {
    let mut o = ServeOptions::new("tiny");
    o.engine.slots = 6;
    o.engine.chunk = 32;
    o.engine.prefix_bytes = 0;
    o.chat_template = Some(TEMPLATE.into());
    o
}

pub fn start(keys: Value, change: impl FnOnce(&mut ServeOptions)) -> Running {
    let mut o = options();
    change(&mut o);
    let model = model(keys);
    let defaults = GenerationConfig::from_config(model.config());
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), model, tokenizer(), defaults, o).unwrap();
    let address = server.address().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let thread = std::thread::spawn(move || server.run(&flag));
    Running { address, stop, thread: Some(thread) }
}

impl Running {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn agent() -> ureq::Agent {
        let timeout = Some(Duration::from_secs(120));
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(timeout).build().into()
    }

    pub fn send(&self, path: &str, body: &Value) -> ureq::http::Response<ureq::Body> {
        let r = Self::agent().post(self.url(path)).header("content-type", "application/json");
        r.send(body.to_string()).unwrap()
    }

    /// Status and JSON of an answer.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut r = self.send(path, body);
        let text = r.body_mut().read_to_string().unwrap();
        (r.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// A completion that must succeed.
    pub fn complete(&self, body: &Value) -> Value {
        let (status, v) = self.post("/v1/completions", body);
        assert_eq!(status, 200, "{v}");
        v
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let mut r = Self::agent().get(self.url(path)).call().unwrap();
        (r.status().as_u16(), r.body_mut().read_to_string().unwrap())
    }

    /// The events of a stream, `[DONE]` left out but seen.
    pub fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let r = self.send(path, body);
        assert_eq!(r.status().as_u16(), 200);
        assert_eq!(r.headers()["content-type"], "text/event-stream");
        let lines = BufReader::new(r.into_body().into_reader()).lines().map(|l| l.unwrap());
        let mut events: Vec<String> =
            lines.filter_map(|l| l.strip_prefix("data: ").map(String::from)).collect();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|e| serde_json::from_str(e).unwrap()).collect()
    }

    /// A number of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").1;
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |v| v.trim().parse().unwrap())
    }

    /// Waits until a number of `/metrics` is `value`.
    pub fn until(&self, name: &str, value: f64) {
        let begin = Instant::now();
        while self.metric(name) != value {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{name} is {}, not {value}",
                self.metric(name)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to stop; [`Running::end`] waits.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    pub fn end(mut self) -> flashlin::Result<()> {
        self.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

pub fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}
