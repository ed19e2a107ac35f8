//! `flashlin generate`: text from a model.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use clap::Args;
use flashlin::{
    Mode, Model,
    generate::{
        Event, GenerateOptions, Generated, GenerationConfig, Generator, Session, Timings, encode_prompt,
    },
    sample::SamplingParams,
    tokenizer::Tokenizer,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{args::Context, failure::Failure};

/// Generate text; one prompt streams to stdout as it is written
#[derive(Debug, Args)]
pub struct Generate {
    /// Model folder or hub id
    model: String,
    /// What to continue; several prompts are a batch; `-` reads stdin
    #[arg(short, long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// A file of prompts: one a line, or for `.jsonl` one object a line with the field `prompt`
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Tokens to add at most [default: as generation_config.json says, else 128]
    #[arg(short = 'n', long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Do not read generation_config.json: config.json and the options here decide alone
    #[arg(long)]
    ignore_generation_config: bool,
    /// Always the most likely token, whatever generation_config.json says
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    greedy: bool,
    /// Divide the logits by this; 0 is greedy
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Choose among the K most likely tokens; 0 is off
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the most likely tokens that together have this probability; 1 is off
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Choose among tokens at least this fraction as likely as the best; 0 is off
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Make tokens that occurred less likely; 1 is off
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// Seed of the sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Stop where this text would come (may be given several times)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after a token that ends a text
    #[arg(long)]
    ignore_eos: bool,
    /// Print the prompt before its continuation
    #[arg(long)]
    echo: bool,
    /// Print prompt length, generated length and times on stderr at the end
    #[arg(long)]
    stats: bool,
    /// With --json: one line an event, as it comes, instead of one result at the end
    #[arg(long, requires = "json")]
    events: bool,
    /// Save what the model remembers at the end (a safetensors file)
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
    /// Continue from a saved state; prompts are appended to its rows
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,
    /// Form of the recurrences while reading the prompt: auto, chunk or recurrent
    #[arg(long, default_value = "auto", value_parser = |s: &str| s.parse::<Mode>().map_err(|e| e.to_string()))]
    mode: Mode,
    /// Type to compute in: f32, bf16, f16, f64 [default: that of the model]
    #[arg(long)]
    dtype: Option<String>,
    #[command(flatten)]
    device: super::DeviceArgs,
    #[command(flatten)]
    hub: super::HubArgs,
}

impl Generate {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let prompts = self.texts()?;
        self.check_save_state()?;
        let device = self.device.open()?;
        let dtype = self.dtype.as_deref().map(|d| super::parse_dtype("--dtype", d)).transpose()?;
        let dir = self.hub.resolve(&self.model)?;
        let model = Model::load(&dir, dtype, &device)?;
        let tokenizer = Tokenizer::from_dir(&dir)?;
        let defaults = self.defaults(&dir, &model)?;
        let session = self.session(&model, &tokenizer, &defaults, &prompts)?;
        let options = self.options(&defaults, &session)?;
        let mut run = Generator::new(&model, Some(&tokenizer), session, options)?;
        let stream = !ctx.out.json && run.results().len() == 1;
        if stream && self.echo {
            ctx.out.text(prompts.first().map_or("", String::as_str))?;
        }
        for event in &mut run {
            let event = event?;
            if stream {
                ctx.out.text(&event.text)?;
            } else if self.events {
                ctx.out.record(&event_json(&event))?;
            }
        }
        let timings = run.timings();
        let (results, session) = run.finish();
        if stream {
            ctx.out.line("")?;
        } else {
            self.print(ctx, &prompts, &results, timings)?;
        }
        if self.stats {
            statistics(&results, timings);
        }
        match &self.save_state {
            Some(path) => Ok(session.save(path, &model)?),
            None => Ok(()),
        }
    }

    /// What the model's folder says of generation, refused where it asks for more than there is.
    fn defaults(&self, dir: &Path, model: &Model) -> anyhow::Result<GenerationConfig> {
        if self.ignore_generation_config {
            return Ok(GenerationConfig::from_config(model.config()));
        }
        GenerationConfig::load(dir, model.config()).map_err(|e| match e {
            e @ flashlin::Error::Config { .. } => Failure::runtime(e.to_string())
                .hint("change the file, or give --ignore-generation-config")
                .into(),
            other => other.into(),
        })
    }

    /// The prompts from all places.
    fn texts(&self) -> anyhow::Result<Vec<String>> {
        let mut prompts = Vec::new();
        for prompt in &self.prompt {
            if prompt == "-" {
                let mut text = String::new();
                let read = std::io::stdin().read_to_string(&mut text);
                read.map_err(|e| Failure::runtime(format!("reading the prompt from stdin failed: {e}")))?;
                prompts.push(text);
            } else {
                prompts.push(prompt.clone());
            }
        }
        if let Some(path) = &self.prompts {
            prompts.extend(prompts_of(path)?);
        }
        if prompts.is_empty() && self.load_state.is_none() {
            let failure = Failure::usage("there is no prompt");
            return Err(failure.hint("give --prompt TEXT, --prompts FILE or --load-state FILE").into());
        }
        if self.load_state.is_none() && prompts.iter().any(String::is_empty) {
            let failure = Failure::usage("a prompt is empty");
            return Err(failure.hint("to start from nothing, give the text of the BOS token").into());
        }
        Ok(prompts)
    }

    /// A file that cannot be written is told before the work, not after it.
    fn check_save_state(&self) -> anyhow::Result<()> {
        let Some(path) = &self.save_state else { return Ok(()) };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let problem = if path.is_dir() {
            format!("{} is a folder, expected a file", path.display())
        } else if !folder.is_dir() {
            format!("there is no folder {}", folder.display())
        } else {
            return Ok(());
        };
        Err(Failure::usage(format!("--save-state: {problem}")).into())
    }

    fn session(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        defaults: &GenerationConfig,
        prompts: &[String],
    ) -> anyhow::Result<Session> {
        let Some(path) = &self.load_state else {
            let ids = prompts
                .iter()
                .map(|p| encode_prompt(tokenizer, p, defaults))
                .collect::<Result<Vec<_>, _>>()?;
            return Ok(Session::new(model, &ids)?);
        };
        let mut session = Session::load(path, model)?;
        if !prompts.is_empty() && prompts.len() != session.rows() {
            let (rows, n, path) = (session.rows(), prompts.len(), path.display());
            let message = format!("--load-state: {path} holds {rows} rows, but there are {n} prompts");
            return Err(Failure::usage(message).hint("give none, or one a row").into());
        }
        for (row, text) in prompts.iter().enumerate() {
            // In the middle of a text: nothing is added around it.
            session.append(model, row, &tokenizer.encode(text, false)?)?;
        }
        Ok(session)
    }

    fn options(&self, defaults: &GenerationConfig, session: &Session) -> anyhow::Result<GenerateOptions> {
        let d = &defaults.sampling;
        let sampling = SamplingParams {
            temperature: if self.greedy { 0.0 } else { self.temperature.unwrap_or(d.temperature) },
            top_k: self.top_k.unwrap_or(d.top_k),
            top_p: self.top_p.unwrap_or(d.top_p),
            min_p: self.min_p.unwrap_or(d.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(d.repetition_penalty),
            seed: self.seed,
        };
        let filters = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        if filters && sampling.is_greedy() {
            let failure = Failure::usage("--top-k, --top-p and --min-p choose nothing at temperature 0");
            return Err(failure.hint("add --temperature, e.g. 0.8").into());
        }
        let longest = (0..session.rows()).map(|row| session.tokens(row).len()).max().unwrap_or(0);
        Ok(GenerateOptions {
            max_new_tokens: self.max_new_tokens.map_or_else(|| defaults.new_tokens(longest), Ok)?,
            sampling,
            eos: if self.ignore_eos { Vec::new() } else { defaults.eos.clone() },
            stop: if self.stop.is_empty() { defaults.stop.clone() } else { self.stop.clone() },
            mode: self.mode,
            ..GenerateOptions::default()
        })
    }

    /// The results of a batch, or of any run as JSON.
    fn print(
        &self,
        ctx: &Context,
        prompts: &[String],
        results: &[Generated],
        t: Timings,
    ) -> anyhow::Result<()> {
        if ctx.out.json {
            let rows: Vec<Value> =
                results.iter().enumerate().map(|(i, r)| row_json(prompts.get(i), r)).collect();
            let whole = json!({"rows": rows, "timings": timings_json(t)});
            return if self.events { ctx.out.record(&whole) } else { ctx.out.value(&whole) };
        }
        for (i, r) in results.iter().enumerate() {
            let prompt = if self.echo { prompts.get(i).map_or("", String::as_str) } else { "" };
            ctx.out.line(format!("--- {}\n{prompt}{}", i + 1, r.text))?;
        }
        Ok(())
    }
}

/// Writes a sample: the prompt and what follows, streaming, until done or stopped. For quickstart.
pub fn sample(
    ctx: &Context,
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_new_tokens: usize,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let config = GenerationConfig::from_config(model.config());
    let ids = encode_prompt(tokenizer, prompt, &config)?;
    let sampling = SamplingParams { temperature: 0.8, top_p: 0.95, ..SamplingParams::default() };
    let options = GenerateOptions { max_new_tokens, sampling, eos: config.eos, ..GenerateOptions::default() };
    ctx.out.text(prompt)?;
    for event in Generator::new(model, Some(tokenizer), Session::new(model, &[ids])?, options)? {
        ctx.out.text(event?.text)?;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    ctx.out.line("")
}

/// A line of a prompt file in JSON.
#[derive(Deserialize)]
struct PromptLine {
    prompt: String,
}

fn prompts_of(path: &Path) -> anyhow::Result<Vec<String>> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|e| Failure::usage(format!("{shown}: reading failed: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::runtime(format!(
            "{shown}: byte {at} begins an invalid UTF-8 sequence (the file must be UTF-8 text)"
        ))
    })?;
    let json = path.extension().is_some_and(|e| e == "jsonl");
    let line = |(i, line): (usize, &str)| match json {
        false => Ok(line.to_string()),
        true => serde_json::from_str::<PromptLine>(line).map(|l| l.prompt).map_err(|e| {
            Failure::runtime(format!("{shown}:{}: expected an object with `prompt`: {e}", i + 1)).into()
        }),
    };
    let lines = text.lines().enumerate().filter(|(_, l)| !l.is_empty());
    let prompts = lines.map(line).collect::<anyhow::Result<Vec<_>>>()?;
    if prompts.is_empty() {
        return Err(Failure::usage(format!("{shown}: holds no prompt")).into());
    }
    Ok(prompts)
}

