//! The options that completions and chat share, and how a request becomes jobs.

use std::time::Instant;

use axum::http::StatusCode;
use flashlin::sample::SamplingParams;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{
    ApiError, App,
    fields::{Fields, wrong},
};
use crate::engine::{Adjust, Event, Job};

/// How many of the likeliest tokens can be reported.
pub const MOST_TOP_LOGPROBS: usize = 20;
/// Stop strings of a request, and bytes of one.
const MOST_STOPS: usize = 32;
const STOP_BYTES: usize = 512;

/// What a request asks for besides its prompt.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Continuations of each prompt.
    pub n: usize,
    /// Tokens of each; None: as many as fit.
    pub max_tokens: Option<usize>,
    /// How many of the likeliest tokens to report; None reports nothing.
    pub logprobs: Option<usize>,
    /// Repeat the prompt before its continuation.
    pub echo: bool,
    /// Answer as it comes.
    pub stream: bool,
    /// At the end of a stream, say what was used.
    pub usage: bool,
    sampling: SamplingParams,
    adjust: Adjust,
    stop: Vec<String>,
    ignore_eos: bool,
}

type Result<T> = std::result::Result<T, ApiError>;

impl Generation {
    /// Reads the options that both kinds of requests have. The rest is left to the caller.
    pub fn read(f: &mut Fields, app: &App) -> Result<Generation> {
        app.check_model(f.text("model")?)?;
        let d = &app.defaults;
        let seed = match f.integer("seed", i64::MIN, i64::MAX)? {
            Some(seed) => seed as u64,
            None => random()?,
        };
        // Without a word of the model's folder, OpenAI's defaults.
        let own = d.sampling != SamplingParams::default();
        let base =
            if own { d.sampling.clone() } else { SamplingParams { temperature: 1.0, ..d.sampling.clone() } };
        let top_k = f.integer("top_k", -1, i64::from(u32::MAX))?.map(|k| k.max(0) as usize);
        let sampling = SamplingParams {
            temperature: f.number("temperature", 0.0, 100.0)?.unwrap_or(base.temperature),
            top_p: f.number("top_p", 0.0, 1.0)?.unwrap_or(base.top_p),
            top_k: top_k.unwrap_or(base.top_k),
            min_p: f.number("min_p", 0.0, 1.0)?.unwrap_or(base.min_p),
            repetition_penalty: f
                .number("repetition_penalty", 0.01, 100.0)?
                .unwrap_or(base.repetition_penalty),
            seed,
        };
        let adjust = Adjust {
            bias: read_bias(f, app.tokenizer.vocab_size())?,
            frequency: f.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            presence: f.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        };
        let mut stop = d.stop.clone();
        stop.extend(read_stop(f)?);
        let stream = f.flag("stream")?;
        let usage = read_stream_options(f, stream)?;
        // Says who asks: nothing to do with it here.
        f.text("user")?;
        Ok(Generation {
            n: f.count("n", 1, app.engine.options().slots)?.unwrap_or(1),
            max_tokens: None,
            logprobs: None,
            echo: false,
            stream,
            usage,
            sampling,
            adjust,
            stop,
            ignore_eos: f.flag("ignore_eos")?,
        })
    }

