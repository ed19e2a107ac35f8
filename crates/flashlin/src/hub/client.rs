//! Requests to the hub: the commit of a revision, a file's etag and size, its bytes from any offset.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use hf_hub::api::RepoInfo;
use sha2::{Digest, Sha256};
use ureq::{
    Agent, Body,
    http::{Response, Uri},
    tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem},
};

use super::{HubOptions, Progress, cache, cache::RepoCache, is_commit};
use crate::{Error, ErrorKind, Result, files, weights::INDEX_FILE};

const REDIRECTS: usize = 10;
/// Answers about a repository are small; more is not an answer.
const MAX_INFO: u64 = 32 << 20;

/// Why an attempt failed: for good, or perhaps only now.
enum Failed {
    Final(Error),
    Retry(String),
}

impl From<Error> for Failed {
    fn from(e: Error) -> Failed {
        Failed::Final(e)
    }
}

/// What the hub says about a file before it is fetched.
struct FileInfo {
    etag: String,
    size: Option<u64>,
}

pub(super) struct Client<'a> {
    id: &'a str,
    options: &'a HubOptions,
    agent: Agent,
    /// Host and port that may see the token.
    authority: String,
}

impl<'a> Client<'a> {
    pub fn new(id: &'a str, options: &'a HubOptions) -> Result<Client<'a>> {
        let wrong =
            || Error::argument("HF_ENDPOINT", format!("{:?}, expected http(s)://host", options.endpoint));
        let uri: Uri = options.endpoint.parse().map_err(|_| wrong())?;
        let authority = uri.authority().map(ToString::to_string).ok_or_else(wrong)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong());
        }
        let roots = match &options.certificates {
            Some(path) => certificates(path)?,
            None => RootCerts::WebPki,
        };
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(roots).build())
            .http_status_as_error(false)
            // Redirects are followed here, so that the token stays with the hub.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("flashlin/", env!("CARGO_PKG_VERSION")))
            // Sizes and offsets are of the file, not of a compressed form.
            .accept_encoding("identity")
            .timeout_resolve(Some(Duration::from_secs(20)))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Ok(Client { id, options, agent: config.new_agent(), authority })
    }

    /// Fetches what is missing of the revision's snapshot and returns its folder.
    pub fn snapshot(&self, repo: &RepoCache) -> Result<std::path::PathBuf> {
        let info = self.retrying(&mut || 0, &mut || self.info(repo))?;
        let names: BTreeSet<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        let wanted = cache::wanted(&names).map_err(|why| self.error(ErrorKind::Runtime, why))?;
        let dir = repo.snapshot_dir(&info.sha);
        for file in &wanted {
            self.file(repo, &info.sha, file)?;
        }
        if wanted.contains(&INDEX_FILE) {
            for shard in cache::shards(&dir.join(INDEX_FILE))? {
                if !names.contains(shard.as_str()) {
                    let problem = format!("names the shard {shard}, which the repository does not have");
                    return Err(Error::file(&dir.join(INDEX_FILE), problem));
                }
                self.file(repo, &info.sha, &shard)?;
            }
        }
        repo.record(&info.sha)?;
        Ok(dir)
    }

    fn error(&self, kind: ErrorKind, problem: impl Into<String>) -> Error {
        let problem =
            format!("there is no such folder, and on {}: {}", self.options.endpoint, problem.into());
        Error::Hub { what: self.id.to_string(), problem, kind }
    }

    /// Runs an attempt until it works, fails for good, or fails too often without `progress` having changed.
    fn retrying<T>(
        &self,
        progress: &mut dyn FnMut() -> u64,
        attempt: &mut dyn FnMut() -> Result<T, Failed>,
    ) -> Result<T> {
        let (mut tries, mut delay, mut before) = (0, self.options.retry_delay, progress());
        loop {
            let problem = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failed::Final(e)) => return Err(e),
                Err(Failed::Retry(problem)) => problem,
            };
            let now = progress();
            tries = if now > before { 1 } else { tries + 1 };
            before = now;
            if tries >= self.options.attempts.max(1) {
                let times = if tries == 1 { String::new() } else { format!(" ({tries} attempts)") };
                return Err(self.error(ErrorKind::Runtime, format!("{problem}{times}")));
            }
            tracing::warn!("{}: {problem}; trying again", self.id);
            std::thread::sleep(delay);
            delay = (delay * 2).min(Duration::from_secs(30));
        }
    }

    /// The commit of the revision and its files.
    fn info(&self, repo: &RepoCache) -> Result<RepoInfo, Failed> {
        let url = format!("{}/api/{}", self.options.endpoint, repo.repo.api_url());
        let mut response = self.send(false, &url, 0, &mut |_| {})?;
        self.check_status(&response, &format!("revision {}", repo.repo.revision()))?;
        let body = response.body_mut().with_config().limit(MAX_INFO).read_to_vec().map_err(broken)?;
        let info: RepoInfo = serde_json::from_slice(&body)
            .map_err(|e| self.error(ErrorKind::Runtime, format!("the answer to {url} is unusable: {e}")))?;
        if !is_commit(&info.sha) {
            let problem = format!("the answer to {url} names the commit {:?}", info.sha);
            return Err(self.error(ErrorKind::Runtime, problem).into());
        }
        Ok(info)
    }

    /// Makes sure that a file of a commit is in the cache.
    fn file(&self, repo: &RepoCache, commit: &str, file: &str) -> Result<()> {
        if repo.snapshot_dir(commit).join(file).exists() {
            return Ok(());
        }
        let url = format!("{}/{}/resolve/{commit}/{file}", self.options.endpoint, self.id);
        let info = self.retrying(&mut || 0, &mut || self.file_info(&url, file))?;
        let blob = repo.blob(&info.etag);
        let dir = blob.parent().unwrap_or(Path::new("."));
        files::create_dir(dir)?;
        // Two processes that fetch one file take turns; the second finds it done. The lock ends with the file handle.
        let lock_path = blob.with_extension("lock");
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path, "creating"))?;
        lock.lock().map_err(Error::io(&lock_path, "locking"))?;
        if !blob.exists() {
            let part = blob.with_extension("part");
            let mut size = || fs::metadata(&part).map_or(0, |m| m.len());
            self.retrying(&mut size, &mut || self.fetch(&url, file, &info, &part))?;
            fs::rename(&part, &blob).map_err(Error::io(&blob, "moving the finished file into place"))?;
            files::sync_dir(dir)?;
        }
        repo.link(commit, file, &info.etag)
    }

    fn file_info(&self, url: &str, file: &str) -> Result<FileInfo, Failed> {
        let (mut etag, mut size) = (None, None);
        let response = self.send(true, url, 0, &mut |r| {
            // Large files redirect to storage; the hub's own answer names the content.
            etag = header(r, "x-linked-etag").or_else(|| etag.take());
            size = header(r, "x-linked-size").or_else(|| size.take());
        })?;
        if !response.status().is_redirection() {
            self.check_status(&response, file)?;
            size = size.or_else(|| header(&response, "content-length"));
        }
        let etag = etag.or_else(|| header(&response, "etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let usable = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if etag.is_empty() || etag.len() > 128 || !etag.bytes().all(usable) {
            let problem = format!("the answer to {url} has the etag {etag:?}, expected a hash of the file");
            return Err(self.error(ErrorKind::Runtime, problem).into());
        }
        Ok(FileInfo { etag: etag.to_string(), size: size.and_then(|s| s.parse().ok()) })
    }

    /// Continues `part` to the end of the file and checks it.
    fn fetch(&self, url: &str, file: &str, info: &FileInfo, part: &Path) -> Result<(), Failed> {
        let mut out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(part)
            .map_err(Error::io(part, "opening the partial file"))?;
        let mut have = out.metadata().map_err(Error::io(part, "reading"))?.len();
        if info.size.is_some_and(|size| have > size) {
            have = restart(&out, part)?;
        }
        if info.size.is_none_or(|size| have < size) {
            have = self.append(url, file, info, part, &mut out, have)?;
        }
        if let Some(size) = info.size.filter(|&size| size != have) {
            if have > size {
                restart(&out, part)?;
            }
            return Err(Failed::Retry(format!("{file}: {have} of {size} bytes arrived")));
        }
        out.sync_all().map_err(Error::io(part, "writing to the disk"))?;
        if info.etag.len() == 64 && sha256(part)? != info.etag.to_ascii_lowercase() {
            restart(&out, part)?;
            return Err(Failed::Retry(format!(
                "{file}: what arrived does not have the SHA-256 {}",
                info.etag
            )));
        }
        Ok(())
    }

    /// Appends what the server sends from byte `have` on; returns the new length.
    fn append(
        &self,
        url: &str,
        file: &str,
        info: &FileInfo,
        part: &Path,
        out: &mut File,
        mut have: u64,
    ) -> Result<u64, Failed> {
        let response = self.send(false, url, have, &mut |_| {})?;
        match response.status().as_u16() {
            206 if content_start(&response) == Some(have) => {}
            // The range was not honoured: this is the file from its start.
            200 => have = restart(out, part)?,
            206 | 416 => {
                restart(out, part)?;
                return Err(Failed::Retry(format!("{file}: the server does not continue at byte {have}")));
            }
            _ => self.check_status(&response, file)?,
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            if let Some(progress) = &self.options.progress {
                progress(Progress { file, done: have, total: info.size });
            }
            let n = body.read(&mut buffer).map_err(|e| Failed::Retry(format!("{file}: {e}")))?;
            if n == 0 {
                return Ok(have);
            }
            out.write_all(&buffer[..n]).map_err(Error::io(part, "writing"))?;
            have += n as u64;
        }
    }

    /// Sends a request and follows redirects; a HEAD request stops before another host. `seen` looks at every answer of the hub.
    fn send(
        &self,
        head: bool,
        url: &str,
        from: u64,
        seen: &mut dyn FnMut(&Response<Body>),
    ) -> Result<Response<Body>, Failed> {
        let mut url = url.to_string();
        for _ in 0..REDIRECTS {
            let uri: Uri = url.parse().map_err(|_| self.bad_redirect(&url))?;
            let own = uri.authority().is_some_and(|a| *a == self.authority.as_str());
            let mut request = if head { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(token) = self.options.token.as_ref().filter(|_| own) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(broken)?;
            if own {
                seen(&response);
            }
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = header(&response, "location").ok_or_else(|| self.bad_redirect(&url))?;
            let next = self.join(&uri, &location)?;
            let elsewhere = next.authority().is_none_or(|a| *a != self.authority.as_str());
            if head && elsewhere {
                return Ok(response);
            }
            url = next.to_string();
        }
        Err(self
            .error(ErrorKind::Runtime, format!("more than {REDIRECTS} redirects, the last to {url}"))
            .into())
    }

    fn join(&self, base: &Uri, location: &str) -> Result<Uri> {
        let absolute = if location.starts_with('/') && !location.starts_with("//") {
            let authority = base.authority().map_or("", |a| a.as_str());
            format!("{}://{authority}{location}", base.scheme_str().unwrap_or("https"))
        } else {
            location.to_string()
        };
        let uri: Uri = absolute.parse().map_err(|_| self.bad_redirect(location))?;
        let safe = uri.scheme_str() == Some("https") || uri.scheme_str() == base.scheme_str();
        if uri.authority().is_none() || !safe {
            return Err(self.bad_redirect(location));
        }
        Ok(uri)
    }

    fn bad_redirect(&self, to: &str) -> Error {
        self.error(ErrorKind::Runtime, format!("the server redirects to {to:?}, which cannot be followed"))
    }

    fn check_status(&self, response: &Response<Body>, what: &str) -> Result<(), Failed> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let said = header(response, "x-error-message").map(|m| format!(" ({m})")).unwrap_or_default();
        let token = if self.options.token.is_some() {
            "the token gives no access: accept the model's conditions on its page, or use another token"
        } else {
            "it does not exist, or needs a token: set HF_TOKEN"
        };
        let (kind, problem) = match status.as_u16() {
            404 => (ErrorKind::Usage, format!("{what} was not found{said}")),
            401 | 403 => {
                (ErrorKind::Usage, format!("{what} was refused with status {status}{said}; {token}"))
            }
            408 | 429 | 500..=599 => return Err(Failed::Retry(format!("{what}: status {status}{said}"))),
            _ => (ErrorKind::Runtime, format!("{what}: unexpected status {status}{said}")),
        };
        Err(self.error(kind, problem).into())
    }
}

