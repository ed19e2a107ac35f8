//! Models by name: a folder as it is, or `org/name` from the Hugging Face hub, kept in the cache that Python's libraries share.
//!
//! Policy: what exists on disk is a folder; anything else of the form `org/name` is a hub id; errors say what was tried. A snapshot is
//! whole and of one commit: the revision is resolved to a commit first, every file is fetched from that commit, checked (size, and
//! SHA-256 where the hub gives it), and the revision's entry in the cache is written last, so offline mode finds only whole
//! snapshots. Downloads continue where they broke off. The token goes to the hub's own host, nowhere else. What the server says is not
//! trusted with paths. Nothing falls back silently: a hub that cannot be reached is an error that says whether the cache would do.
//!
//! The cache's layout and the hub's answers are the `hf-hub` crate's types. Its download function is not used: it appends to a
//! partial file what a server without range support sends from the start, takes a short file for a whole one, panics on malformed
//! redirects, puts server-given names into paths, and knows neither timeouts nor certificates of one's own.

mod cache;
mod client;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{Error, ErrorKind, Result};

/// How far the download of a file is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file's name in the repository.
    pub file: &'a str,
    /// Bytes on disk.
    pub done: u64,
    /// Bytes of the whole file, where the hub told.
    pub total: Option<u64>,
}

/// A callback for [`Progress`].
pub type ProgressFn = Arc<dyn Fn(Progress<'_>) + Send + Sync>;

/// Where models come from and go to.
#[derive(Clone)]
pub struct HubOptions {
    /// The hub, without a slash at the end (`HF_ENDPOINT`; `https://huggingface.co`).
    pub endpoint: String,
    /// The cache folder (`HF_HUB_CACHE`; `$HF_HOME/hub`; `~/.cache/huggingface/hub`).
    pub cache: PathBuf,
    /// Access token for gated and private models (`HF_TOKEN`, else the file `$HF_HOME/token`).
    pub token: Option<String>,
    /// Branch, tag or commit; None is `main`.
    pub revision: Option<String>,
    /// Use the cache alone (`HF_HUB_OFFLINE=1`).
    pub offline: bool,
    /// Certificates to trust instead of the built-in ones, in PEM form (`SSL_CERT_FILE`).
    pub certificates: Option<PathBuf>,
    /// Attempts without progress before giving up.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles each time, up to 30 s.
    pub retry_delay: Duration,
    /// Told about downloads.
    pub progress: Option<ProgressFn>,
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("revision", &self.revision)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubOptions {
    /// The settings that Python's `huggingface_hub` would read from the environment.
    ///
    /// # Errors
    /// When no cache folder can be told, or a variable cannot be used (it is named).
    pub fn from_env() -> Result<HubOptions> {
        Self::from_vars(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<HubOptions> {
        let home = match (var("HF_HOME"), var("XDG_CACHE_HOME")) {
            (Some(home), _) => Some(PathBuf::from(home)),
            (None, Some(cache)) => Some(Path::new(&cache).join("huggingface")),
            (None, None) => std::env::home_dir().map(|home| home.join(".cache/huggingface")),
        };
        let cache = var("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join("hub")));
        let cache = cache.ok_or_else(|| {
            Error::argument(
                "HF_HOME",
                "is not set and there is no home folder, expected a folder for the cache",
            )
        })?;
        let token_file = var("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home?.join("token")));
        let stored = || token_file.and_then(|path| std::fs::read_to_string(path).ok());
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(stored);
        let token = token.map(|t| t.trim().to_string()).filter(|t| !t.is_empty());
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::argument("HF_TOKEN", "holds characters that no token has"));
        }
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = var("HF_HUB_OFFLINE")
            .is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str()));
        Ok(HubOptions {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache,
            token,
            revision: None,
            offline,
            certificates: var("SSL_CERT_FILE").map(PathBuf::from),
            attempts: 5,
            retry_delay: Duration::from_millis(500),
            progress: None,
        })
    }
}

/// The folder of a model: `model` itself if it exists, else the snapshot of the hub id `org/name`, downloaded where needed.
///
/// # Errors
/// When `model` is neither, or the hub or its cache does not have it; the message says what was tried.
pub fn resolve(model: &str, options: &HubOptions) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return match &options.revision {
            None => Ok(path.to_path_buf()),
            Some(r) => {
                Err(Error::argument("revision", format!("{r} was asked for, but {model} is a local folder")))
            }
        };
    }
    if path.exists() {
        return Err(Error::file(path, "is a file, expected a checkpoint folder or a hub id (org/name)"));
    }
    if let Err(reason) = check_id(model) {
        let problem = format!("there is no such folder, and it is not a hub id ({reason})");
        return Err(Error::Hub { what: model.into(), problem, kind: ErrorKind::Usage });
    }
    download(model, options)
}

/// The snapshot of a hub id, downloaded where the cache lacks it.
///
/// # Errors
/// As [`resolve`].
pub fn download(id: &str, options: &HubOptions) -> Result<PathBuf> {
    let fail = |kind, problem: String| Error::Hub { what: id.into(), problem, kind };
    check_id(id).map_err(|reason| fail(ErrorKind::Usage, format!("not a hub id ({reason})")))?;
    let revision = options.revision.as_deref().unwrap_or("main");
    check_revision(revision)
        .map_err(|reason| Error::argument("revision", format!("{revision:?} {reason}")))?;
    let repo = cache::RepoCache::new(&options.cache, id, revision);
    let cached = repo.snapshot();
    if options.offline {
        return cached.map_err(|why| {
            let tried = "there is no such folder, and the hub is not asked in offline mode (HF_HUB_OFFLINE)";
            fail(ErrorKind::Usage, format!("{tried}; the cache {} {why}", options.cache.display()))
        });
    }
    // A commit never changes, so what is cached is what the hub has.
    if let (Ok(dir), true) = (&cached, is_commit(revision)) {
        return Ok(dir.clone());
    }
    let client = client::Client::new(id, options)?;
    client.snapshot(&repo).map_err(|e| match (e, cached) {
        (Error::Hub { what, problem, kind: ErrorKind::Runtime }, Ok(dir)) => {
            let hint = format!("{problem}; {} is a whole copy: use it with HF_HUB_OFFLINE=1", dir.display());
            Error::Hub { what, problem: hint, kind: ErrorKind::Runtime }
        }
        (e, _) => e,
    })
}

/// `org/name` in the hub's alphabet; anything else could be a path or a URL in disguise.
fn check_id(id: &str) -> Result<(), &'static str> {
    let Some((org, name)) = id.split_once('/') else {
        return Err("expected the form org/name");
    };
    for part in [org, name] {
        let alphabet = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if part.is_empty() || !part.bytes().all(alphabet) {
            return Err("expected the form org/name, of letters, digits and -_.");
        }
        if part.starts_with(['-', '.'])
            || part.ends_with(['-', '.'])
            || part.contains("..")
            || part.contains("--")
        {
            return Err("a part begins or ends with - or ., or holds .. or --");
        }
    }
    if id.len() > 96 { Err("longer than 96 characters") } else { Ok(()) }
}

fn check_revision(revision: &str) -> Result<(), &'static str> {
    let alphabet = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'+');
    if revision.is_empty() || !revision.bytes().all(alphabet) {
        return Err("is not a branch, tag or commit (letters, digits and -_./+)");
    }
    let wrong = |part: &str| part.is_empty() || part.starts_with('.');
    if revision.split('/').any(wrong) { Err("has an empty part or one that begins with .") } else { Ok(()) }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}