    /// Submits a job for each prompt; events of all come by the receiver.
    pub fn submit(&self, app: &App, prompts: &[Vec<u32>]) -> Result<UnboundedReceiver<Event>> {
        let sequences = prompts.len() * self.n;
        if sequences > app.engine.most() {
            let message = format!(
                "A request may have at most {} prompts times n; this one has {sequences}.",
                app.engine.most()
            );
            return Err(ApiError::param("prompt", message));
        }
        let limits = prompts.iter().map(|p| self.limit(app, p)).collect::<Result<Vec<_>>>()?;
        let Some(mut ticket) = app.engine.ticket(sequences) else {
            app.metrics.refused.inc();
            let message = format!(
                "The server's queue of {} sequences is full; please try again later.",
                app.engine.most()
            );
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
                .code("queue_full")
                .retry_after(app.wait()));
        };
        let (events, inbox) = unbounded_channel();
        let since = Instant::now();
        for (i, (prompt, max_tokens)) in prompts.iter().zip(limits).enumerate() {
            let job = Job {
                prompt: prompt.clone(),
                n: self.n,
                first: i * self.n,
                sampling: self.sampling.clone(),
                adjust: self.adjust.clone(),
                max_tokens,
                stop: self.stop.clone(),
                eos: if self.ignore_eos { Vec::new() } else { app.eos.clone() },
                logprobs: self.logprobs,
                prompt_logprobs: self.echo && self.logprobs.is_some(),
                deadline: since + app.options.timeout,
                since,
                events: events.clone(),
                ticket: ticket.split(self.n),
            };
            if !app.engine.submit(job) {
                return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "The engine has stopped."));
            }
        }
        Ok(inbox)
    }

    /// Tokens that may follow a prompt.
    fn limit(&self, app: &App, prompt: &[u32]) -> Result<usize> {
        let (most, context, n) = (app.options.max_tokens, app.context, prompt.len());
        let too_long = |asked: String| {
            let message =
                format!("This model's maximum context length is {context} tokens. However, {asked}.");
            ApiError::param("prompt", message).code("context_length_exceeded")
        };
        if prompt.is_empty() {
            return Err(ApiError::param("prompt", "A prompt must have at least one token."));
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= app.vocab) {
            return Err(ApiError::param(
                "prompt",
                format!("Token {id} is not in the model's vocabulary of {}.", app.vocab),
            ));
        }
        if n > context {
            return Err(too_long(format!("the prompt has {n}")));
        }
        match self.max_tokens {
            None => Ok(most.min(context - n)),
            Some(m) if m > most => Err(ApiError::param(
                "max_tokens",
                format!("This server gives at most {most} tokens a request; {m} were asked for."),
            )),
            Some(m) if n + m > context => {
                Err(too_long(format!("{} were requested ({n} in the prompt, {m} to generate)", n + m)))
            }
            Some(m) => Ok(m),
        }
    }
}

/// A seed nobody can guess, for requests that bring none.
fn random() -> Result<u64> {
    getrandom::u64()
        .map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("no random numbers: {e}")))
}

fn read_stop(f: &mut Fields) -> Result<Vec<String>> {
    let Some(v) = f.take("stop") else { return Ok(Vec::new()) };
    let bad = || {
        wrong(
            "stop",
            &v,
            &format!("a string or up to {MOST_STOPS}, none empty, none above {STOP_BYTES} bytes"),
        )
    };
    let all = match &v {
        Value::String(one) => vec![one.clone()],
        Value::Array(list) => {
            let text = |s: &Value| s.as_str().map(String::from);
            list.iter().map(text).collect::<Option<Vec<_>>>().ok_or_else(bad)?
        }
        _ => return Err(bad()),
    };
    let fits = |s: &String| !s.is_empty() && s.len() <= STOP_BYTES;
    if all.len() > MOST_STOPS || !all.iter().all(fits) {
        return Err(bad());
    }
    Ok(all)
}

fn read_bias(f: &mut Fields, vocab: usize) -> Result<Vec<(u32, f32)>> {
    let Some(v) = f.take("logit_bias") else { return Ok(Vec::new()) };
    let bad = || {
        wrong(
            "logit_bias",
            &v,
            &format!("an object of token ids below {vocab} with numbers from -100 to 100"),
        )
    };
    let Value::Object(map) = &v else { return Err(bad()) };
    let one = |(id, x): (&String, &Value)| {
        let id = id.parse::<u32>().ok().filter(|&id| (id as usize) < vocab)?;
        let x = x.as_f64().filter(|x| (-100.0..=100.0).contains(x))?;
        Some((id, x as f32))
    };
    map.iter().map(one).collect::<Option<Vec<_>>>().ok_or_else(bad)
}

fn read_stream_options(f: &mut Fields, stream: bool) -> Result<bool> {
    let Some(v) = f.take("stream_options") else { return Ok(false) };
    let Value::Object(map) = v else { return Err(wrong("stream_options", &v, "an object")) };
    if !stream {
        return Err(ApiError::param("stream_options", "'stream_options' needs 'stream': true."));
    }
    let mut inner = Fields::of(map);
    let usage = inner.flag("include_usage")?;
    inner.only("include_obfuscation", &[Value::Bool(false)])?;
    inner.finish()?;
    Ok(usage)
}