fn event_json(e: &Event) -> Value {
    json!({"row": e.row, "id": e.id, "text": e.text, "finish": e.finish.as_ref().map(|f| f.name())})
}

fn row_json(prompt: Option<&String>, r: &Generated) -> Value {
    json!({
        "prompt": prompt, "text": r.text, "prompt_tokens": r.prompt_tokens, "new_tokens": r.ids.len(),
        "ids": r.ids, "finish": r.finish.as_ref().map(|f| f.name()),
    })
}

fn timings_json(t: Timings) -> Value {
    json!({
        "prefill_tokens": t.prefill_tokens, "prefill_seconds": t.prefill.as_secs_f64(),
        "new_tokens": t.new_tokens, "decode_seconds": t.decode.as_secs_f64(),
    })
}

fn statistics(results: &[Generated], t: Timings) {
    for (i, r) in results.iter().enumerate() {
        let why = r.finish.as_ref().map_or("", |f| f.name());
        eprint_line(format!(
            "row {}: prompt {} tokens, generated {} tokens ({why})",
            i + 1,
            r.prompt_tokens,
            r.ids.len()
        ));
    }
    let line = |what: &str, n: usize, seconds: f64| {
        eprint_line(format!(
            "{what}: {n} tokens in {seconds:.3} s ({:.1} tokens/s)",
            n as f64 / seconds.max(1e-9)
        ));
    };
    line("prefill", t.prefill_tokens, t.prefill.as_secs_f64());
    line("decode", t.new_tokens, t.decode.as_secs_f64());
}

/// A line on stderr; nobody to read it is no error.
fn eprint_line(text: String) {
    drop(std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes()));
}
