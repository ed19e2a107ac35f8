//! `flashlin bench serve`: what clients of a running server see.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::Args;
use flashlin_serve::load::{self, LoadOptions, LoadReport};

use crate::{
    args::Context,
    failure::{Failure, NotPassed},
    table::{Table, bytes},
};

/// Stream completions from a server on this machine: requests/s, tokens/s, time to the first token, time between tokens
#[derive(Debug, Args)]
pub struct ServeBench {
    /// Address of the server; only this machine's own are allowed
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Its port
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Clients at the same time, one run for each number
    #[arg(long, value_delimiter = ',', default_value = "1,8,64", value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: Vec<u16>,
    /// Requests of a run
    #[arg(long, value_name = "N", default_value_t = 64)]
    requests: usize,
    /// Seconds after which a run begins no more requests
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 32)]
    prompt_tokens: usize,
    /// Tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    new_tokens: usize,
    /// A file with the server's key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<std::path::PathBuf>,
}

impl ServeBench {
    pub fn run(self, ctx: &Context) -> anyhow::Result<()> {
        let key = match &self.api_key_file {
            None => None,
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|e| Failure::usage(format!("{}: reading failed: {e}", path.display())))?
                    .trim()
                    .to_string(),
            ),
        };
        let mut rows = Vec::new();
        for &clients in &self.clients {
            rows.push(load::run(&LoadOptions {
                address: SocketAddr::new(self.host, self.port),
                key: key.clone(),
                clients: usize::from(clients),
                requests: self.requests,
                time: Duration::from_secs(self.seconds),
                prompt_tokens: self.prompt_tokens,
                new_tokens: self.new_tokens,
            })?);
        }
        ctx.out.rows(&rows, table)?;
        match rows.iter().find_map(|r| r.failure.as_ref()) {
            None => Ok(()),
            Some(why) => {
                tracing::error!("a request failed: {why}");
                Err(NotPassed.into())
            }
        }
    }
}

fn table(rows: &[LoadReport]) -> Table {
    let mut table = Table::new(&[
        "clients",
        "answered",
        "failed",
        "req/s",
        "tok/s",
        "first ms p50/p99",
        "between ms p50/p99",
        "rows/step",
        "overhead",
        "resident",
    ]);
    let pair = |[a, b]: [f64; 2]| format!("{a:.1}/{b:.1}");
    for r in rows {
        let resident = r.resident_bytes.map(|b| b.map_or("?".into(), bytes));
        table.row([
            r.clients.to_string(),
            r.requests.to_string(),
            r.failed.to_string(),
            format!("{:.2}", r.requests_per_second),
            format!("{:.1}", r.tokens_per_second),
            pair(r.first_token_ms),
            pair(r.between_ms),
            r.rows_per_step.map_or(String::new(), |x| format!("{x:.2}")),
            r.overhead.map_or(String::new(), |x| format!("{:.1}%", 100.0 * x)),
            format!("{} -> {}", resident[0], resident[1]),
        ]);
    }
    table
}
