//! From a model to a listening socket, and down again.
//!
//! Policy: what a connection can use up is bounded before it is served: their number, the time for headers and bodies, the time that a reader may
//! leave written bytes unread. A signal to stop closes the door, lets what was accepted finish, and then ends.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use flashlin::{Error, Model, Result, StateKind, generate::GenerationConfig, tokenizer::Tokenizer};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

use crate::{
    api::{App, Limits, router},
    auth::Key,
    engine::{Engine, EngineOptions, EngineThread},
    metrics::Metrics,
    template::ChatTemplate,
};

/// Context of models whose state does not grow with it.
const WIDE_CONTEXT: usize = 131_072;
/// Connections that the system keeps until they are accepted.
const BACKLOG: i32 = 1024;
/// Files that are open besides connections.
const OTHER_FILES: u64 = 128;
/// How often a signal to stop is looked for.
const POLL: Duration = Duration::from_millis(50);

/// How a model is served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The model's name for clients.
    pub name: String,
    /// Tokens of prompt and continuation together; None: for models that keep keys and values what their configuration says, else 131,072.
    pub context: Option<usize>,
    /// What the engine may use.
    pub engine: EngineOptions,
    /// What requests may use.
    pub limits: Limits,
    /// Connections at the same time; more wait to be accepted.
    pub connections: usize,
    /// Time for the headers of a request, the first and each later one.
    pub header_timeout: Duration,
    /// Time that a client may leave written bytes unread.
    pub stall_timeout: Duration,
    /// Time to finish after a signal to stop.
    pub drain: Duration,
    /// What clients must know, if anything.
    pub key: Option<Key>,
    /// A chat template in place of the model's.
    pub chat_template: Option<String>,
}

impl ServeOptions {
    /// Defaults for a model of this name.
    pub fn new(name: impl Into<String>) -> Self {
        ServeOptions {
            name: name.into(),
            context: None,
            engine: EngineOptions::default(),
            limits: Limits::default(),
            connections: 2048,
            header_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(30),
            key: None,
            chat_template: None,
        }
    }
}

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
    thread: EngineThread,
    options: ServeOptions,
}

impl Server {
    /// Binds to `address` and starts the engine.
    ///
    /// # Errors
    /// An address that cannot be had, options or a model that cannot be used, memory.
    pub fn bind(
        address: SocketAddr,
        model: Model,
        tokenizer: Tokenizer,
        defaults: GenerationConfig,
        options: ServeOptions,
    ) -> Result<Server> {
        let cannot =
            |e: std::io::Error| Error::argument("address", format!("{address}: listening failed: {e}"));
        let listener = listen(address).map_err(cannot)?;
        let source = options.chat_template.clone().or_else(|| tokenizer.chat_template(None));
        let template = source.map(|s| ChatTemplate::new(s, &tokenizer)).transpose()?;
        let context = context(&model, options.context)?;
        let eos = match defaults.eos.is_empty() {
            true => tokenizer.eos().into_iter().collect(),
            false => defaults.eos.clone(),
        };
        let vocab = model.config().base().vocab_size;
        let metrics = Arc::new(Metrics::new());
        let (engine, thread) =
            Engine::start(model, tokenizer.clone(), options.engine.clone(), metrics.clone())?;
        let app = App {
            engine,
            tokenizer,
            name: options.name.clone(),
            context,
            vocab,
            defaults,
            eos,
            template,
            options: options.limits.clone(),
            metrics,
            key: options.key.clone(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            draining: AtomicBool::new(false),
        };
        Ok(Server { listener, app: Arc::new(app), thread, options })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|e| Error::state(format!("the socket has no address: {e}")))
    }

    /// What handlers share.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Answers until `stop` becomes true; then finishes what was accepted.
    ///
    /// # Errors
    /// When the system refuses threads or the socket.
    pub fn run(self, stop: &AtomicBool) -> Result<()> {
        let Server { listener, app, thread, options } = self;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(4)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(|e| Error::state(format!("the server's threads: {e}")))?;
        let done = runtime.block_on(serve(listener, app.clone(), &options, stop));
        // What is left after the time to finish is dropped, and with it the receivers that the engine's work is for.
        runtime.shutdown_timeout(Duration::from_secs(1));
        drop(app);
        if thread.join().is_err() {
            return Err(Error::state("the engine's thread panicked"));
        }
        done
    }
}

/// As the standard library binds, with a longer queue of connections that wait to be accepted.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(cfg!(unix))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Tokens that fit.
fn context(model: &Model, asked: Option<usize>) -> Result<usize> {
    let grows = model.new_state(1)?;
    let grows = grows.layers().iter().flat_map(|l| l.tensors()).any(|t| t.spec.kind == StateKind::KeyValue);
    match asked {
        Some(0) => Err(Error::argument("max context", "is 0, expected at least 1")),
        Some(n) => Ok(n),
        None if grows => Ok(model.config().base().max_position_embeddings.unwrap_or(WIDE_CONTEXT).max(1)),
        None => Ok(WIDE_CONTEXT),
    }
}

async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    options: &ServeOptions,
    stop: &AtomicBool,
) -> Result<()> {
    let broken = |e: std::io::Error| Error::state(format!("the listening socket: {e}"));
    let listener = tokio::net::TcpListener::from_std(listener).map_err(broken)?;
    let files = rlimit::increase_nofile_limit(options.connections as u64 + OTHER_FILES);
    let files = files.unwrap_or(OTHER_FILES + 64).saturating_sub(OTHER_FILES).max(16);
    let room = Arc::new(Semaphore::new(options.connections.min(files as usize)));
    let graceful = GracefulShutdown::new();
    let service = TowerToHyperService::new(router(app.clone()));
    loop {
        let (stream, permit) = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = stopped(stop) => break,
        };
        // Small pieces of a stream must not wait for more.
        drop(stream.set_nodelay(true));
        let mut io = TimeoutStream::new(stream);
        io.set_write_timeout(Some(options.stall_timeout));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(options.header_timeout).max_buf_size(64 << 10);
        let connection = http.serve_connection(TokioIo::new(Box::pin(io)), service.clone());
        let connection = graceful.watch(connection);
        let open = app.metrics.connections.clone();
        open.inc();
        tokio::spawn(async move {
            // Clients that go away are no event of ours.
            drop(connection.await);
            open.dec();
            drop(permit);
        });
    }
    app.draining.store(true, Ordering::SeqCst);
    drop(listener);
    if tokio::time::timeout(options.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("{} s were not enough to finish all requests", options.drain.as_secs());
    }
    Ok(())
}

async fn stopped(stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(POLL).await;
    }
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &tokio::net::TcpListener,
    room: &Arc<Semaphore>,
) -> (tokio::net::TcpStream, OwnedSemaphorePermit) {
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            // The semaphore is never closed.
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(e) => {
                // Out of files, or a client that left at once: others still come.
                tracing::warn!("accepting a connection failed: {e}");
                tokio::time::sleep(POLL).await;
            }
        }
    }
}