fn broken(e: ureq::Error) -> Failed {
    Failed::Retry(format!("could not be reached: {e}"))
}

fn header(response: &Response<Body>, name: &str) -> Option<String> {
    response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_string)
}

/// Where a partial answer begins: `Content-Range: bytes 5-9/10`.
fn content_start(response: &Response<Body>) -> Option<u64> {
    let range = header(response, "content-range")?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

fn restart(out: &File, part: &Path) -> Result<u64> {
    out.set_len(0).map_err(Error::io(part, "emptying the partial file"))?;
    Ok(0)
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "reading"))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        let n = file.read(&mut buffer).map_err(Error::io(path, "reading"))?;
        if n == 0 {
            return Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect());
        }
        hash.update(&buffer[..n]);
    }
}

fn certificates(path: &Path) -> Result<RootCerts> {
    let pem = fs::read(path).map_err(Error::io(path, "reading the certificates (SSL_CERT_FILE)"))?;
    let mut found = Vec::new();
    for item in parse_pem(&pem) {
        let item = item.map_err(|e| Error::file(path, format!("not usable certificates: {e}")))?;
        if let PemItem::Certificate(certificate) = item {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(Error::file(path, "holds no certificates, expected PEM (SSL_CERT_FILE)"));
    }
    Ok(RootCerts::Specific(Arc::new(found)))
}
