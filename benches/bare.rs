//! The bare server that `figures` measures the agent against: hyper's http1 with its header timer on one thread, one
//! fixed answer, nothing else.
//!
//! `bare ADDRESS BODY-FILE`: the file holds the answer's body, so that both servers send the same bytes.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// The agent's.
const HEADER_READ: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let address = args.next().context("bare ADDRESS BODY-FILE")?;
    let body = Bytes::from(std::fs::read(args.next().context("bare ADDRESS BODY-FILE")?)?);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(&address, body))
}

async fn serve(address: &str, body: Bytes) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let body = body.clone();
        tokio::spawn(async move {
            let service = service_fn(move |_| {
                let body = body.clone();
                async move { Ok::<_, Infallible>(answer(body)) }
            });
            // Errors are the peer's.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_READ)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
