//! The operator's port of the issuer, plain HTTP inside the cluster: `/livez`, `/readyz`, `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::metrics::Metrics;

/// Scrapers and probes are few; more than that is a mistake or a flood.
const CONNECTIONS: usize = 32;
const HEADER_READ: Duration = Duration::from_secs(2);
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// Out of descriptors: the next accept may succeed, but not at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the pages show.
pub(super) struct Status {
    metrics: Arc<Metrics>,
    ready: AtomicBool,
}

impl Status {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, ready: AtomicBool::new(false) }
    }

    /// The API server has answered.
    pub(super) fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    fn page(&self, path: &str) -> (StatusCode, String) {
        match path {
            // Answering at all is being alive: there is one event loop, and it is this one.
            "/livez" => (StatusCode::OK, "ok\n".into()),
            "/readyz" if self.ready.load(Ordering::Relaxed) => (StatusCode::OK, "ok\n".into()),
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "waiting for the API server\n".into()),
            "/metrics" => (StatusCode::OK, self.metrics.render()),
            _ => (StatusCode::NOT_FOUND, "only /livez, /readyz and /metrics are here\n".into()),
        }
    }
}

/// Serves the pages for ever.
pub(super) async fn serve(listener: TcpListener, status: Arc<Status>) {
    let limit = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&limit).try_acquire_owned() else { continue };
        let status = Arc::clone(&status);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (code, body) = status.page(request.uri().path());
                let mut answer = Response::new(Full::new(Bytes::from(body)));
                *answer.status_mut() = code;
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                answer.headers_mut().insert(CONTENT_TYPE, kind);
                async move { Ok::<_, Infallible>(answer) }
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
