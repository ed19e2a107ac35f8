//! `flashlin serve`: an OpenAI-compatible server for one model.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use flashlin::{Model, generate::GenerationConfig, tokenizer::Tokenizer};
use flashlin_serve::{Key, ServeOptions, Server};
use serde_json::json;

use crate::{args::Context, failure::Failure, stop};

/// The environment's place for the key.
const KEY_VARIABLE: &str = "FLASHLIN_API_KEY";

/// Serve a model over HTTP as OpenAI's API does (completions, chat, streaming)
///
/// Prints its address once it answers. SIGTERM or Ctrl-C finishes what was accepted and ends; a second signal ends at once.
#[derive(Debug, Args)]
pub struct Serve {
    /// Model folder or hub id
    model: String,
    /// Address to listen on; others than this machine's own reach the server only if this says so
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// The model's name for clients [default: the last part of MODEL]
    #[arg(long, value_name = "NAME")]
    served_name: Option<String>,
    /// A file with the key that clients must send (`Authorization: Bearer KEY`) [default: the variable FLASHLIN_API_KEY, else none]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Sequences generated at the same time, each with a state slot
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    slots: u32,
    /// Sequences that may wait beyond these; more are told to try again later
    #[arg(long, value_name = "N", default_value_t = 256)]
    queue: u32,
    /// Tokens of a prompt that are read between two steps of the others
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    prefill_chunk: u32,
    /// Megabytes of stored states of prompts' beginnings; 0 stores none
    #[arg(long, value_name = "MB", default_value_t = 256)]
    prefix_cache: u32,
    /// Tokens of prompt and continuation together [default: for models that keep keys and values max_position_embeddings, else 131072]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Tokens that one continuation may have
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_tokens: usize,
    /// Seconds that a request may take
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Kilobytes of a request's body
    #[arg(long, value_name = "KB", default_value_t = 8192)]
    max_body: u32,
    /// Connections at the same time; more wait to be accepted
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Seconds to finish requests after a signal to stop
    #[arg(long, value_name = "S", default_value_t = 30)]
    drain: u64,
    /// A Jinja file in place of the model's chat template
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Do not read generation_config.json: config.json and requests decide alone
    #[arg(long)]
    ignore_generation_config: bool,
    /// Type to compute in: f32, bf16, f16 [default: that of the model]
    #[arg(long)]
    dtype: Option<String>,
    #[command(flatten)]
    device: super::DeviceArgs,
    #[command(flatten)]
    hub: super::HubArgs,
}

impl Serve {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let options = self.options()?;
        let device = self.device.open()?;
        let dtype = self.dtype.as_deref().map(|d| super::parse_dtype("--dtype", d)).transpose()?;
        let dir = self.hub.resolve(&self.model)?;
        let model = Model::load(&dir, dtype, &device)?;
        let tokenizer = Tokenizer::from_dir(&dir)?;
        let defaults = match self.ignore_generation_config {
            true => GenerationConfig::from_config(model.config()),
            false => GenerationConfig::load(&dir, model.config())?,
        };
        let address = SocketAddr::new(self.host, self.port);
        let server = Server::bind(address, model, tokenizer, defaults, options)?;
        let stop = stop::on_signal()?;
        self.announce(ctx, &server)?;
        Ok(server.run(&stop)?)
    }

    fn announce(&self, ctx: &Context, server: &Server) -> anyhow::Result<()> {
        let address = server.address()?;
        let app = server.app();
        if ctx.out.json {
            return ctx.out.record(&json!({
                "url": format!("http://{address}"), "model": app.name, "slots": self.slots,
                "state_bytes": app.engine.state_bytes, "max_context": app.context, "api_key": app.key.is_some(),
            }));
        }
        ctx.out.line(format!("serving {} at http://{address}", app.name))
    }

    fn options(&self) -> anyhow::Result<ServeOptions> {
        let name = self.served_name.clone().or_else(|| name_of(&self.model));
        let name =
            name.ok_or_else(|| Failure::usage("the model's folder has no name; give --served-name"))?;
        let mut o = ServeOptions::new(name);
        o.context = self.max_context;
        o.engine.slots = self.slots as usize;
        o.engine.queue = self.queue as usize;
        o.engine.chunk = self.prefill_chunk as usize;
        o.engine.prefix_bytes = (self.prefix_cache as usize) << 20;
        o.limits.max_tokens = self.max_tokens;
        o.limits.timeout = Duration::from_secs(self.timeout);
        o.limits.body_bytes = (self.max_body as usize) << 10;
        o.connections = self.connections as usize;
        o.drain = Duration::from_secs(self.drain);
        o.key = self.key()?;
        if let Some(path) = &self.chat_template {
            let text = std::fs::read_to_string(path);
            o.chat_template =
                Some(text.map_err(|e| Failure::usage(format!("{}: reading failed: {e}", path.display())))?);
        }
        Ok(o)
    }

    fn key(&self) -> anyhow::Result<Option<Key>> {
        if let Some(path) = &self.api_key_file {
            return Ok(Some(Key::from_file(path)?));
        }
        match std::env::var(KEY_VARIABLE) {
            Ok(text) => Ok(Some(Key::new(&text)?)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(e) => Err(Failure::usage(format!("{KEY_VARIABLE}: {e}")).into()),
        }
    }
}

/// The last part of a path or hub id.
fn name_of(model: &str) -> Option<String> {
    let path = Path::new(model);
    // `.` has no name of its own.
    let whole = if path.file_name().is_none() { path.canonicalize().ok()? } else { path.to_path_buf() };
    Some(whole.file_name()?.to_str()?.to_string())
}
