//! The operator's port of the issuer, plain HTTP inside the cluster: `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use tokio::net::TcpListener;

use super::metrics::Metrics;
use crate::admin::{self, Page};

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

    fn page(&self, path: &str) -> Page {
        let (code, text) = match path {
            // Answering at all is being alive: there is one event loop, and it is this one.
            "/livez" => (StatusCode::OK, "ok\n".into()),
            "/readyz" if self.ready.load(Ordering::Relaxed) => (StatusCode::OK, "ok\n".into()),
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "waiting for the API server\n".into()),
            "/metrics" => (StatusCode::OK, self.metrics.render()),
            _ => (StatusCode::NOT_FOUND, "only /livez, /readyz and /metrics are here\n".into()),
        };
        (code, "text/plain; version=0.0.4; charset=utf-8", text)
    }
}

/// Serves the pages for ever.
pub(super) async fn serve(listener: TcpListener, status: Arc<Status>) {
    admin::serve(
        move |cx| listener.poll_accept(cx).map_ok(|(stream, _)| stream),
        move |path| status.page(path),
    )
    .await;
}
