//! The operator's listeners: `/metrics` for Prometheus; `/livez`, `/readyz` and `/statusz` on the local Unix socket.

use std::convert::Infallible;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::base_credentials::BaseCredentials;
use crate::cache::Cache;
use crate::identity::pods::Pods;
use crate::metrics::Metrics;
use crate::server::ACCEPT_PAUSE;

/// Scrapers and probes are few; more than that is a mistake or a flood.
const CONNECTIONS: usize = 32;
const HEADER_READ: Duration = Duration::from_secs(2);
/// A scrape or a status page takes milliseconds.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// Shorter than a kubelet's probe timeout is usually set.
const PROBE: Duration = Duration::from_secs(2);
/// More than any `/statusz`; a bound, because something else may listen on the path.
const STATUS_LIMIT: usize = 1 << 20;

/// What the pages show.
pub struct Status {
    /// `x-rolecall-instance` of our answers.
    pub instance: String,
    /// The series.
    pub metrics: Arc<Metrics>,
    /// The index of pods.
    pub pods: Arc<Pods>,
    /// The plans in use.
    pub cache: Arc<Cache>,
    /// The agent's own credentials, where it needs any.
    pub base: Option<Arc<BaseCredentials>>,
    /// What the watches say of themselves, written into `metrics` at each scrape.
    pub watches: Box<dyn Fn(&Metrics) + Send + Sync>,
}

impl Status {
    /// Ready: the first list of pods is here, and base credentials, if they are needed. The listeners are bound before anything else runs.
    fn waits_for(&self) -> Option<String> {
        if !self.pods.synced() {
            return Some("the kube API's first list of this node's pods".into());
        }
        self.base.as_ref()?.current().err().map(|why| why.to_string())
    }

    fn metrics(&self) -> String {
        self.metrics.pods.set(self.pods.len() as i64);
        (self.watches)(&self.metrics);
        self.metrics.render(self.cache.states())
    }

    fn statusz(&self) -> String {
        let pods: Vec<_> = self
            .pods
            .all()
            .iter()
            .map(|pod| {
                serde_json::json!({
                    "namespace": pod.namespace(), "name": &*pod.name, "uid": pod.uid.as_str(),
                    "service_account": &*pod.service_account.name, "addresses": pod.addresses,
                    "host_network": pod.host_network, "finished": pod.finished,
                    "terminating": pod.terminating, "asks": pod.asks,
                })
            })
            .collect();
        let status = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"), "instance": self.instance, "waits_for": self.waits_for(),
            "pods": pods, "plans": self.cache.status(),
        });
        format!("{status:#}\n")
    }

    fn local(&self, path: &str) -> Page {
        const TEXT: &str = "text/plain; charset=utf-8";
        match path {
            // Answering at all is being alive: there is one event loop, and it is this one.
            "/livez" => (StatusCode::OK, TEXT, "ok\n".into()),
            "/readyz" => match self.waits_for() {
                None => (StatusCode::OK, TEXT, "ok\n".into()),
                Some(what) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("waiting for {what}\n")),
            },
            "/statusz" => (StatusCode::OK, "application/json", self.statusz()),
            _ => (StatusCode::NOT_FOUND, TEXT, "only /livez, /readyz and /statusz are here\n".into()),
        }
    }

    fn public(&self, path: &str) -> Page {
        match path {
            "/metrics" => (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics()),
            _ => (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "only /metrics is here\n".into()),
        }
    }
}

/// Binds the local socket, for our own user alone. A socket file that nobody serves is a dead agent's, and goes.
///
/// # Errors
/// The kernel's: a directory that is missing or not ours, or something else that has the name.
pub fn bind_local(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves `/metrics` for ever.
pub async fn serve_metrics(listener: TcpListener, status: Arc<Status>) {
    serve(move |cx| listener.poll_accept(cx).map_ok(|(stream, _)| stream), move |path| status.public(path))
        .await;
}

/// Serves the probes and the status page for ever.
pub async fn serve_local(listener: UnixListener, status: Arc<Status>) {
    serve(move |cx| listener.poll_accept(cx).map_ok(|(stream, _)| stream), move |path| status.local(path))
        .await;
}

/// Status, content type and text of an operator's page.
pub(crate) type Page = (StatusCode, &'static str, String);

/// Answers what `accept` brings with the page of each path, for ever. The issuer's operators have theirs from here, too.
pub(crate) async fn serve<S>(
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<S>>,
    page: impl Fn(&str) -> Page + Clone + Send + 'static,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limit = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(stream) = poll_fn(&mut accept).await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&limit).try_acquire_owned() else { continue };
        let page = page.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (code, kind, body) = page(request.uri().path());
                let mut response = Response::new(Full::new(Bytes::from(body)));
                *response.status_mut() = code;
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_READ)
                .serve_connection(TokioIo::new(stream), service);
            let _ = timeout(CONNECTION_LIFE, connection).await;
            drop(permit);
        });
    }
}

/// Asks the agent behind `socket` for `path`: what `rolecall probe` and `rolecall net verify` do.
///
/// # Errors
/// No agent there, or no answer in time.
pub async fn ask(socket: &Path, path: &str) -> io::Result<(StatusCode, String)> {
    let asked = async {
        let stream = UnixStream::connect(socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(connection);
        let request = Request::builder().uri(path).header("host", "rolecall").body(Full::<Bytes>::default());
        let response =
            sender.send_request(request.map_err(io::Error::other)?).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), STATUS_LIMIT)
            .collect()
            .await
            .map_err(io::Error::other)?
            .to_bytes();
        connection.abort();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    timeout(PROBE, asked)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in 2 s")))
}
